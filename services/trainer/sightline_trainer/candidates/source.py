"""Source: something that makes candidates for a prompt."""

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
    """What a source is asked in a round: candidates of which iteration and policy version, and what the sources before
    it made for the same prompt (candidates are numbered on from there)."""

    iteration: int
    version: int
    made: Sequence[Response] = ()


@dataclass(frozen=True)
class SourceContext:
    """What sources stand on."""

    sampling: Sampling
    seed: int
    """The run's."""
    sampler: AsyncSamplerClient
    gate: RowGate
    dataset: Path
    """Directory of the dataset's side files: vocabulary.json, questions.jsonl."""
    connect: Callable[[str, float], AsyncSamplerClient]
    """Opens another sampler, which is closed with the session."""
    closing: AsyncExitStack
    """What is to be closed with the session."""
    decoder: Callable[[Decoding, int], DecoderOptions] = DecoderOptions
    """Makes a recipe's decoding options of calls, with a seed."""

    def speaker(self, settings: Speaking) -> Speaker:
        """Whom a part asks.

        Raises:
            PreconditionFailed: as `speaker_of`.
        """
        return speaker_of(settings, self.sampler, self.gate, self.connect, self.closing)


class Source(Protocol):
    """Makes candidates; the same arguments give the same ones."""

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]: ...


class CandidatePart(Part):
    """Settings of a source, and how it is made from them.

    Attributes:
        writes: the sources that its candidates may name.
    """

    writes: ClassVar[tuple[str, ...]] = ()

    def open(self, context: SourceContext) -> Source | None:
        """The source; None for a part that works on pairs instead."""
        raise NotImplementedError
