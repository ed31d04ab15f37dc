"""Guards a third-party source: if it raises or returns something else than candidates, only that prompt is lost."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence

from sightline.errors import InvalidInput, SightlineError

from sightline_trainer.candidates.source import Source, SourceRequest
from sightline_trainer.open_parts import Failures
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response


class GuardedSource:
    """A source whose failures only cost one prompt, which is noted in `dropped/`.

    Args:
        writes: the source names that its candidates may have.
    """

    def __init__(self, name: str, source: Source, writes: Collection[str]) -> None:
        self.name = name
        self.source = source
        self.writes = writes
        self._failures = Failures(f"the source {name}")

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        try:
            asked = self.source(prompt, ask)
            if not inspect.isawaitable(asked):
                raise TypeError("it is not async; define it by `async def`")
            made = list(await asked)
        except SightlineError:
            raise
        except (Exception, SystemExit) as error:
            raise self._not_written(f"raised {type(error).__name__}: {error}", traceback=True) from error
        if fault := _fault(made, prompt, len(ask.made), self.writes):
            raise self._not_written(fault)
        return made

    def _not_written(self, why: str, *, traceback: bool = False) -> InvalidInput:
        self._failures.tell("failed", why, traceback=traceback)
        return InvalidInput(f"the source {self.name} {why}", reason="CANDIDATE_NOT_WRITTEN")


def _fault(made: Sequence[object], prompt: Prompt, first: int, writes: Collection[str]) -> str | None:
    for number, each in enumerate(made):
        if not isinstance(each, Response):
            return f"gave {each!r:.80}, which is not a Response"
        if each.prompt_id != prompt.id:
            return f"gave a candidate of the prompt {each.prompt_id!r:.80}"
        if each.index != first + number:
            return f"numbered its candidate {each.index}; candidates are numbered on from those before, here {first}"
        if each.source not in writes:
            return f"gave a candidate of the source {each.source!r:.80}, which its `writes` does not name"
    return None
