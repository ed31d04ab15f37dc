"""The decoding thread: takes waiting prompts, runs them, steps all rows, returns finished candidates.

One thread owns the model, so that the event loop stays free for gRPC (PyTorch releases the interpreter lock while it
computes). Between two steps it admits waiting prompts (continuous batching), drops rows of cancelled requests, and runs
other work on the model (`call`): a policy is installed between two steps of other policies. Rows of different policies
are in different lanes, which take turns, so every candidate comes from a single version.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from sightline.errors import DeadlineExceeded, InternalError, SightlineError, Unavailable
from sightline.sampler.types import Candidate

from sightline_sampler.engines.local.beams import BeamSearch
from sightline_sampler.engines.local.fair_queue import FairQueue
from sightline_sampler.engines.local.kv import shares
from sightline_sampler.engines.local.lane import Lane
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prefill import Prefiller, Prefix
from sightline_sampler.engines.local.rows import Request
from sightline_sampler.engines.local.weights import Weights

logger = logging.getLogger(__name__)

T = TypeVar("T")
Event = tuple[Request, Candidate | BaseException]

_PREFILL_TOKENS = 1 << 14  # tokens of one forward pass; bounds the memory of attention
_SWEEP_SECONDS = 0.05
_PATIENCE_STEPS = 3


@dataclasses.dataclass(slots=True, eq=False)
class _Run:
    """A prompt that has been run: row `row` of `prefix`; `reference` holds only the reference prompt."""

    request: Request
    prefix: Prefix
    row: int
    reference: Prefix | None = None
    owned: bool = False

    def alone(self) -> _Run:
        """A copy without its neighbours, so that waiting does not keep them in memory."""
        return self if self.owned else _Run(self.request, self.prefix.only(self.row), 0, self.reference, owned=True)

    def prompts(self) -> list[tuple[Prefix, int]]:
        """The start of a beam search."""
        return [(self.prefix, self.row)] + ([] if self.reference is None else [(self.reference, 0)])


class DecodeLoop:
    """Runs requests on the model. All public methods are thread-safe.

    Args:
        base: the base model.
        weights: its policies.
        prefiller: runs prompts.
        events: the event loop on which `Request.events` are filled.
        max_rows: maximum candidates decoded at the same time, over all lanes.
        cache_bytes: approximate maximum memory of keys and values.
        on_step: called with the number of rows of each step.
    """

    def __init__(
        self,
        base: BaseModel,
        weights: Weights,
        prefiller: Prefiller,
        *,
        events: asyncio.AbstractEventLoop,
        max_rows: int,
        cache_bytes: int,
        on_step: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._base, self._weights, self._prefiller = base, weights, prefiller
        self._events, self._on_step = events, on_step
        self._max_rows, self._cache_bytes = max_rows, cache_bytes
        self._condition = threading.Condition()
        self._waiting = FairQueue()
        self._calls: deque[tuple[Callable[[], Any], concurrent.futures.Future[Any]]] = deque()
        self._waited = 0  # turns since prompts could have been admitted
        self._sweep = False
        self._swept = 0.0
        self._stopping = self._frozen = False
        self._failure: BaseException | None = None
        self._lanes: dict[tuple[int, ...], Lane | BeamSearch] = {}
        self._half: deque[_Run] = deque()  # prompts that have run, with candidates still to admit
        self._searches = 0
        self._used = False  # whether memory was used since it was last released
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End all running work with Unavailable, and stop the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def failure(self) -> BaseException | None:
        """Why the thread died, if it did."""
        return self._failure

    def rows(self) -> int:
        """Candidates being decoded."""
        return sum(len(lane) for lane in list(self._lanes.values()))

    def waiting(self) -> int:
        """Number of waiting prompts."""
        return len(self._waiting) + len(self._half)

    def submit(self, request: Request) -> None:
        """Queue a request; its `events` receive each candidate, without its text, or one error."""
        self._put(self._waiting, request)

    def cancel(self, request: Request) -> None:
        """Drop the request's rows before the next step."""
        request.cancelled = True
        with self._condition:
            self._sweep = True
            self._condition.notify()

    def call(self, function: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Run `function` on the decoding thread between two steps."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._put(self._calls, (function, future))
        return future

    def freeze(self, frozen: bool) -> None:
        """Stop stepping rows, or continue; `call`s still run."""
        with self._condition:
            self._frozen = frozen
            self._condition.notify()

    def _has_work(self) -> bool:
        return bool(self._waiting or self._half or self._lanes)

    def _put(self, queue: deque[Any] | FairQueue, item: Any) -> None:
        with self._condition:
            if self._stopping or self._failure is not None:
                raise Unavailable("the sampler is stopping" if self._stopping else "the sampler's decoding thread died")
            queue.append(item)
            self._condition.notify()

    def _run(self) -> None:
        try:
            while True:
                with self._condition:
                    while not (self._stopping or self._calls or (not self._frozen and self._has_work())):
                        if self._used:
                            self._release()
                        self._condition.wait()
                    if self._stopping:
                        break
                self._turn()
        except BaseException as error:
            logger.exception("the decoding thread died")
            with self._condition:
                self._failure = error
        self._end()

    def _turn(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    with torch.no_grad():
                        future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
        if self._frozen:
            return
        self._used = True
        with torch.inference_mode():
            self._drop_unwanted()
            self._admit()
            for key, lane in list(self._lanes.items()):
                if len(lane):
                    self._step(lane)
                if not len(lane):
                    del self._lanes[key]

    def _release(self) -> None:
        """Idle or frozen: release cached GPU memory, since another process may need it, such as a trainer on the same
        GPU."""
        self._used = False
        if self._base.device.type == "cuda":
            torch.cuda.empty_cache()

    def _step(self, lane: Lane | BeamSearch) -> None:
        try:
            self._on_step(len(lane))
            self._deliver(lane.sample())
            if len(lane):
                lane.forward(self._weights.use(lane.version))
        except Exception as error:
            logger.exception("a step of policy %d failed", lane.version)
            self._deliver((request, _internal(error)) for request in lane.requests())
            lane.clear()

    def _admit(self) -> None:
        """Admit waiting prompts while there is room."""
        room = self._room()
        if not (self._half or self._waiting) or not self._worth_while(room):
            return
        self._waited = 0
        for _ in range(len(self._half)):
            run = self._half.popleft()
            if room <= 0:
                self._half.append(run)
            elif not self._unwanted(run.request):
                try:
                    room -= self._join([run], room)
                except Exception as error:
                    self._give_up([run.request], error)
        batch: dict[tuple[object, ...], list[Request]] = {}
        while room > 0 and (request := self._waiting.take()) is not None:
            if self._unwanted(request):
                continue
            try:
                request.version = request.work.lease.bind()
                if request.version not in self._weights:
                    raise InternalError(f"policy {request.version} is not loaded")
            except SightlineError as error:
                self._deliver([(request, error)])
                continue
            batch.setdefault((request.version, *request.prepared.shape()), []).append(request)
            room -= request.left * request.rows_each
        for requests in batch.values():
            tokens = min(_PREFILL_TOKENS, self._cache_bytes // (4 * max(1, self._prefiller.slot_bytes)))
            most = max(1, tokens // len(requests[0].prepared.ids))
            for start in range(0, len(requests), most):
                self._prefill(requests[start : start + most])

    def _worth_while(self, room: int) -> bool:
        """Whether to admit now. Running one prompt costs nearly as much as several, so while rows are running it waits
        a few steps for others, and for an eighth of the room."""
        if not self._lanes:
            return True
        self._waited += 1
        waiting = sum(len(request.work.seeds) * request.rows_each for request in list(self._waiting))
        enough = self._half or self._waited > _PATIENCE_STEPS or waiting * 8 >= self.rows()
        return room >= max(1, self._max_rows // 8) and bool(enough)

    def _prefill(self, requests: list[Request]) -> None:
        version = requests[0].version
        try:
            model, vision = self._weights.use(version), self._weights.vision_key(version)
            prefix = self._prefiller.run(model, [request.prepared for request in requests], vision)
            runs = [_Run(request, prefix, row) for row, request in enumerate(requests)]
            for run in runs:
                if run.request.reference is not None:
                    run.reference = self._prefiller.run(model, [run.request.reference], vision).only(0)
            self._join(runs, self._room())
        except Exception as error:
            self._give_up(requests, error)

    def _give_up(self, requests: list[Request], error: Exception) -> None:
        logger.exception("%d prompts for policy %d could not be run", len(requests), requests[0].version)
        self._deliver((request, _internal(error)) for request in requests)
        for lane in self._lanes.values():
            lane.drop(lambda request: request.cancelled)

    def _join(self, runs: Sequence[_Run], room: int) -> int:
        """Put as many candidates of a prefix's prompts into their lane as there is room for, and keep the others for
        later; returns the number of rows. Beams are added together or not at all."""
        joined: list[tuple[_Run, int]] = []
        taken = 0
        for run in runs:
            request = run.request
            wanted, each = len(request.work.seeds) - request.admitted, request.rows_each
            first = not (self._lanes or joined)
            count = min(wanted, max((room - taken) // each, 1 if first else 0))
            if request.work.params.beams is not None:
                count = wanted if first or wanted * each <= room - taken else 0
            if count:
                joined.append((run, count))
                taken += count * each
            if count < wanted:
                self._half.append(run.alone())
        lanes: dict[tuple[int, ...], list[tuple[_Run, int]]] = {}
        for run, count in joined:
            if run.request.work.params.beams is None:
                lanes.setdefault(self._lane_key(run), []).append((run, count))
            else:
                self._searches += 1
                search = BeamSearch(self._base, run.request.version, run.request, run.prompts())
                self._lanes[run.request.version, -1, self._searches] = search
        for key, members in lanes.items():
            lane = self._lanes.setdefault(key, Lane(self._base, key[0]))
            assert isinstance(lane, Lane)
            requests, counts = [run.request for run, _ in members], [count for _, count in members]
            places = lane.add(members[0][0].prefix, [run.row for run, _ in members], requests, counts)
            for (run, _), at in zip(members, places, strict=True):
                if run.reference is not None:
                    lane.add_references(run.reference, 0, run.request, at)
        return taken

    @staticmethod
    def _lane_key(run: _Run) -> tuple[int, int, int]:
        # Much longer rows would make all rows attend over empty slots: 128, 512, 2048 ...
        longest = max(run.prefix.length + run.request.limit - 1, 1)
        return run.request.version, (longest.bit_length() + 2) // 2, int(shares(run.prefix.length))

    def _room(self) -> int:
        """Rows that can still be admitted, by number and by cache space."""
        rows = self._max_rows - self.rows()
        following = self._waiting.next()
        heads = [self._half[0].request] if self._half else []
        heads += [following] if following is not None else []
        slot = self._prefiller.slot_bytes
        if not slot or not heads:
            return rows
        row = self._prefiller.row_bytes
        used = sum(lane.reserved() * slot + len(lane) * row for lane in self._lanes.values())
        each = max(-(-r.slots_each() // r.rows_each) for r in heads) * slot + row
        room = min(rows, (self._cache_bytes - used) // each)
        return room if self._lanes else max(room, 1)  # a candidate that does not fit any cache is tried alone

    def _drop_unwanted(self) -> None:
        now = time.monotonic()
        if not self._sweep and now - self._swept < _SWEEP_SECONDS:
            return
        self._sweep, self._swept = False, now
        for key, lane in list(self._lanes.items()):
            gone = {request for request in lane.requests() if self._unwanted(request)}
            if gone:
                lane.drop(gone.__contains__)
            if not len(lane):
                del self._lanes[key]
        for request in [r for r in list(self._waiting) if self._unwanted(r)]:
            self._waiting.remove(request)
        for run in [run for run in list(self._half) if self._unwanted(run.request)]:
            self._half.remove(run)

    def _unwanted(self, request: Request) -> bool:
        deadline = request.work.deadline
        if not request.cancelled and deadline is not None and time.monotonic() > deadline:
            self._deliver([(request, DeadlineExceeded("the deadline passed before all candidates were finished"))])
        return request.cancelled

    def _deliver(self, events: Iterable[Event]) -> None:
        batch = list(events)
        for request, event in batch:
            if isinstance(event, BaseException):
                request.cancelled = True  # drop the rest of it
                self._sweep = True
            else:
                request.left -= 1
        if batch and not self._events.is_closed():
            self._events.call_soon_threadsafe(_hand_out, batch)

    def _end(self) -> None:
        with self._condition:
            calls, self._calls = list(self._calls), deque()
            requests = {*self._waiting, *(run.request for run in self._half)}
            for lane in self._lanes.values():
                requests |= lane.requests()
            self._waiting.clear()
            self._half.clear()
            self._lanes.clear()
        gone = Unavailable("the sampler stopped before the work was done", retry_after=1.0)
        for _, future in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(gone)
        self._deliver((request, gone) for request in requests if not request.cancelled)


def _hand_out(batch: list[Event]) -> None:
    for request, event in batch:
        request.events.put_nowait(event)


def _internal(error: Exception) -> SightlineError:
    if isinstance(error, SightlineError):
        return error
    return InternalError(f"the engine failed: {type(error).__name__}: {error}")
