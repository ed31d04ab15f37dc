"""Readiness of the scorer, by real inference through the towers of every model.

A process that is alive and answers pings may still be broken (hung, or returning zeros). So the probe's answers must
arrive, be finite, and equal those of the first probe after the start. A recent successful inference counts as a probe;
an answer from the cache does not.

A failing model does not affect others: the service is ready as long as the default model is (all members of a default
ensemble), `sightline_scorer_model_up` says which models are not, and a tower whose process died and did not come back
is reloaded alone. A Triton that is down or hangs affects all models. Models behind a sampler have the sampler's health,
and are not probed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import numpy as np
from sightline.errors import InternalError, NotFound, SightlineError

from sightline_scorer import metrics
from sightline_scorer.joint import JointModel
from sightline_scorer.models import AnyModel, ModelRegistry, ServedModel
from sightline_scorer.settings import ProbeSettings, TritonSettings
from sightline_scorer.triton.backend import TOWER_DIED, Embeddings, TritonBackend
from sightline_scorer.triton.servers import TritonServer

logger = logging.getLogger(__name__)
_TEXT = "a photo of a probe"
_TOLERANCE = 0.05  # cosine distance, or relative difference; half precision and other batch sizes stay far below it


class ModelProbe:
    """A task that probes every few seconds and stores the verdict."""

    def __init__(
        self,
        models: ModelRegistry,
        backend: TritonBackend,
        server: TritonServer,
        settings: ProbeSettings,
        triton: TritonSettings,
    ) -> None:
        self._models = models
        self._backend = backend
        self._server = server
        self._settings = settings
        self._hung_after_seconds = triton.hung_after_seconds
        self._load_seconds = triton.start_timeout_seconds
        self._up = metrics.backend_up(triton)
        self._first: dict[str, Embeddings] = {}
        self._last_good = time.monotonic()
        self._troubles: dict[str, str] = {}
        """For each model, why it cannot answer."""
        self._deaths: dict[str, int] = {}
        """For each tower, how often in a row it was found dead."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Probe once, then continue in the background. Raises a SightlineError if the first probe fails."""
        for model in list(self._models.served.values()):
            await self.try_out(model)
        self._tell()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def trouble(self) -> str | None:
        """None if the default model can score, otherwise why not."""
        if (down := self._down()) is not None:
            return down
        try:
            needed = self._models.members(self._models.find(""))
        except NotFound:
            return "it has no models"
        return next((self._troubles[model.name] for model in needed if model.name in self._troubles), None)

    def _down(self) -> str | None:
        try:
            self._server.address()
        except SightlineError as error:
            return error.message
        return None

    async def _run(self) -> None:
        while True:
            # While something is wrong, probe often, so that recovery shows at once.
            wrong = self._troubles or self._down() is not None
            await asyncio.sleep(min(1.0, self._settings.every_seconds) if wrong else self._settings.every_seconds)
            if self._down() is not None:
                self._last_good = time.monotonic()  # it is being restarted: nothing to probe, and nothing hangs
                continue
            if time.monotonic() - self._last_success() < self._settings.every_seconds:
                self._troubles.clear()
            elif self._troubles or not self._at_work():
                await asyncio.gather(*(self._probe(model) for model in list(self._models.served.values())))
            else:
                continue
            self._tell()
            await self._mend()

    async def _probe(self, model: AnyModel) -> None:
        """Probe each tower without a recent success; all of them while something is wrong."""
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                with model.used():
                    for name in model.triton_names:
                        idle = time.monotonic() - self._backend.all_worked_since([name])
                        if model.name in self._troubles or idle >= self._settings.every_seconds:
                            await self._try_tower(model, name)
                        self._deaths.pop(name, None)
        except TimeoutError:
            self._troubles[model.name] = f"a probe got no answer within {self._settings.timeout_seconds:g} s"
        except SightlineError as error:
            self._troubles[model.name] = error.message
            if error.reason == TOWER_DIED:
                self._deaths[name] = self._deaths.get(name, 0) + 1
        except Exception:
            logger.exception("the probe itself failed")
            self._troubles[model.name] = "the probe itself failed; see the log"
        else:
            self._troubles.pop(model.name, None)

    def _at_work(self) -> bool:
        """Whether each tower worked just now, or recently and has a batch, behind which a probe would queue.

        Only for as long as a probe may take, since callers that come and leave must not hide a hanging Triton.
        """
        now = time.monotonic()
        for model in self._models.served.values():
            for tower, name in zip(model.towers, model.triton_names, strict=False):
                busy = tower.busy_since is not None
                patience = self._settings.timeout_seconds if busy else self._settings.every_seconds
                if now - self._backend.all_worked_since([name]) > patience:
                    return False
        return True

    def _last_success(self) -> float:
        """The time since which every tower has worked, so that a hanging one cannot hide behind the others."""
        names = [name for model in self._models.served.values() for name in model.triton_names]
        return self._backend.all_worked_since(names)

    async def _mend(self) -> None:
        """Reload a tower that is dead at a second check (Triton usually restarts its process itself, but not always);
        restart Triton if nothing has worked for long."""
        for name in [name for name, times in self._deaths.items() if times >= 2]:
            del self._deaths[name]
            logger.error("a tower died and is being loaded again", extra={"tower": name})
            try:
                async with asyncio.timeout(self._load_seconds):
                    with contextlib.suppress(ValueError):  # a dead tower may fail to unload properly
                        await self._backend.unload(name)
                    await self._backend.load(name)
            except (ValueError, TimeoutError, SightlineError) as error:
                await self._restart(f"{name} is dead and cannot be loaded again: {error}")
                return
        silent = time.monotonic() - max(self._last_good, self._last_success())
        if self._troubles and silent >= self._hung_after_seconds:
            why = next(iter(self._troubles.values()))
            await self._restart(f"an inference has not worked for {silent:.0f} s: {why}")

    async def _restart(self, why: str) -> None:
        self._last_good = time.monotonic()  # give the new one the same time
        self._deaths.clear()
        await self._server.restart(why)

    async def try_out(self, model: AnyModel) -> None:
        """Real inference through a model's towers. Raises a SightlineError if the result is wrong."""
        for name in model.triton_names:
            await self._try_tower(model, name)
        if isinstance(model, JointModel) and not model.triton_names:
            await model.probe()

    async def _try_tower(self, model: AnyModel, name: str) -> None:
        found = await (self._marked(model) if isinstance(model, JointModel) else self._embedded(model, name))
        first = self._first.setdefault(name, found)
        # Cosine distance for embeddings, relative difference for numbers.
        far = abs(first - found).max() / max(1.0, abs(first).max()) if len(found) == 1 else 1 - float(first @ found)
        if far > _TOLERANCE:
            raise SightlineError(f"{name} of {model.name} answers the probe differently than at the start")

    async def _marked(self, model: JointModel) -> Embeddings:
        mark = await model.probe()
        if not np.isfinite(mark):
            metrics.NONFINITE.inc()
            raise InternalError(f"{model.name} gave a number that is not finite", reason="NONFINITE_SCORE")
        return np.array([mark], np.float32)

    async def _embedded(self, model: ServedModel, name: str) -> Embeddings:
        image_name, _ = model.triton_names
        if name == image_name:
            tower, pixels = "image", np.zeros((3, model.card.image_height, model.card.image_width), np.uint8)
            found: Embeddings = (await self._backend.embed_images(name, [pixels]))[0]
        else:
            tower, (row,) = "text", model.tokenizer.encode([_TEXT], [0])
            found = (await self._backend.embed_texts(name, [row.ids]))[0]
        if not abs(float(found @ found) - 1) < _TOLERANCE:
            metrics.NONFINITE.inc()
            raise InternalError(
                f"the {tower} tower of {model.name} gave an embedding that is not finite or not of length 1",
                reason="NONFINITE_EMBEDDING",
            )
        return found

    def _tell(self) -> None:
        """Report which models answer, in metrics and in ListModels."""
        self._troubles = {name: why for name, why in self._troubles.items() if name in self._models.served}
        for name, model in self._models.served.items():
            metrics.MODEL_UP.labels(name).set(name not in self._troubles)
            model.info.error = self._troubles.get(name, "")
        self._up.set(self.trouble() is None)
        if not self._troubles:
            self._last_good = time.monotonic()
