"""Term: one part of a reward. The reward of a candidate is the weighted sum of its terms, or of their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import Field
from sightline.sampler import AsyncSamplerClient
from sightline.scorer import AsyncScorerClient

from sightline_trainer.judgements import Judgements
from sightline_trainer.parts import Part
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.row_gate import RowGate
from sightline_trainer.sections import RewardService
from sightline_trainer.speaker.settings import Speaking
from sightline_trainer.speaker.speaker import Connect, Speaker, speaker_of


@dataclass(frozen=True)
class TermContext:
    """What terms use."""

    scoring: RewardService
    sampler: AsyncSamplerClient
    scorer: AsyncScorerClient
    dataset: Path
    gate: RowGate
    connect: Connect
    closing: AsyncExitStack
    """Things to close with the session."""
    kept: Path | None = None
    """The run's directory for judges' answers; None if they are kept only for the session."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Names of the recipe's terms, by the identity of their settings."""

    def speaker(self, settings: Speaking) -> Speaker:
        """The language model that a term asks. Raises PreconditionFailed as `speaker_of`."""
        return speaker_of(settings, self.sampler, self.gate, self.connect, self.closing)

    def judgements(self, part: TermPart) -> Judgements:
        """The store of a term's answers."""
        name = self.names.get(id(part))
        return Judgements(None if self.kept is None or name is None else self.kept / f"{file_name(name)}.jsonl")


def file_name(name: str) -> str:
    """A term's name as a file name: other characters than letters, digits, _ and - become their numbers."""
    return "".join(each if each.isalnum() or each in "_-" else f"%{ord(each):02x}" for each in name)


class Term(Protocol):
    """Scores candidates: one score each, in order; its `reward` is the term's value."""

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]: ...


class TermPart(Part):
    """Settings of a term; makes the term."""

    weight: float = Field(1.0, description="Factor in the sum; a negative weight makes the term a cost.")

    def open(self, context: TermContext) -> Term:
        """The term."""
        raise NotImplementedError
