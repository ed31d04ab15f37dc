"""Language models as writers: a text LLM behind our sampler, or any OpenAI-compatible endpoint.

The instructions are our own; BPO's released ones ask for the same in other words and with examples.
"""

from __future__ import annotations

from sightline_trainer.injection.kinds import WORDS
from sightline_trainer.injection.settings import Rewriting
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.speaker.settings import Speaking
from sightline_trainer.speaker.speaker import Speaker


def instruction(settings: Rewriting, asked: str, text: str) -> str:
    """The instruction to the language model."""
    errors = "; ".join(WORDS[kind] for kind in settings.kinds)
    number = "one mistake" if settings.errors == 1 else f"{settings.errors} mistakes"
    return (
        "An answer about a picture is given below. Write it again as somebody would who looked at the picture "
        f"carelessly: with {number} that nobody could tell without seeing the picture. Allowed mistakes: {errors}. "
        "Everything else, the style and the length stay as they are. Write the new answer alone, with no remark.\n\n"
        f"Question: {asked}\nAnswer: {text}\nNew answer:"
    )


def cleaned(text: str) -> str | None:
    """The answer without quotation marks and a label that models tend to add; None if nothing is left."""
    text = text.strip().removeprefix("New answer:").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    return text or None


class LanguageModelWriter:
    """A language model that sees only the text."""

    def __init__(self, settings: Rewriting, speaker: Speaker) -> None:
        self.settings = settings
        self.speaker = speaker

    async def __call__(self, prompt: Prompt, asked: str, text: str, seed: int) -> str | None:
        return cleaned(await self.speaker(prompt, instruction(self.settings, asked, text), seed, version=0))


def speaking(settings: Rewriting) -> Speaking:
    """The language model for a rewriting."""
    return Speaking(
        who="openai" if settings.writer == "openai" else "sampler",
        address=settings.address,
        url=settings.url,
        model=settings.model,
        image=False,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        timeout_seconds=settings.timeout_seconds,
    )
