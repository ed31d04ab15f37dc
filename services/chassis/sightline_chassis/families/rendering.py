"""Rendering: a processor's chat template, checked against the conversation that it renders.

Templates are programs, and each supports different conversations: some have no place for a system turn, some refuse two
turns of one side, some want texts where others want lists of parts. What a template omits or misreads would be sampled
and trained on silently. So its output must contain each text, and a place for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sightline.errors import InvalidInput, first_line
from sightline.sampler.turns import Turn, user_turn

Template = Callable[[list[dict[str, Any]]], str]
"""Renders messages, given as lists of parts or as texts."""

_REPR = "{'type': 'text'"  # written by a template that took a list of parts for a text
_MARKS = ("image_token", "boi_token", "image_start_token")


class Rendering:
    """The chat template of a transformers processor.

    Args:
        processor: with its template.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._mark: str | None = None

    def __call__(self, turns: Sequence[Turn]) -> str:
        """A conversation rendered by the template, ready for the answer.

        Raises:
            InvalidInput: PROMPT_REFUSED, the template refuses it; PROMPT_NOT_RENDERED, it omits something.
        """
        rendered = self.written(turns, answered=False)
        check_texts(turns, rendered)
        if (places := self.places(rendered)) is not None:
            check_places(turns, places)
        return rendered

    def written(self, turns: Sequence[Turn], *, answered: bool) -> str:
        """The template's output, unchecked; `answered`: the last turn is already the answer.

        Raises:
            InvalidInput: PROMPT_REFUSED.
        """

        def template(messages: list[dict[str, Any]]) -> str:
            return str(
                self._processor.apply_chat_template(messages, add_generation_prompt=not answered, tokenize=False)
            )

        return write(template, turns)

    def places(self, rendered: str) -> int | None:
        """Number of image places in a rendered prompt; None if nothing in it marks them."""
        if self._mark is None:
            self._mark = self._found_mark()
        return rendered.count(self._mark) if self._mark else None

    def _found_mark(self) -> str:
        """The text that appears once for one image and not without one; "" if there is none."""

        def written(images: int) -> str:
            try:
                return self.written(user_turn("?", images), answered=False)
            except InvalidInput:  # a template may require a picture, or a system turn
                return ""

        with_image, without = written(1), written(0)
        owners = (self._processor, getattr(self._processor, "tokenizer", None))
        marks = [getattr(owner, name, None) for name in _MARKS for owner in owners]
        found = (mark for mark in marks if isinstance(mark, str) and mark)
        return next((mark for mark in found if with_image.count(mark) == 1 and mark not in without), "")


def write(template: Template, turns: Sequence[Turn]) -> str:
    """A conversation rendered by a template.

    Raises:
        InvalidInput: PROMPT_REFUSED.
    """
    messages = [turn.message() for turn in turns]
    try:
        rendered = template(messages)
        return template([_texts(turn) for turn in turns]) if _REPR in rendered else rendered
    except Exception as error:  # a template is a program: it may raise anything
        raise InvalidInput(
            f"the model's chat template refuses the prompt: {first_line(error)}", reason="PROMPT_REFUSED"
        ) from error


def check_texts(turns: Sequence[Turn], rendered: str) -> None:
    """Check that the output contains each text of a conversation of several turns, in order.

    Raises:
        InvalidInput: a text is missing.
    """
    at = 0
    for number, turn in enumerate(turns if len(turns) > 1 else ()):
        for text in (part.strip() for part in turn.content if part):
            found = rendered.find(text, at)
            if found < 0 or _REPR in rendered:
                raise InvalidInput(
                    f"the model's chat template does not write turns[{number}] (role {turn.role}): leave it out",
                    reason="PROMPT_NOT_RENDERED",
                )
            at = found + len(text)


def check_places(turns: Sequence[Turn], places: int) -> None:
    """Check that a template writes a place for each image.

    Raises:
        InvalidInput: it writes more or fewer.
    """
    images = sum(turn.images for turn in turns)
    if places != images:
        raise InvalidInput(
            f"the model's chat template writes {places} places for {images} images", reason="PROMPT_NOT_RENDERED"
        )


def _texts(turn: Turn) -> dict[str, Any]:
    return turn.message() if turn.images else {"role": turn.role, "content": turn.text}
