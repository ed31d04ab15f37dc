"""A user's own function as a term of the reward.

    def brevity(images, prompts, texts):
        return [-len(text.split()) for text in texts]

    reward: {terms: {"mycompany.rewards:brevity": {weight: 0.1}}}

It is called with the candidates of one prompt at a time: `images` are Pillow pictures (RGB, read by the one rule; a
list if a prompt has several), `prompts` the users' texts, `texts` the candidates; three lists of the same length. It
returns a number for each, or None for one that it cannot judge, or None for all. It may be `async`; otherwise it runs
in a thread, one call at a time.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

from sightline_trainer.open_parts import check_arguments
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.guarded import numbers
from sightline_trainer.rewards.term import Term, TermContext, TermPart

RewardFunction = Callable[..., Any]


class FunctionPart(TermPart):
    """A function as a term."""

    function: ClassVar[RewardFunction]

    def open(self, context: TermContext) -> Term:
        return FunctionTerm(type(self).function)


@cache
def term_of(function: RewardFunction) -> type[FunctionPart]:
    """The part for a function.

    Raises:
        ValueError: it takes other arguments.
    """
    check_arguments(function, "images", "prompts", "texts")
    theirs = function

    class Theirs(FunctionPart):
        """A function as a term."""

        function: ClassVar[RewardFunction] = staticmethod(theirs)

    return Theirs


class FunctionTerm:
    """Asks the function."""

    def __init__(self, function: RewardFunction) -> None:
        self.function = function
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        if not candidates:
            return []
        prompts, texts = [each.prompt or prompt.prompt for each in candidates], [each.text for each in candidates]
        shown = await asyncio.to_thread(lambda: [decode(each.read_bytes(), ImageLimits()) for each in prompt.images])
        copies = [[image.copy() for image in shown] for _ in candidates]  # a copy each, since a function may draw on it
        images = [each[0] if len(each) == 1 else each for each in copies]
        async with self._one_at_a_time:
            if inspect.iscoroutinefunction(self.function):
                values = await self.function(images, prompts, texts)
            else:
                values = await asyncio.to_thread(self.function, images, prompts, texts)
                if inspect.isawaitable(values):  # an object with an async __call__, or a function around one
                    values = await values
        return numbers(values, len(texts))
