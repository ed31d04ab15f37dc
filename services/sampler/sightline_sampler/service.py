"""The sampler as a chassis service."""

from __future__ import annotations

from typing import ClassVar

import grpc
from sightline.sampler.v1 import sampler_pb2_grpc as pb_grpc
from sightline_chassis.service import Service

from sightline_sampler import metrics
from sightline_sampler.conversations import ConversationReader
from sightline_sampler.costs import COSTS
from sightline_sampler.engines.factory import make_engine
from sightline_sampler.policies.received import ReceivedPolicies
from sightline_sampler.policies.registry import PolicyRegistry
from sightline_sampler.request_images import RequestImages
from sightline_sampler.requests import RequestReader
from sightline_sampler.servicer import SamplerServicer
from sightline_sampler.settings import SamplerSettings
from sightline_sampler.traffic import Traffic

_NAME = "sightline_sampler.v1.SamplerService"


class SamplerService(Service):
    """Loads the model, restores the last activated policy, serves."""

    name: ClassVar[str] = "sampler"
    proto_services: ClassVar[tuple[str, ...]] = (_NAME,)
    costs = COSTS
    # A policy must be swappable under full load, since in a training loop the swap ends the load.
    unadmitted: ClassVar[tuple[str, ...]] = (
        *(f"{_NAME}/{step}Policy" for step in ("Push", "Stage", "Activate", "Retire", "Get")),
        *(f"{_NAME}/{other}" for other in ("ListPolicies", "Pause", "Resume")),
    )

    def __init__(self, settings: SamplerSettings) -> None:
        limits = settings.limits
        self.engine = make_engine(settings.engine, limits, on_step=metrics.STEP_ROWS.observe)
        traffic = Traffic(settings.policies.pause_wait_seconds)
        self.policies = PolicyRegistry(self.engine, settings.policies, traffic)
        conversations = ConversationReader(limits, RequestImages(limits.image_store_mib << 20, limits))
        self._servicer = SamplerServicer(
            self.engine,
            self.policies,
            ReceivedPolicies(settings.policies, self.policies.keeps),
            RequestReader(limits, conversations, self.policies),
            conversations=conversations,
            traffic=traffic,
            gate=settings.policies.gate,
        )

    async def start(self) -> None:
        """Load and check the model."""
        digest = await self.engine.start()
        await self.policies.start(digest, self.engine.capabilities().model)
        metrics.ROWS.set_function(lambda: self.engine.loads()[0])
        metrics.WAITING.set_function(lambda: self.engine.loads()[1])
        metrics.POLICIES.set(len(self.policies.all()))
        metrics.POLICY_VERSION.set(self.policies.active.version)
        metrics.POLICY_LOADED.set_to_current_time()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        pb_grpc.add_SamplerServiceServicer_to_server(self._servicer, server)

    async def ready(self) -> str | None:
        """None if the engine can sample."""
        return self.engine.ready()

    def broken(self) -> str | None:
        """A failure that the engine cannot recover from."""
        return self.engine.broken()

    async def stop(self) -> None:
        """Free the model."""
        await self.engine.stop()
        self.policies.stop()
