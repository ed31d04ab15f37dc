"""Replica: one of several engines with the same base model, and whether it may be used."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time

from sightline.errors import SightlineError

from sightline_sampler.engines.base import SampleWork, ScoreWork
from sightline_sampler.engines.remote.vllm import VllmEngine

logger = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True, eq=False)
class Replica:
    """One of several.

    Attributes:
        engine: calls it.
        out: why it is left out; None if it may be used.
        failed: it showed wrong weights, so it must prove itself to come back.
        held: numbers of the policies that were loaded into it.
    """

    engine: VllmEngine
    out: str | None = "it has not answered yet"
    failed: bool = False
    held: set[int] = dataclasses.field(default_factory=set)

    def answers(self) -> bool:
        """Whether it may be used at least for the base model."""
        return self.out is None and self.engine.ready() is None and not self.engine.doubted

    def why(self) -> str:
        """Why it is not used."""
        return self.out or self.engine.ready() or "it was restarted, and must prove its policies again"

    def leave_out(self, why: str, *, failed: bool = False) -> None:
        """Stop using it."""
        if self.out is None:
            logger.warning("%s is left out: %s", self.engine.called, why)
        self.out, self.failed = why, self.failed or failed
        self.engine.show(left_out=True)

    def admit(self) -> None:
        """Ask it again."""
        logger.info("%s serves again", self.engine.called)
        self.out, self.failed = None, False
        self.engine.show(left_out=False)


class Round:
    """The replicas that failed for a request, and since when nothing has arrived.

    Args:
        seconds: the maximum time without progress.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._deadline = seconds, float("inf")
        self.asked: list[Replica] = []

    def failed(self, replica: Replica, error: SightlineError) -> None:
        """Continue with the next one; raises the error if there is no time left."""
        if self.over():
            raise error
        logger.warning("%s failed, asking another replica: %s", replica.engine.called, error)
        self.asked.append(replica)

    def over(self) -> bool:
        """Whether nothing has arrived for long enough, counted from the first call."""
        self._deadline = min(self._deadline, time.monotonic() + self._seconds)
        return time.monotonic() > self._deadline

    def progressed(self) -> None:
        """Something came."""
        self._deadline = float("inf")


def in_order(replicas: list[Replica], work: SampleWork | ScoreWork) -> list[Replica]:
    """The order in which replicas are used: the same for all requests with the same images (or the same text, without
    images), so that cached prefixes and image features are found. When a replica comes or goes, only its requests
    move."""
    asked = work.asked
    key = "".join(image.digest for image in asked.images) or repr(asked.turns)

    def weight(replica: Replica) -> bytes:
        return hashlib.sha256(f"{replica.engine.called}\n{key}".encode()).digest()

    return sorted(replicas, key=weight)
