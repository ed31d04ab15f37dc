"""Says whether the scorer can do its work, by doing it: a real inference through both towers of every model.

A process that lives and answers pings may still be poisoned (hung, or giving zeros). So the probe's embeddings must
come, be finite, and be those of the first probe after the start. An inference that worked a moment ago counts as a
probe; an answer from the cache does not.
"""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
from sightline.errors import InternalError, SightlineError

from sightline_scorer.metrics import NONFINITE, backend_up
from sightline_scorer.models import ModelRegistry, ServedModel
from sightline_scorer.settings import ProbeSettings, TritonSettings
from sightline_scorer.triton.backend import TOWER_DIED, Embeddings, TritonBackend
from sightline_scorer.triton.servers import TritonServer

logger = logging.getLogger(__name__)
_TEXT = "a photo of a probe"
_TOLERANCE = 0.05  # cosine distance; half precision and another batch size stay far below it


class ModelProbe:
    """A task that probes every few seconds and keeps the verdict."""

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
        self._up = backend_up(triton)
        self._first: dict[str, Embeddings] = {}
        self._last_good = time.monotonic()
        self._trouble: str | None = None
        self._dead_towers = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Probe once, then go on in the background. Raises a SightlineError where the first probe fails."""
        await self._probe_all()
        self._verdict(None)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def trouble(self) -> str | None:
        """None when scores can be had, else why not."""
        return self._down() or self._trouble

    def _down(self) -> str | None:
        try:
            self._server.address()
        except SightlineError as error:
            return error.message
        return None

    async def _run(self) -> None:
        while True:
            # While something is wrong, look often: recovery should show at once.
            await asyncio.sleep(
                min(1.0, self._settings.every_seconds) if self.trouble() else self._settings.every_seconds
            )
            if self._down() is not None:
                self._last_good = time.monotonic()  # it is being started again: nothing to probe, nothing that hangs
                continue
            if time.monotonic() - self._last_success() < self._settings.every_seconds:
                self._verdict(None)
                continue
            if self._trouble is None and self._at_work():
                continue
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    await self._probe_all()
                self._verdict(None)
            except TimeoutError:
                self._verdict(f"a probe got no answer within {self._settings.timeout_seconds:g} s")
            except SightlineError as error:
                self._verdict(error.message)
                self._dead_towers += error.reason == TOWER_DIED
            except Exception:
                logger.exception("the probe itself failed")
                self._verdict("the probe itself failed; see the log")
            await self._restart_if_hung()

    def _at_work(self) -> bool:
        """Whether each tower has worked just now, or a little while ago and has a batch: a probe would queue behind it.

        Only for as long as a probe may take: a Triton that hangs must not hide behind callers who come and leave.
        """
        now = time.monotonic()
        for model in self._models.served.values():
            for tower, name in zip((model.image, model.text), model.triton_names, strict=True):
                busy = tower.busy_since is not None
                patience = self._settings.timeout_seconds if busy else self._settings.every_seconds
                if now - self._backend.all_worked_since([name]) > patience:
                    return False
        return True

    def _last_success(self) -> float:
        """Since when every tower has worked: one that hangs must not hide behind the others."""
        names = [name for model in self._models.served.values() for name in model.triton_names]
        return self._backend.all_worked_since(names)

    async def _restart_if_hung(self) -> None:
        silent = time.monotonic() - max(self._last_good, self._last_success())
        # Triton may start a tower's process again by itself, but does not always: a second look decides.
        hung = silent >= self._hung_after_seconds or self._dead_towers >= 2
        if self._trouble is None or not hung:
            return
        self._last_good = time.monotonic()  # give the new one as long
        self._dead_towers = 0
        await self._server.restart(f"no inference has worked for {silent:.0f} s: {self._trouble}")

    async def try_out(self, model: ServedModel) -> None:
        """A real inference through both towers of a model. Raises a SightlineError where it is not as it should be."""
        for name in model.triton_names:
            await self._try_tower(model, name)

    async def _try_tower(self, model: ServedModel, name: str) -> None:
        image_name, _ = model.triton_names
        if name == image_name:
            tower, pixels = "image", np.zeros((3, model.card.image_height, model.card.image_width), np.uint8)
            found = (await self._backend.embed_images(name, [pixels]))[0]
        else:
            tower, (row,) = "text", model.tokenizer.encode([_TEXT], [0])
            found = (await self._backend.embed_texts(name, [row.ids]))[0]
        if not abs(float(found @ found) - 1) < _TOLERANCE:
            NONFINITE.inc()
            raise InternalError(
                f"the {tower} tower of {model.name} gave an embedding that is not finite or not of length 1",
                reason="NONFINITE_EMBEDDING",
            )
        if 1 - float(self._first.setdefault(name, found) @ found) > _TOLERANCE:
            raise SightlineError(f"the {tower} tower of {model.name} answers the probe otherwise than at the start")

    async def _probe_all(self) -> None:
        """Ask each tower that has not just worked; each of them, while something is wrong."""
        for model in list(self._models.served.values()):
            with model.used():
                for name in model.triton_names:
                    idle = time.monotonic() - self._backend.all_worked_since([name])
                    if self._trouble is not None or idle >= self._settings.every_seconds:
                        await self._try_tower(model, name)

    def _verdict(self, trouble: str | None) -> None:
        self._trouble = trouble
        self._up.set(trouble is None)
        if trouble is None:
            self._last_good = time.monotonic()
            self._dead_towers = 0
