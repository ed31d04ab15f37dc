"""One tower of one model, shared by many requests: returns known embeddings, does equal work once, batches the rest.

    request ──keys──> table (seen before?) ──> items (in progress?) ──> queue ──batch──> Triton

- An item is one unknown image or text, named by the SHA-256 of its bytes. Requests for the same one wait for the same
  item; it is dropped only when the last of them has left. So a cancelled request does not affect others and leaves
  nothing behind, neither in the queue here nor in Triton's.
- Triton gets only as many batches at a time as it can process. Items that arrive meanwhile wait here and share the next
  batch. A batch is the oldest item and those nearest to it in length.
- A call to Triton costs as much as a small tower does. So a batch that is not full waits a few milliseconds, but only
  while images of other requests are being decoded, whose embeddings and texts will share it; twice as long if these are
  enough to fill it.
- A failed batch fails its items; an embedding that is not finite or not of length 1 fails its own item alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from sightline.errors import DeadlineExceeded, InternalError, Overloaded, SightlineError, Unavailable
from sightline_chassis import traces

from sightline_scorer import metrics
from sightline_scorer.cache import EmbeddingTable

logger = logging.getLogger(__name__)
Embeddings = npt.NDArray[np.float32]
Run = Callable[[list[Any]], Awaitable[Embeddings]]
_WINDOW = 8  # the oldest items, in batches, among which similar lengths are searched


class TowerItem:
    """One image or text on its way to its embedding."""

    __slots__ = ("batch", "drop", "key", "length", "note", "payload", "ready_at", "trace", "waits")

    def __init__(self, key: bytes, note: int) -> None:
        self.key = key
        self.note = note
        self.payload: Any = None
        self.length = 1
        self.ready_at = 0.0
        """time.monotonic() when Triton's input was ready."""
        self.drop: Callable[[], object] | None = None
        """Cancels the preparation of its input."""
        self.waits: list[tuple[Wait, int]] = []
        self.batch: Batch | None = None
        self.trace = traces.here()
        """The span of the first request."""


class Wait:
    """One request's embeddings from one tower, filled as they arrive: rows [K, D] and notes [K]."""

    __slots__ = ("_future", "_left", "done_at", "items", "known", "notes", "ready_at", "rows")

    def __init__(self, count: int, size: int) -> None:
        self.rows: Embeddings = np.empty((count, size), np.float32)
        self.notes = np.zeros(count, np.int32)
        self.known = 0
        """How many of them were cached."""
        self.ready_at = 0.0
        """time.monotonic() when the last of Triton's inputs was ready; 0 if all were cached."""
        self.done_at = 0.0
        """time.monotonic() when the last embedding arrived; 0 if all were cached."""
        self.items: list[TowerItem] = []
        self._left = 0
        self._future: asyncio.Future[None] | None = None

    def expect(self, item: TowerItem, position: int) -> None:
        """Wait for an item too; it gives the row at `position`."""
        if not item.waits and item.batch is not None:
            item.batch.live += 1  # no request had been waiting for it
        item.waits.append((self, position))
        self.items.append(item)
        self._left += 1

    def fill(self, position: int, row: Embeddings, item: TowerItem) -> None:
        """An item's embedding has arrived."""
        self.rows[position] = row
        self.notes[position] = item.note
        self.ready_at = max(self.ready_at, item.ready_at)
        self._left -= 1
        if self._left == 0:
            self.done_at = time.monotonic()
            if self._future is not None and not self._future.done():
                self._future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """An item has failed, and so the whole request."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        if not self._future.done():
            self._future.set_exception(error)
            self._future.exception()  # the request may have left: mark the error as seen

    async def done(self, seconds: float | None) -> None:
        """Return when all are ready. Raises an item's error, or DeadlineExceeded after this many seconds."""
        if self._left == 0 and self._future is None:
            return
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        timer = None if seconds is None else loop.call_later(max(0.0, seconds), self._run_out, seconds)
        try:
            await self._future
        finally:
            if timer is not None:
                timer.cancel()

    def _run_out(self, seconds: float) -> None:
        why = f"the embeddings were not ready within {seconds:.3g} s: allow more time, or send less at once"
        self.fail(DeadlineExceeded(why, reason="BACKEND_TIMEOUT"))


class Batch:
    """Items that Triton processes together."""

    __slots__ = ("began", "items", "live", "task")

    def __init__(self, items: list[TowerItem]) -> None:
        self.began = time.monotonic()
        self.items = items
        self.live = len(items)
        self.task: asyncio.Task[None] | None = None


class Tower:
    """See the module. Use it from one event loop.

    Args:
        table: the cached embeddings.
        run: embeddings [B, D] of a batch's payloads; raises a SightlineError.
        label: model and tower, for metrics.
        batch: maximum items in a batch.
        tokens: maximum tokens in a batch (longest item times items); 0: no limit.
        in_flight: maximum batches in Triton at a time.
        max_waiting: maximum waiting items.
        unit: whether its rows have length 1; otherwise they are numbers that only need to be finite.
        gather: seconds that a batch which is not full waits for items that are on their way.
        beside: the tower of images, for one of texts: while it waits for images of other requests, texts gather.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        run: Run,
        label: tuple[str, str],
        *,
        batch: int,
        tokens: int,
        in_flight: int,
        max_waiting: int,
        unit: bool = True,
        gather: float = 0.0,
        beside: Tower | None = None,
    ) -> None:
        self.table = table
        self._run = run
        self._label = label
        self._batch = batch
        self._tokens = tokens
        self._in_flight = in_flight
        self._max_waiting = max_waiting
        self._unit = unit
        self._gather = gather
        self._beside = beside
        self._followers: list[Tower] = []
        if beside is not None:
            beside._followers.append(self)
        self._items: dict[bytes, TowerItem] = {}
        self._making: set[TowerItem] = set()
        self._queue: dict[bytes, TowerItem] = {}
        self._running: set[Batch] = set()
        self._pump_is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._lookups = {what: metrics.CACHE.labels(*label, what) for what in ("hit", "miss", "coalesced")}
        metrics.count(metrics.QUEUE, label, self, lambda tower: len(tower._queue))
        self._sizes = metrics.BATCH.labels(label[1])

    @property
    def busy_since(self) -> float | None:
        """time.monotonic() when Triton got its oldest current batch; None if it has none."""
        return min((batch.began for batch in self._running), default=None)

    def unknown(self, keys: Sequence[bytes]) -> list[int]:
        """Positions of the keys that are neither cached nor in progress."""
        return [position for position, key in enumerate(keys) if key not in self.table and key not in self._items]

    def ask(self, keys: Sequence[bytes]) -> tuple[Wait, list[int]]:
        """Start to wait for the embeddings of `keys`; returns the positions that are neither cached nor in progress.

        For each of those call `begin` and then `ready` or `fail`. Raises Overloaded if too many items wait already.
        """
        wait = Wait(len(keys), self.table.size)
        missing = self.table.lookup(keys, wait.rows, wait.notes)
        wait.known = len(keys) - len(missing)
        self._lookups["hit"].inc(wait.known)
        new: list[int] = []
        for position in missing:
            item = self._items.get(keys[position])
            if item is None:
                new.append(position)
            else:
                wait.expect(item, position)
        if new and len(self._items) >= self._max_waiting:
            self.leave(wait)
            raise Overloaded(
                f"{len(self._items)} {self._label[1]}s are waiting for model {self._label[0]!r} already; try again",
                reason="BACKEND_QUEUE_FULL",
                retry_after=1,
            )
        if missing:
            misses = len({keys[position] for position in new})
            self._lookups["miss"].inc(misses)
            self._lookups["coalesced"].inc(len(missing) - misses)
        return wait, new

    def begin(self, wait: Wait, position: int, key: bytes, note: int = 0) -> TowerItem | None:
        """The item of a key that is not being computed; None if the request itself named it twice."""
        item = self._items.get(key)
        if item is not None:
            wait.expect(item, position)
            return None
        item = self._items[key] = TowerItem(key, note)
        self._making.add(item)
        wait.expect(item, position)
        return item

    def ready(self, item: TowerItem, payload: Any, length: int = 1) -> None:
        """An item's input is ready: queue it, unless all its requests have left."""
        if self._items.get(item.key) is not item:
            return
        item.payload, item.length, item.ready_at = payload, length, time.monotonic()
        item.drop = None
        self._made(item)
        self._queue[item.key] = item
        self._pump_soon()

    def fail(self, item: TowerItem, error: BaseException) -> None:
        """The item has failed."""
        if self._items.get(item.key) is item:
            del self._items[item.key]
            self._made(item)
        for wait, _ in item.waits:
            wait.fail(error)
        item.waits.clear()

    def leave(self, wait: Wait) -> None:
        """The request no longer waits. Items without a waiting request are dropped, batches of only these cancelled."""
        for item in wait.items:
            if not item.waits:
                continue
            item.waits = [entry for entry in item.waits if entry[0] is not wait]
            if item.waits or self._items.get(item.key) is not item:
                continue
            if item.batch is None:
                del self._items[item.key]
                self._queue.pop(item.key, None)
                self._made(item)
                if item.drop is not None:
                    item.drop()
            else:
                item.batch.live -= 1
                if item.batch.live == 0:
                    self._cancel(item.batch)
        wait.items.clear()

    async def close(self) -> None:
        """Cancel the calls to Triton; waiting requests get an error."""
        for item in list(self._items.values()):
            error = Unavailable("this version of the model was unloaded; try again", reason="MODEL_GONE", retry_after=1)
            self.fail(item, error)
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
        tasks = [batch.task for batch in self._running if batch.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.table.clear()

    def _cancel(self, batch: Batch) -> None:
        for item in batch.items:
            if self._items.get(item.key) is item:
                del self._items[item.key]
        if batch.task is not None:
            batch.task.cancel()

    def _pump_soon(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _made(self, item: TowerItem) -> None:
        """An item is no longer being prepared: waiting batches check again."""
        if item in self._making:
            self._making.remove(item)
            for tower in (self, *self._followers):
                if tower._queue:
                    tower._pump_soon()

    def _gathering(self) -> float:
        """Seconds that the next batch should wait for further items."""
        if not self._gather or len(self._queue) >= self._batch:
            return 0.0
        # Of the images that are being made, one may be the image of these texts: it alone is not worth a wait.
        images = self._beside or self
        coming = len(images._making) - (images is not self)
        oldest = next(iter(self._queue.values()))
        if coming <= 0 or (self._tokens and len(self._queue) * oldest.length >= self._tokens):
            return 0.0
        # Enough images for a whole batch are on their way: a longer wait pays, since it ends when the batch is full.
        fills = len(images._queue) + coming >= images._batch
        return oldest.ready_at + self._gather * (2 if fills else 1) - time.monotonic()

    def _on_time(self) -> None:
        self._timer = None
        self._pump()

    def _pump(self) -> None:
        self._pump_is_due = False
        while self._queue and len(self._running) < self._in_flight:
            if (seconds := self._gathering()) > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(seconds, self._on_time)
                break
            batch = Batch(self._take())
            for item in batch.items:
                del self._queue[item.key]
                item.batch = batch
            self._running.add(batch)
            batch.task = asyncio.create_task(self._work(batch))
            # Not at the end of _work: a task that is cancelled before its first step runs none of its code.
            batch.task.add_done_callback(partial(self._ended, batch))

    def _take(self) -> list[TowerItem]:
        """The oldest item and others of similar length, within the bounds of a batch."""
        window = list(islice(self._queue.values(), _WINDOW * self._batch))
        if len(window) <= self._batch and not self._tokens:
            return window
        oldest = window[0]
        window.sort(key=lambda item: item.length)
        low = window.index(oldest)
        high = low + 1  # the batch is window[low:high]
        while high - low < min(self._batch, len(window)):
            shorter = low > 0 and window[high - 1].length - window[low - 1].length
            longer = high < len(window) and window[high].length - window[high - 1].length
            down = shorter is not False and (longer is False or shorter <= longer)
            longest = window[high - 1].length if down else window[high].length
            if self._tokens and (high - low + 1) * longest > self._tokens:
                if down or low == 0:
                    break
                down, longest = True, window[high - 1].length
                if (high - low + 1) * longest > self._tokens:
                    break
            if down:
                low -= 1
            else:
                high += 1
        return window[low:high]

    async def _work(self, batch: Batch) -> None:
        self._sizes.observe(len(batch.items))
        try:
            asked = (item.trace for item in batch.items)
            with traces.joined(f"triton {'/'.join(self._label)}", asked, items=len(batch.items)):
                rows = await self._run([item.payload for item in batch.items])
            self._finish(batch, rows)
        except SightlineError as error:
            for item in batch.items:
                self.fail(item, error)
        except Exception as error:
            logger.exception("a batch failed")
            for item in batch.items:
                self.fail(item, InternalError(f"a batch failed: {type(error).__name__}", reason="BACKEND_FAILED"))

    def _ended(self, batch: Batch, task: asyncio.Task[None]) -> None:
        self._running.discard(batch)
        if task.cancelled():
            for item in batch.items:  # no request waits for these, or the model is released
                self.fail(item, InternalError("the work was cancelled", reason="CANCELLED_BATCH"))
        self._pump_soon()

    def _finish(self, batch: Batch, rows: Embeddings) -> None:
        # This also catches NaN and Inf.
        good: Any = np.isfinite(rows).all(axis=1)
        if self._unit:
            good = np.abs(np.einsum("nd,nd->n", rows, rows) - 1) < 0.02
        for item, row, right in zip(batch.items, rows, good.tolist(), strict=True):
            if not right:
                metrics.NONFINITE.inc()
                self.fail(
                    item,
                    InternalError(
                        f"model {self._label[0]!r} gave an embedding that is not finite or not of length 1, so "
                        "there is no score"
                        if self._unit
                        else f"model {self._label[0]!r} gave a number that is not finite, so there is no score",
                        reason="NONFINITE_EMBEDDING" if self._unit else "NONFINITE_SCORE",
                        metadata={"model": self._label[0], "tower": self._label[1]},
                    ),
                )
                continue
            self.table.put(item.key, row, item.note)
            if self._items.get(item.key) is item:
                del self._items[item.key]
            for wait, position in item.waits:
                wait.fill(position, row, item)
            item.waits.clear()
