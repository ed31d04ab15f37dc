"""Source: something that makes candidates for a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sightline_sampler.client import AsyncSamplerClient

from sightline_trainer.candidates.candidate import Candidate
from sightline_trainer.parts import Part
from sightline_trainer.prompts import Prompt
from sightline_trainer.wording import Wording

if TYPE_CHECKING:
    from sightline_trainer.recipe import Recipe


@dataclass(frozen=True)
class Ask:
    """What a source is asked in a round: candidates of which iteration and policy version, and what the sources before
    it made for the same prompt (candidates are numbered on from there)."""

    iteration: int
    version: int
    made: Sequence[Candidate] = ()


@dataclass(frozen=True)
class Context:
    """What sources stand on."""

    recipe: Recipe
    sampler: AsyncSamplerClient
    wording: Wording
    dataset: Path
    """Directory of the dataset's side files: vocabulary.json, questions.jsonl."""
    connect: Callable[[str], AsyncSamplerClient]
    """Opens another sampler, which is closed with the session."""
    closing: AsyncExitStack
    """What is to be closed with the session."""


class Source(Protocol):
    """Makes candidates; the same arguments give the same ones."""

    async def __call__(self, prompt: Prompt, ask: Ask) -> list[Candidate]: ...


class CandidatePart(Part):
    """Settings of a source, and how it is made from them."""

    def open(self, context: Context) -> Source | None:
        """The source; None for a part that works on pairs instead."""
        raise NotImplementedError
