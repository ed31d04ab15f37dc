"""The scorer as a chassis service: what it starts, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import ClassVar

import grpc
from sightline.errors import PreconditionFailed, SightlineError
from sightline.scorer.v1 import scorer_pb2_grpc
from sightline_chassis import images
from sightline_chassis.image_store import ImageStore
from sightline_chassis.metrics import RELOAD_FAILING
from sightline_chassis.service import Service
from sightline_chassis.settings import SettingsError

from sightline_scorer import metrics
from sightline_scorer.costs import COSTS
from sightline_scorer.embedder import Embedder
from sightline_scorer.fair_pool import FairPool
from sightline_scorer.fetch import Fetcher
from sightline_scorer.loader import Loader
from sightline_scorer.models import ModelRegistry
from sightline_scorer.probe import ModelProbe
from sightline_scorer.score_request import Scoring
from sightline_scorer.servicer import ScorerServicer
from sightline_scorer.settings import ScorerSettings
from sightline_scorer.triton.backend import TritonBackend
from sightline_scorer.triton.embedded import EmbeddedTriton
from sightline_scorer.triton.servers import RemoteTriton, TritonServer

logger = logging.getLogger(__name__)


class ScorerService(Service):
    """Serves `sightline_scorer.v1.ScorerService` by a Triton, embedded or remote, or by a worker.

    Args:
        settings: all of them.
        reread: reads the settings again, for a change of models; without it the same settings are used, and only
            weights that changed on disk are new.
    """

    name: ClassVar[str] = "scorer"
    proto_services: ClassVar[tuple[str, ...]] = ("sightline_scorer.v1.ScorerService",)
    costs = COSTS
    unadmitted: ClassVar[tuple[str, ...]] = ("sightline_scorer.v1.ScorerService/ReloadModels",)

    def __init__(self, settings: ScorerSettings, reread: Callable[[], ScorerSettings] | None = None) -> None:
        self._settings = settings
        self._reread = reread or (lambda: settings)
        self._pool = FairPool(settings.decode_threads, "decode")
        self._backend: TritonBackend
        self.triton: TritonServer = (
            EmbeddedTriton(settings.triton, lambda out: self._loader.build(out), settings.traces.endpoint)
            if settings.triton.mode != "remote"
            else RemoteTriton(settings.triton)
        )
        self._backend = TritonBackend(self.triton, settings.triton)
        self._loader = Loader(settings, self.triton, self._backend)
        self._fetcher = Fetcher(settings.fetch, settings.limits)
        self._store: ImageStore | None = None
        self._models = ModelRegistry({}, {}, "")
        self._probe: ModelProbe | None = None
        self._reloads: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        """Start or find Triton, load what is needed before it, and score once.

        Raises PreconditionFailed saying what is missing, or what the model or Triton had to complain about.
        """
        images.lift_pillow_limit()
        metrics.preregister()
        settings = self._settings
        try:
            self._store = ImageStore(settings.image_store, on_bytes=metrics.STORE_BYTES.set)
            await self.triton.start()
            self._models = await self._loader.load_all()
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise PreconditionFailed(f"{type(error).__name__}: {error}", reason="MODEL_UNREADABLE") from error
        embedder = Embedder(self._store, self._fetcher, self._pool, shared=settings.cache.shared)
        scoring = Scoring(self._models, embedder, settings.limits)
        self._servicer = ScorerServicer(
            scoring, self._store, settings.limits, self._fetcher.schemes, self.reload if settings.reload.rpc else None
        )
        self._probe = ModelProbe(self._models, self._backend, self.triton, settings.probe, settings.triton)
        await self._probe.start()
        with contextlib.suppress(RuntimeError, ValueError):  # only in the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        scorer_pb2_grpc.add_ScorerServiceServicer_to_server(self._servicer, server)

    async def ready(self) -> str | None:
        """The probe's verdict."""
        return self._probe.trouble() if self._probe is not None else "it is starting"

    async def reload(self) -> tuple[list[str], list[str]]:
        """Read the settings again and serve the models that they name; answers those that changed and went.

        Raises PreconditionFailed; then the models stay as they were.
        """
        assert self._probe is not None
        failing = RELOAD_FAILING.labels("models")
        failing.set(1)  # until it has worked
        try:
            settings = self._reread()
        except SettingsError as error:
            raise PreconditionFailed(f"the models are unchanged: {error}", reason="RELOAD_FAILED") from error
        changed, removed = await self._loader.reload(self._models, settings, self._probe.try_out)
        failing.set(0)
        logger.info("models reloaded", extra={"changed": changed, "removed": removed})
        return changed, removed

    async def stop(self) -> None:
        """Stop the probe, Triton and the threads."""
        for task in self._reloads:
            task.cancel()
        if self._probe is not None:
            await self._probe.stop()
        await self._loader.close()
        for model in self._models.served.values():
            await model.close()
        await self._backend.close()
        await self.triton.stop()
        self._fetcher.close()
        self._pool.shutdown()
        if self._store is not None:
            self._store.close()

    def _on_hangup(self) -> None:
        task: asyncio.Task[object] = asyncio.create_task(self._reload_and_log())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload_and_log(self) -> None:
        try:
            await self.reload()
        except SightlineError as error:
            logger.error("models could not be reloaded", extra={"why": error.message})
        except Exception:
            logger.exception("models could not be reloaded")
