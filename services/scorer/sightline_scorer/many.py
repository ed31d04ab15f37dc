"""Many items through one client: images deduplicated, so many in flight, outcomes in order."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeAlias

from sightline_chassis.errors import NotFound, SightlineError

from sightline_scorer.types import ScoreResult, score_result
from sightline_scorer.v1 import scorer_pb2 as pb
from sightline_scorer.wire import Image, ScoreOptions, digest_of, image_message, score_request

IN_FLIGHT = 32
_INLINE_BYTES = 4096  # below, a digest saves less than asking for it costs
_REMEMBERED = 100_000  # digests, 32 bytes each

Pair: TypeAlias = tuple[Image, Sequence[str]] | tuple[Image, Sequence[str], Sequence[Sequence[str]] | None]
"""An image and the texts to compare with it, and perhaps the phrases of each text."""

Outcome: TypeAlias = ScoreResult | SightlineError
"""What became of one item: its scores, or why there are none. A failure is never a number."""

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the number of items done, and of all items where that is known."""


class Item:
    """One pair, ready to be sent. An item that cannot be sent has its error in `outcome` already."""

    def __init__(self, pair: Pair, options: ScoreOptions) -> None:
        self.outcome: SightlineError | None = None
        self.content = self.digest = b""
        try:
            image, texts, *phrases = pair
            self.inline = score_request(image_message(image), texts, phrases[0] if phrases else None, options)
        except SightlineError as error:
            self.outcome = error
            return
        if len(self.inline.image.content) >= _INLINE_BYTES:
            self.content = self.inline.image.content
            self.digest = digest_of(self.content)

    def named(self) -> pb.ScoreRequest:
        """The request with the image named by its digest."""
        request = pb.ScoreRequest()
        request.MergeFrom(self.inline)  # shares the image's bytes until the next line
        request.image.sha256 = self.digest
        return request

    def result(self, response: pb.ScoreResponse) -> Outcome:
        """The outcome of an answer."""
        try:
            return score_result(response, self.inline.kind)
        except SightlineError as error:
            return error


class Known:
    """Which images the service holds, as far as is known here."""

    def __init__(self) -> None:
        self.stored: set[bytes] = set()
        self._seen: set[bytes] = set()

    def unknown(self, items: Sequence[Item]) -> list[bytes]:
        """The digests to ask for."""
        return [digest for digest in {item.digest: None for item in items} if digest and digest not in self.stored]

    def recurring(self, items: Sequence[Item], missing: set[bytes]) -> dict[bytes, bytes]:
        """Of the missing images, those that occur again and are worth an upload: content by digest."""
        counts = Counter(item.digest for item in items)
        found = {
            item.digest: item.content
            for item in items
            if item.digest in missing and (counts[item.digest] > 1 or item.digest in self._seen)
        }
        if len(self._seen) + len(self.stored) > _REMEMBERED:
            self._seen.clear()
            self.stored.clear()
        self._seen.update(missing)
        return found


class Live:
    """The calls that run for one `score_many`, so that its end ends them."""

    def __init__(self) -> None:
        self._calls: set[Any] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def result(self, call: Any) -> Any:
        """The result of a gRPC future."""
        with self._lock:
            self._calls.add(call)
        if self._stop.is_set():
            call.cancel()
        try:
            return call.result()
        finally:
            with self._lock:
                self._calls.discard(call)

    def stopped(self) -> bool:
        """Whether nobody waits any more."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Cancel all."""
        self._stop.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()


class Caller(Protocol):
    """What this needs of a client."""

    def _send(self, request: pb.ScoreRequest, timeout: float, live: Live) -> pb.ScoreResponse: ...

    def _missing(self, digests: Sequence[bytes], timeout: float) -> set[bytes]: ...

    def _upload(self, images: dict[bytes, bytes], timeout: float) -> dict[bytes, SightlineError]: ...


def score_many(
    client: Caller,
    pairs: Iterable[Pair],
    options: ScoreOptions,
    timeout: float,
    max_in_flight: int,
    progress: Progress | None,
) -> Iterator[Outcome]:
    """See `ScorerClient.score_many`."""
    known, live, total, done = Known(), Live(), count_of(pairs), 0
    most = max(1, max_in_flight)
    group = max(1, most // 2)
    source, more = iter(pairs), True
    waiting: deque[Future[Outcome]] = deque()
    threads = ThreadPoolExecutor(most, thread_name_prefix="score_many")
    try:
        while waiting or more:
            if more and len(waiting) <= most - group:
                items = [Item(pair, options) for pair in islice(source, group)]
                more = bool(items)
                _store_recurring(client, known, items, timeout)
                waiting.extend(threads.submit(_run, client, item, known, timeout, live) for item in items)
                continue
            outcome = waiting.popleft().result()
            done += 1
            if progress is not None:
                progress(done, total)
            yield outcome
    finally:
        live.stop()
        threads.shutdown(wait=False, cancel_futures=True)


def count_of(pairs: object) -> int | None:
    """How many there are, where that is known."""
    return len(pairs) if hasattr(pairs, "__len__") else None


def lost_image(error: SightlineError) -> bool:
    """Whether the service does not hold an image that was named: it is gone again, or another replica has it."""
    return isinstance(error, NotFound) and error.reason == "IMAGE_NOT_FOUND"


def _store_recurring(client: Caller, known: Known, items: Sequence[Item], timeout: float) -> None:
    ask = known.unknown(items)
    if not ask:
        return
    try:
        missing = client._missing(ask, timeout)
        known.stored.update(digest for digest in ask if digest not in missing)
        images = known.recurring(items, missing)
        if images:
            failed = client._upload(images, timeout)
            known.stored.update(digest for digest in images if digest not in failed)
    except SightlineError:
        return  # saves bytes only: the items go with their images, and find out for themselves what is wrong


def _run(client: Caller, item: Item, known: Known, timeout: float, live: Live) -> Outcome:
    if item.outcome is not None:
        return item.outcome
    try:
        if item.digest in known.stored:
            try:
                return item.result(client._send(item.named(), timeout, live))
            except SightlineError as error:
                if not lost_image(error):
                    raise
                known.stored.discard(item.digest)
        return item.result(client._send(item.inline, timeout, live))
    except SightlineError as error:
        return error
