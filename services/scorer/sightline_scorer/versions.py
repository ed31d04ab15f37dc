"""The base of every version of a model: its facts, its towers, and the requests that use it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer.formulas import Scale
from sightline_scorer.joint_scale import JointScale
from sightline_scorer.tower import Tower
from sightline_scorer.triton.card import ModelCard


@dataclass(eq=False, kw_only=True)
class ModelVersion:
    """One version of a model."""

    info: pb.ModelInfo
    scale: Scale | JointScale
    triton_names: tuple[str, ...]
    """Its towers in Triton; none for a model that a sampler answers."""
    fingerprint: str
    """Changes with anything that makes a new version."""
    told: ModelCard | None
    """Its facts as Triton reports them; None without a model in Triton."""
    in_use: int = 0
    """Number of requests that use it."""
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.info.name

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers, in the order of their Triton names."""
        raise NotImplementedError

    @contextlib.contextmanager
    def used(self) -> Iterator[Self]:
        """A request keeps this version until it ends, even if another one takes over meanwhile."""
        self.in_use += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self.in_use -= 1
            if self.in_use == 0:
                self._idle.set()

    async def drained(self, seconds: float) -> None:
        """Return when no request uses it, or after this many seconds."""
        if self.in_use:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)

    async def close(self) -> None:
        """Release its towers."""
        for tower in self.towers:
            await tower.close()
