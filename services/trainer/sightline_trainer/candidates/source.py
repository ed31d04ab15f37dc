"""Source: makes candidates for a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from sightline.sampler import AsyncSamplerClient

from sightline_trainer.decoder_options import DecoderOptions
from sightline_trainer.decoding_settings import Decoding
from sightline_trainer.parts import Part
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.row_gate import RowGate
from sightline_trainer.sections import Sampling
from sightline_trainer.speaker.settings import Speaking
from sightline_trainer.speaker.speaker import Speaker, speaker_of


@dataclass(frozen=True)
class SourceRequest:
    """A round's request to a source: the iteration, the policy version, and the candidates that earlier sources made
    for the same prompt (numbering continues from there)."""

    iteration: int
    version: int
    made: Sequence[Response] = ()


@dataclass(frozen=True)
class SourceContext:
    """What sources use."""

    sampling: Sampling
    seed: int
    """The run's."""
    sampler: AsyncSamplerClient
    gate: RowGate
    dataset: Path
    """Directory with the dataset's further files: vocabulary.json, questions.jsonl."""
    connect: Callable[[str, float], AsyncSamplerClient]
    """Opens another sampler; the session closes it."""
    closing: AsyncExitStack
    """Things to close with the session."""
    decoder: Callable[[Decoding, int], DecoderOptions] = DecoderOptions
    """Turns a recipe's decoding into options of calls, with a seed."""

    def speaker(self, settings: Speaking) -> Speaker:
        """The language model that a part asks.

        Raises:
            PreconditionFailed: see `speaker_of`.
        """
        return speaker_of(settings, self.sampler, self.gate, self.connect, self.closing)


class Source(Protocol):
    """Makes candidates; the same arguments give the same ones."""

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]: ...


class CandidatePart(Part):
    """Settings of a source; makes the source.

    Attributes:
        writes: the source names that its candidates may have.
    """

    writes: ClassVar[tuple[str, ...]] = ()

    def open(self, context: SourceContext) -> Source | None:
        """The source; None for a part that works on pairs instead."""
        raise NotImplementedError
