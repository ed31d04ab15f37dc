"""``reference``: the dataset's annotation as a candidate, for the role of the chosen one (POVID, BPO)."""

from __future__ import annotations

from sightline_trainer.candidates.candidate import Candidate
from sightline_trainer.candidates.source import Ask, CandidatePart, Context, Source
from sightline_trainer.prompts import Prompt
from sightline_trainer.wording import Wording


class Reference(CandidatePart):
    """The annotation of the dataset."""

    def open(self, context: Context) -> Source:
        return ReferenceSource(context.wording)


class ReferenceSource:
    """One candidate for each prompt that has an annotation, for every user's text that was asked about it."""

    def __init__(self, wording: Wording) -> None:
        self.wording = wording

    async def __call__(self, prompt: Prompt, ask: Ask) -> list[Candidate]:
        if not prompt.reference:
            return []
        asked = list(dict.fromkeys(candidate.prompt for candidate in ask.made)) or [prompt.prompt]
        return [
            written(self.wording, prompt, text, prompt.reference, index=len(ask.made) + number, source="reference")
            for number, text in enumerate(asked)
        ]


def written(
    wording: Wording, prompt: Prompt, asked: str, text: str, *, index: int, source: str, statement: str = ""
) -> Candidate:
    """A candidate that no policy sampled: tokens as the policy would have had to write them."""
    return Candidate(
        prompt_id=prompt.id,
        index=index,
        text=text,
        token_ids=wording.response(asked, text),
        rendered_prompt=wording.prompt(asked),
        prompt=asked,
        source=source,
        statement=statement,
    )
