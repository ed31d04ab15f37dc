"""Says whether the scorer can do its work, by doing it: a real inference through both towers of every model.

A process that lives and answers pings may still be poisoned (hung, or giving zeros). So the probe's embeddings must
come, be finite, and be those of the first probe after the start. Scores that worked a moment ago count as a probe.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

import numpy as np
from sightline_chassis.errors import SightlineError

from sightline_scorer.metrics import BACKEND_UP
from sightline_scorer.scoring import Scoring, ServedModel
from sightline_scorer.settings import LimitSettings, ProbeSettings
from sightline_scorer.triton.backend import Embeddings, TritonBackend, TritonServer, all_or_none
from sightline_scorer.v1 import scorer_pb2 as pb

LOG = logging.getLogger(__name__)
_TEXT = "a photo of a probe"
_TOLERANCE = 0.05  # cosine distance; half precision and another batch size stay far below it


class Probe:
    """A task that probes every few seconds and keeps the verdict."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        backend: TritonBackend,
        server: TritonServer,
        scoring: Scoring,
        settings: ProbeSettings,
        hung_after_seconds: float,
    ) -> None:
        self._models = models
        self._backend = backend
        self._server = server
        self._scoring = scoring
        self._settings = settings
        self._hung_after_seconds = hung_after_seconds
        self._first: dict[str, list[Embeddings]] = {}
        self._last_good = time.monotonic()
        self._trouble: str | None = None
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
            if time.monotonic() - self._scoring.last_success < self._settings.every_seconds:
                self._verdict(None)
                continue
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    await self._probe_all()
                self._verdict(None)
            except TimeoutError:
                self._verdict(f"a probe got no answer within {self._settings.timeout_seconds:g} s")
            except SightlineError as error:
                self._verdict(error.message)
            except Exception:
                LOG.exception("the probe itself failed")
                self._verdict("the probe itself failed; see the log")
            await self._restart_if_hung()

    async def _restart_if_hung(self) -> None:
        silent = time.monotonic() - max(self._last_good, self._scoring.last_success)
        if self._trouble is None or silent < self._hung_after_seconds:
            return
        self._last_good = time.monotonic()  # give the new one as long
        await self._server.restart(f"no inference has worked for {silent:.0f} s: {self._trouble}")

    async def _probe_all(self) -> None:
        for name, model in self._models.items():
            pixels = np.zeros((3, model.card.image_height, model.card.image_width), np.uint8)
            rows = model.tokenizer.rows([_TEXT], pb.LONG_TEXT_REJECT, LimitSettings())
            image, texts = await all_or_none(
                self._backend.embed_image(name, pixels, self._settings.timeout_seconds),
                self._backend.embed_texts(name, rows.ids, rows.lengths, self._settings.timeout_seconds),
            )
            self._compare(name, [image, texts[0]])

    def _compare(self, name: str, found: list[Embeddings]) -> None:
        first = self._first.setdefault(name, found)
        for tower, one, other in zip(("image", "text"), first, found, strict=True):
            if 1 - float(one @ other) > _TOLERANCE:
                raise SightlineError(f"the {tower} tower of {name} answers the probe otherwise than at the start")

    def _verdict(self, trouble: str | None) -> None:
        self._trouble = trouble
        BACKEND_UP.set(trouble is None)
        if trouble is None:
            self._last_good = time.monotonic()
