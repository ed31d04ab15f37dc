"""The interface of every engine. An engine declares in its capabilities what it supports; nothing is assumed.

The service (limits, policies' book-keeping, gRPC) uses engines only through this module.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from sightline.errors import InternalError, InvalidInput
from sightline.sampler.manifest import PolicyManifest
from sightline.sampler.params import SamplingParams
from sightline.sampler.turns import Turn, without_images
from sightline.sampler.types import Candidate, Capabilities, Distortion, Summary, TokenScores

from sightline_sampler.engines import seeds

UNSCORABLE = "TOKENS_DO_NOT_ROUND_TRIP"
"""Reason of `InvalidInput` from an engine that takes only text: its tokenizer gives other ids for this text."""


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as received: the encoded file and its SHA-256 (hexadecimal)."""

    content: bytes
    digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """The question: the turns, the last of which is to be answered, and the images in the order of their places."""

    turns: tuple[Turn, ...]
    images: tuple[EncodedImage, ...] = ()

    def without_images(self) -> Conversation:
        """The same without images."""
        return Conversation(without_images(self.turns))

    def asking(self, text: str) -> Conversation:
        """The same images and turns with another final question."""
        last = self.turns[-1]
        shown = tuple(None for part in last.content if part is None)
        return Conversation((*self.turns[:-1], Turn(last.role, (*shown, text))), self.images)


class Lease(Protocol):
    """The right to use a policy. The version is decided as late as possible: when sampling begins."""

    def bind(self) -> int:
        """The version to sample with; the same at every later call. Thread-safe.

        Raises:
            PreconditionFailed: the requested version is not (or no longer) served.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class SampleWork:
    """One request.

    Attributes:
        request_id: for the log.
        asked: the question.
        seeds: one for each candidate.
        params: how tokens are sampled.
        lease: which policy answers.
        deadline: `time.monotonic()` after which no caller waits; None: no deadline.
        free_seeds: the caller chose no seeds, so an engine may use its own seeds, and reports them.
        asker: the caller, for fair turns.
    """

    request_id: str
    asked: Conversation
    seeds: Sequence[int]
    params: SamplingParams
    lease: Lease
    deadline: float | None = None
    free_seeds: bool = False
    asker: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreWork:
    """One response to score by teacher forcing; fields as in `SampleWork`."""

    asked: Conversation
    token_ids: Sequence[int]
    lease: Lease
    deadline: float | None = None
    distortion: Distortion | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class StagedWeights:
    """The contents of a loaded policy: its tensors, and the modules that it changes (0 for a whole checkpoint means
    all)."""

    tensors: int
    modules: int


def not_finite(version: int) -> InternalError:
    """The error of a candidate or score for which the policy gave non-finite numbers. A failure is never a number."""
    return InternalError(f"policy {version} gave logits that are not finite", reason="LOGITS_NOT_FINITE")


Proof = Callable[["Engine", "Engine", Sequence[int]], Awaitable[None]]
"""Compares a part with a proved one, under the versions that the proved one holds; raises if it differs."""


class Engine(abc.ABC):
    """Samples from versioned policies. Version 0, the base model, is always available."""

    name: ClassVar[str]

    @abc.abstractmethod
    async def start(self) -> str:
        """Load the base model and return its digest (see `manifest.model_digest`)."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """End running work with `Unavailable` and free everything."""

    @abc.abstractmethod
    def ready(self) -> str | None:
        """None if it can sample, otherwise why not."""

    def parts(self) -> Sequence[Engine]:
        """Parts that each hold their own weights and must each prove a policy: the replicas that answer now."""
        return (self,)

    def quorum(self) -> int:
        """How many of the parts must hold a policy; the others are left out until they do."""
        return 1

    def leave_out(self, part: Engine, why: str) -> None:
        """Do not use a part that did not prove a policy, until it does."""
        raise NotImplementedError

    def on_return(self, proof: Proof) -> None:
        """Set once: how a part that was unavailable or left out proves that it holds the same as the others."""
        return

    def broken(self) -> str | None:
        """Why only a restart of this process helps, or None."""
        return None

    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """The capabilities of this engine with this model."""

    @abc.abstractmethod
    def sample(self, work: SampleWork) -> AsyncGenerator[Candidate | Summary]:
        """Yield each candidate when it is finished, and the summary last. Closing the iterator cancels the rest."""

    @abc.abstractmethod
    async def score(self, work: ScoreWork) -> TokenScores:
        """Log-probability of each token of a given response under the policy, as `Candidate.logprobs`."""

    @abc.abstractmethod
    async def stage(self, directory: Path, manifest: PolicyManifest) -> StagedWeights:
        """Load a policy whose digests have been checked, without disturbing running work.

        Raises:
            PreconditionFailed: its tensors do not match the base model one to one, or it changes nothing.
        """

    @abc.abstractmethod
    async def activate(self, version: int) -> None:
        """Make a staged version (or 0) resident, unless it is. For engines that hold one at a time.

        If `resident` is False, the caller makes sure that nothing is being sampled. After a failure, the previous
        version may have to be activated again.
        """

    def derive_seeds(self, seed: int, count: int) -> list[int]:
        """One seed for each of `count` candidates, derived from one; candidate i's seed does not depend on `count`."""
        return seeds.derive(seed, count)

    def resident(self, version: int) -> bool:
        """Whether a staged version can answer beside the active one; otherwise it must be activated first."""
        return True

    def loads(self) -> tuple[int, int]:
        """Running candidates and waiting prompts, for the metrics."""
        return 0, 0

    async def freeze(self) -> None:
        """Stop sampling where it is, until `thaw`.

        Raises:
            InvalidInput: this engine does not support it.
        """
        raise InvalidInput(
            f"the engine {self.name} cannot pause with keep: drain or abort", reason="PAUSE_MODE_UNSUPPORTED"
        )

    async def thaw(self) -> None:
        """Go on."""
        return

    async def release(self) -> None:
        """Release its memory until `reload`, with nothing running; does nothing if it has.

        Raises:
            InvalidInput: this engine does not support it.
        """
        raise InvalidInput(
            f"the engine {self.name} cannot release its memory: pause without release", reason="PAUSE_MODE_UNSUPPORTED"
        )

    async def reload(self) -> None:
        """Restore the memory; does nothing if it has.

        Raises:
            SightlineError: the weights did not come back unchanged.
        """
        return

    @abc.abstractmethod
    async def retire(self, version: int) -> None:
        """Free a staged version. The caller makes sure that nothing uses it."""
