"""Turns images and texts into embeddings: looks up cached ones, and does equal work once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sightline.errors import DeadlineExceeded, InternalError, InvalidInput, SightlineError
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_chassis.gate import calling_team
from sightline_chassis.image_store import ImageStore, check_digest

from sightline_scorer import metrics
from sightline_scorer.fair_pool import FairPool
from sightline_scorer.fetch import Fetcher
from sightline_scorer.joint import JointModel
from sightline_scorer.models import ServedModel
from sightline_scorer.small_images import MOST_BYTES, small_size
from sightline_scorer.texts import Plan, Steps, Unknown, advance
from sightline_scorer.tokens import TokenRow
from sightline_scorer.tower import TowerItem, Wait

T = TypeVar("T")

# Work that is certainly shorter than a switch to a thread and back is done directly.
_INLINE_RESIZED_PIXELS = 1 << 18
_INLINE_HASH_BYTES = 256 * 1024
_SLICE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image of a request: its name, and a function that gives its bytes (and may read a disk)."""

    sha256: bytes
    size: int | None
    """The bytes; None if they are in the store."""
    read: Callable[[], bytes]


class Embedder:
    """Starts waits for embeddings.

    Args:
        store: uploaded images.
        fetcher: images named by URI.
        pool: threads that decode and tokenise; tasks of the event loop take turns in it.
        shared: whether teams share each other's embeddings.
    """

    def __init__(self, store: ImageStore, fetcher: Fetcher, pool: FairPool, *, shared: bool = False) -> None:
        self._shared = shared
        self._store = store
        self._fetcher = fetcher
        self._pool = pool

    async def source(self, image: pb.Image, deadline: float | None) -> ImageSource:
        """Where an image's bytes are. Raises a SightlineError if they are not available."""
        kind = image.WhichOneof("source")
        if kind is None:
            raise InvalidInput("the request has no image: set image.content or image.sha256", reason="IMAGE_MISSING")
        if kind == "sha256":
            check_digest(image.sha256)
            return ImageSource(image.sha256, None, partial(_from_store, self._store, image.sha256, calling_team()))
        content = image.content if kind == "content" else await self._fetcher.fetch(image.uri, left(deadline))
        if len(content) > _INLINE_HASH_BYTES:
            digest = await self.in_pool(lambda: hashlib.sha256(content).digest())
        else:
            digest = hashlib.sha256(content).digest()
        return ImageSource(digest, len(content), lambda: content)

    def ask_image(self, model: ServedModel, source: ImageSource) -> Wait:
        """Start to wait for an image's embedding, row 0 of the wait. Raises a SightlineError."""
        tower = model.image
        key = self._scope() + source.sha256
        wait, new = tower.ask([key])
        if not new:
            return wait
        item = tower.begin(wait, 0, key)
        assert item is not None
        try:
            if source.size is None:
                source = ImageSource(source.sha256, None, self._store.get(source.sha256, calling_team()))
            elif source.size <= MOST_BYTES:
                content = source.read()
                size = small_size(content)
                if size is not None and model.preprocess.resized(size) <= _INLINE_RESIZED_PIXELS:
                    tower.ready(item, model.preprocess(content))
                    return wait
            self._decode_in_pool(model, item, source)
        except SightlineError as error:
            _count_failure(error)
            tower.fail(item, error)
            return wait
        except BaseException:
            tower.leave(
                wait
            )  # otherwise later requests for this image would wait for an item that is not being computed
            raise
        return wait

    def _decode_in_pool(self, model: ServedModel, item: TowerItem, source: ImageSource) -> None:
        def pixels() -> npt.NDArray[np.uint8]:
            return model.preprocess(source.read())

        def decoded(future: asyncio.Future[npt.NDArray[np.uint8]]) -> None:
            if future.cancelled():
                model.image.fail(item, InternalError("the decoding was cancelled", reason="CANCELLED_BATCH"))
                return
            error = future.exception()
            if error is None:
                model.image.ready(item, future.result())
                return
            if not isinstance(error, SightlineError):
                error = InternalError(f"a bug in decoding: {error!r}", reason="IMAGE_DECODER_FAILED")
            _count_failure(error)
            model.image.fail(item, error)

        work = self._in_turn(pixels)
        item.drop = work.cancel  # no caller is left: if it has not started, it never will
        work.add_done_callback(decoded)

    def unknown_texts(self, model: ServedModel) -> Unknown:
        """Tells a plan which texts the team's calls neither had embedded before nor are requesting now."""
        scope, unknown = self._scope(), model.text.unknown
        return (lambda keys: unknown([scope + key for key in keys])) if scope else unknown

    def ask_texts(self, model: ServedModel, plan: Plan) -> Wait:
        """Start to wait for the embeddings of a plan's rows, in order. Raises a SightlineError."""
        tower, scope = model.text, self._scope()
        keys = [scope + key for key in plan.keys] if scope else plan.keys
        wait, new = tower.ask(keys)
        try:
            for position in new:
                row = plan.tokens.get(position)
                if row is None:  # known when the plan was made, but dropped since: rare, and one row
                    (row,) = model.tokenizer.encode([plan.rows[position]], [0])
                item = tower.begin(wait, position, keys[position], row.length)
                if item is not None:
                    # The length that the tower processes: the whole window if padding is read too.
                    tower.ready(item, row.ids, row.length if model.card.trim_padding else len(row.ids))
        except BaseException:
            tower.leave(wait)
            raise
        return wait

    def unknown_pairs(self, model: JointModel, source: ImageSource) -> Unknown:
        """Tells a plan which texts the team's calls have not scored with this image."""
        before, unknown = self._scope() + source.sha256, model.tower.unknown
        return lambda keys: unknown([before + key for key in keys])

    def ask_pairs(self, model: JointModel, source: ImageSource, plan: Plan) -> Wait:
        """Start to wait for the numbers of an image with a plan's rows, in order. Raises a SightlineError."""
        tower, before = model.tower, self._scope() + source.sha256
        keys = [before + key for key in plan.keys]
        wait, new = tower.ask(keys)
        try:
            items = []
            for position in new:
                text, row = plan.rows[position], plan.tokens.get(position)
                if row is None:  # known when the plan was made, but dropped since
                    (row,) = model.texts.encode([text], [0])
                item = tower.begin(wait, position, keys[position], row.length)
                if item is not None:
                    items.append((item, row, text))
            if items:
                self._show_in_pool(model, source, items)
        except BaseException:
            tower.leave(wait)
            raise
        return wait

    def _show_in_pool(
        self, model: JointModel, source: ImageSource, items: Sequence[tuple[TowerItem, TokenRow, str]]
    ) -> None:
        """Make the model's input from the image, once for all its texts."""

        def made(future: asyncio.Future[Any]) -> None:
            error: BaseException | None = (
                InternalError("the decoding was cancelled", reason="CANCELLED_BATCH")
                if future.cancelled()
                else future.exception()
            )
            if error is not None and not isinstance(error, SightlineError):
                error = InternalError(f"a bug in decoding: {error!r}", reason="IMAGE_DECODER_FAILED")
            if isinstance(error, SightlineError):
                _count_failure(error)
            for item, row, text in items:
                if error is not None:
                    model.tower.fail(item, error)
                else:
                    model.tower.ready(item, model.payload(future.result(), row, text), max(1, row.length))

        self._in_turn(lambda: model.picture(source.read())).add_done_callback(made)

    def _scope(self) -> bytes:
        """What keys of the calling team begin with."""
        team = "" if self._shared else calling_team()
        return team.encode() + b"/" if team else b""

    async def in_pool(self, work: Callable[[], T]) -> T:
        """Do something long in a thread."""
        return await self._in_turn(work)

    async def planned(self, steps: Steps, deadline: float | None) -> Plan:
        """Tokenise in a thread, a little at a time: the turns of others come between, and nobody works on for a caller
        that has left.

        Raises:
            DeadlineExceeded: the deadline passed between two texts.
        """
        while True:
            check_time(deadline)
            if (plan := await self.in_pool(partial(advance, steps, _SLICE_SECONDS))) is not None:
                return plan

    def _in_turn(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.wrap_future(self._pool.submit(asyncio.current_task(), work))


def check_time(deadline: float | None) -> None:
    """Raises DeadlineExceeded if no caller waits any more."""
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceeded(
            "the deadline passed while the request waited for the model: allow more time, or send fewer at once"
        )


def left(deadline: float | None) -> float | None:
    """Seconds until a time.monotonic()."""
    return None if deadline is None else deadline - time.monotonic()


def _from_store(store: ImageStore, sha256: bytes, team: str) -> bytes:
    return store.get(sha256, team)()


def _count_failure(error: SightlineError) -> None:
    if isinstance(error, InvalidInput):
        metrics.DECODE_FAILURES.labels(error.reason).inc()
