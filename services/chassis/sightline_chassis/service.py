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
    """Methods ("package.Service/Method") that need no admission: control, and streams that only watch."""

    costs: ClassVar[Mapping[str, Callable[[Any], Cost]]] = {}
    """What a request of a method ("package.Service/Method") with one request message uses of its team's limits. A
    handler of a stream of requests calls `sightline_chassis.gate.charge` for each."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Load what is needed, off the event loop; the service is NOT_SERVING until this returns."""

    @abc.abstractmethod
    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicers; called after `start`."""

    async def ready(self) -> str | None:
        """None when the service can do its work, else why not; asked about every second."""
        return None

    def broken(self) -> str | None:
        """Why nothing but a restart of the process helps, None else: "liveness" goes then. Asked several times a second
        once the service has started."""
        return None

    async def drain(self) -> None:
        """Called when calls begin to be refused: endless streams (watches) end here, or they hold up the stop."""
        return

    async def stop(self) -> None:
        """Give back what `start` took. Called once, after the drain, and also when `start` failed half-way."""
        return
