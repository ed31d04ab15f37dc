"""The interface that every engine has. What an engine cannot do it says in its capabilities; nothing is assumed.

The service (limits, policies' book-keeping, gRPC) knows engines by this module only.
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
"""Reason of `InvalidInput` of an engine that takes text only: its tokenizer would not give these ids for their text."""


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as it came: the encoded file and its SHA-256 (hexadecimal)."""

    content: bytes
    digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """What is asked: the turns, of which the last is answered, and the images in the order of their places."""

    turns: tuple[Turn, ...]
    images: tuple[EncodedImage, ...] = ()

    def without_images(self) -> Conversation:
        """The same with nothing to be seen."""
        return Conversation(without_images(self.turns))

    def asking(self, text: str) -> Conversation:
        """The same images and turns with another question at their end."""
        last = self.turns[-1]
        shown = tuple(None for part in last.content if part is None)
        return Conversation((*self.turns[:-1], Turn(last.role, (*shown, text))), self.images)


class Lease(Protocol):
    """The right to use a policy. The version is decided as late as possible: where sampling begins."""

    def bind(self) -> int:
        """The version to sample with; the same at every later call. Thread-safe.

        Raises:
            PreconditionFailed: the version asked for is not (or no longer) served.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class SampleWork:
    """One request.

    Attributes:
        request_id: for the log.
        asked: what is asked.
        seeds: one per candidate.
        params: how tokens are drawn.
        lease: which policy answers.
        deadline: `time.monotonic()` after which no caller waits; None is never.
        free_seeds: the caller chose no seeds: an engine that makes its own may use those, and reports them.
        asker: whose it is, as far as taking turns goes.
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
    """One response to be scored by teacher forcing; fields as in `SampleWork`."""

    asked: Conversation
    token_ids: Sequence[int]
    lease: Lease
    deadline: float | None = None
    distortion: Distortion | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class StagedWeights:
    """What a policy brought: its tensors, and the modules that it changes (0 for a whole checkpoint means all)."""

    tensors: int
    modules: int


def not_finite(version: int) -> InternalError:
    """What a candidate or a score ends with where the policy gave no finite numbers. A failure is never a number."""
    return InternalError(f"policy {version} gave logits that are not finite", reason="LOGITS_NOT_FINITE")


Proof = Callable[["Engine", "Engine", Sequence[int]], Awaitable[None]]
"""Compares a part with one that was proved, under the versions that this one holds; raises where it differs."""


class Engine(abc.ABC):
    """Samples from versioned policies. Version 0, the base model, is always there."""

    name: ClassVar[str]

    @abc.abstractmethod
    async def start(self) -> str:
        """Load the base model and give its digest (see `manifest.model_digest`)."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """End running work with `Unavailable` and free everything."""

    @abc.abstractmethod
    def ready(self) -> str | None:
        """None when it can sample, else why not."""

    def parts(self) -> Sequence[Engine]:
        """Engines that hold the weights each for itself, and must each prove a policy: replicas that answer now."""
        return (self,)

    def quorum(self) -> int:
        """How many of the parts must hold a policy; the others are left out until they do."""
        return 1

    def leave_out(self, part: Engine, why: str) -> None:
        """Ask nothing more of a part that did not prove a policy, until it does."""
        raise NotImplementedError

    def on_return(self, proof: Proof) -> None:
        """Told once how a part that was away, or left out, shows that it holds what the others do."""
        return

    def broken(self) -> str | None:
        """Why nothing but a restart of this process helps; None else."""
        return None

    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this engine can do with this model."""

    @abc.abstractmethod
    def sample(self, work: SampleWork) -> AsyncGenerator[Candidate | Summary]:
        """Yield each candidate when it is finished, and the summary last. Closing the iterator cancels the rest."""

    @abc.abstractmethod
    async def score(self, work: ScoreWork) -> TokenScores:
        """Log-probability of each token of a given response under the policy, as `Candidate.logprobs`."""

    @abc.abstractmethod
    async def stage(self, directory: Path, manifest: PolicyManifest) -> StagedWeights:
        """Load a policy whose digests have been checked, without disturbing what is being sampled.

        Raises:
            PreconditionFailed: its tensors do not fit the base model one to one, or it changes nothing.
        """

    @abc.abstractmethod
    async def activate(self, version: int) -> None:
        """Make a staged version (or 0) resident; nothing if it is. For engines that hold one at a time.

        Where `resident` says no, the caller has seen to it that nothing is being sampled. After a failure the version
        before may have to be activated again.
        """

    def derive_seeds(self, seed: int, count: int) -> list[int]:
        """One seed for each of `count` candidates from one; candidate i gets the same one whatever `count` is."""
        return seeds.derive(seed, count)

    def resident(self, version: int) -> bool:
        """Whether a staged version can answer as it is, beside the active one; else it must be activated first."""
        return True

    def loads(self) -> tuple[int, int]:
        """Candidates being sampled, and prompts that wait, for the metrics."""
        return 0, 0

    async def freeze(self) -> None:
        """Stop sampling where it is, until `thaw`.

        Raises:
            InvalidInput: this engine cannot.
        """
        raise InvalidInput(
            f"the engine {self.name} cannot pause with keep: drain or abort", reason="PAUSE_MODE_UNSUPPORTED"
        )

    async def thaw(self) -> None:
        """Go on."""
        return

    async def release(self) -> None:
        """Give its memory back until `reload`, with nothing running; nothing if it has.

        Raises:
            InvalidInput: this engine cannot.
        """
        raise InvalidInput(f"the engine {self.name} cannot give its memory back", reason="PAUSE_MODE_UNSUPPORTED")

    async def reload(self) -> None:
        """Take it up again, nothing if it has.

        Raises:
            SightlineError: the weights did not come back as they were.
        """
        return

    @abc.abstractmethod
    async def retire(self, version: int) -> None:
        """Free a staged version. The caller has seen to it that nothing uses it."""
