"""The sampler as a service of the chassis."""

from __future__ import annotations

from typing import ClassVar

import grpc
from sightline_chassis.service import Service

from sightline_sampler import metrics
from sightline_sampler.costs import COSTS
from sightline_sampler.engines.transformers import TransformersEngine
from sightline_sampler.images import ImageStore
from sightline_sampler.policies import PolicyBook
from sightline_sampler.requests import RequestReader
from sightline_sampler.servicer import SamplerServicer
from sightline_sampler.settings import SamplerSettings
from sightline_sampler.v1 import sampler_pb2_grpc as pb_grpc

_NAME = "sightline_sampler.v1.SamplerService"


class SamplerService(Service):
    """Loads the model, takes up the last activated policy, serves."""

    name: ClassVar[str] = "sampler"
    proto_services: ClassVar[tuple[str, ...]] = (_NAME,)
    costs = COSTS
    # A policy must be swappable under full load: that is what ends the load in a training loop.
    unadmitted: ClassVar[tuple[str, ...]] = tuple(
        f"{_NAME}/{method}" for method in ("StagePolicy", "ActivatePolicy", "RetirePolicy", "GetPolicy", "ListPolicies")
    )

    def __init__(self, settings: SamplerSettings) -> None:
        limits = settings.limits
        self.engine = TransformersEngine(settings.engine, limits, on_step=metrics.STEP_ROWS.observe)
        self.policies = PolicyBook(self.engine, settings.policies)
        images = ImageStore(max_bytes=limits.image_store_mib << 20, max_image_bytes=limits.max_image_bytes)
        self._servicer = SamplerServicer(self.engine, self.policies, RequestReader(limits, images, self.policies))

    async def start(self) -> None:
        """Loads and checks the model."""
        digest = await self.engine.start()
        await self.policies.start(digest, self.engine.capabilities().model)
        metrics.ROWS.set_function(self.engine.rows)
        metrics.WAITING.set_function(self.engine.waiting)
        metrics.POLICIES.set(len(self.policies.all()))
        metrics.POLICY_VERSION.set(self.policies.active)
        metrics.POLICY_LOADED.set_to_current_time()

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer."""
        pb_grpc.add_SamplerServiceServicer_to_server(self._servicer, server)

    async def ready(self) -> str | None:
        """None when the decoding thread lives."""
        return self.engine.ready()

    async def stop(self) -> None:
        """Frees the model."""
        await self.engine.stop()
