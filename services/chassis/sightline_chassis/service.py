"""What a service declares to the chassis.

class Scorer(Service):
    name = "scorer"
    proto_services = ("sightline_scorer.v1.ScorerService",)
    ...
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import grpc

from sightline_chassis.quota import Cost


class Service(abc.ABC):
    """What a service declares to the chassis."""

    name: ClassVar[str]
    """Short name: "scorer"."""
    proto_services: ClassVar[tuple[str, ...]]
    """Full names of its gRPC services, for reflection, health and metrics."""
    unadmitted: ClassVar[tuple[str, ...]] = ()
    """Methods ("package.Service/Method") that skip admission: control, and streams that only watch."""

    costs: ClassVar[Mapping[str, Callable[[Any], Cost]]] = {}
    """What a request of a method ("package.Service/Method") with a single request message charges to its team's limits.
    A handler of a stream of requests calls `sightline_chassis.gate.charge` for each."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Load the service, off the event loop; it is NOT_SERVING until this returns."""

    @abc.abstractmethod
    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicers; called after `start`."""

    async def ready(self) -> str | None:
        """None if the service can work now, otherwise why not; called about every second."""
        return None

    def broken(self) -> str | None:
        """Why only a restart of the process helps (then "liveness" fails), or None. Called several times a second after
        the start."""
        return None

    async def drain(self) -> None:
        """Called when calls begin to be refused: end endless streams (watches) here, or they delay the stop."""
        return

    async def stop(self) -> None:
        """Release what `start` acquired. Called once, after the drain, and also if `start` failed half-way."""
        return
