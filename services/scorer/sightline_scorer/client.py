"""Clients of the scorer, sync and async.

    with ScorerClient("127.0.0.1:50051") as scorer:
        result = scorer.score(Path("cat.jpg"), ["a cat on a sofa", "a dog in the rain"])
        print(result.clip_score)                      # float32 [2]

        for outcome in scorer.score_many(pairs):      # (image, texts) in, results out, in the same order
            if isinstance(outcome, SightlineError):
                ...                                   # this item failed; the others have their scores

Light: gRPC, protobuf, NumPy. An image is given as its encoded bytes or as a path. Every call has a deadline and raises
subclasses of `sightline_chassis.SightlineError`:

    InvalidInput         an image or text is wrong; the message says which and what to do about it
    NotFound             no such model; the message lists those there are
    Overloaded           too much waits already; `retry_after` seconds
    Unavailable          the service or its Triton is away; gRPC has tried 5 times before this is raised
    DeadlineExceeded, Cancelled, InternalError

Scoring the same thing twice gives the same scores, so a call that fails with UNAVAILABLE is tried again by gRPC itself.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import grpc
from sightline_chassis.channel import Tls, open_aio_channel, open_channel
from sightline_chassis.errors import InvalidInput, SightlineError, from_rpc_error, typed_errors

from sightline_scorer.types import Limits, ModelInfo, Models, ScoreResult, Timing, models, score_result
from sightline_scorer.v1 import scorer_pb2 as pb
from sightline_scorer.v1 import scorer_pb2_grpc

__all__ = [
    "AsyncScorerClient",
    "Image",
    "Limits",
    "LongText",
    "ModelInfo",
    "Models",
    "Outcome",
    "ScoreResult",
    "ScorerClient",
    "Timing",
]

Image: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str]
"""The bytes of an encoded image (JPEG, PNG, WebP or GIF), or the path of such a file."""

Pair: TypeAlias = tuple[Image, Sequence[str]]
"""An image and the texts to compare with it."""

Outcome: TypeAlias = ScoreResult | SightlineError
"""What became of one item: its scores, or why there are none. A failure is never a number."""

LongText: TypeAlias = Literal["sentences", "reject"]
"""What to do with a text over the model's window: the mean over its sentences, or an error. Never a silent cut."""

_RETRY = [f"sightline_scorer.v1.ScorerService/{method}" for method in ("Score", "ListModels", "FindMissingImages")]
_LONG_TEXT = {"sentences": pb.LONG_TEXT_SENTENCES, "reject": pb.LONG_TEXT_REJECT}
_TIMEOUT = 60.0
_IN_FLIGHT = 32


class ScorerClient:
    """A sync client. Safe to share between threads; close it, or use it as a context manager.

    Args:
        target: a gRPC target: "127.0.0.1:50051", "dns:///scorer.ns.svc:50051".
        tls: PEM files of an encrypted channel.
        token: sent with every call.
    """

    def __init__(self, target: str, *, tls: Tls | None = None, token: str | None = None) -> None:
        self._channel = open_channel(target, tls=tls, token=token, retry=_RETRY)
        self._stub: Any = scorer_pb2_grpc.ScorerServiceStub(self._channel)

    def score(
        self,
        image: Image,
        texts: Sequence[str],
        *,
        model: str = "",
        long_text: LongText = "sentences",
        timeout: float = _TIMEOUT,
    ) -> ScoreResult:
        """Compare one image with K texts; the service encodes it once.

        Args:
            image: encoded bytes, or a path.
            texts: K texts, none empty.
            model: a name of `list_models()`; empty for the default.
            long_text: for a text over the model's window, score its sentences, or refuse.
            timeout: seconds, for all tries together.

        Raises:
            SightlineError: one of its subclasses, see the module.
        """
        with typed_errors():
            return score_result(self._stub.Score(_request(image, texts, model, long_text), timeout=timeout))

    def score_many(
        self,
        pairs: Iterable[Pair],
        *,
        model: str = "",
        long_text: LongText = "sentences",
        timeout: float = _TIMEOUT,
        max_in_flight: int = _IN_FLIGHT,
    ) -> Iterator[Outcome]:
        """Score many images, each with its texts; yields in the order of `pairs`, which is read as it is needed.

        Args:
            pairs: (image, texts), any number.
            model: as for `score`.
            long_text: as for `score`.
            timeout: seconds for each item.
            max_in_flight: items sent and not yet yielded.

        Yields:
            A ScoreResult, or the SightlineError of that item alone.
        """
        waiting: deque[Any] = deque()
        try:
            for image, texts in pairs:
                if len(waiting) >= max(1, max_in_flight):
                    yield _outcome(waiting.popleft())
                try:
                    waiting.append(self._stub.Score.future(_request(image, texts, model, long_text), timeout=timeout))
                except SightlineError as error:
                    waiting.append(error)
            while waiting:
                yield _outcome(waiting.popleft())
        finally:
            for call in waiting:
                if not isinstance(call, SightlineError):
                    call.cancel()

    def list_models(self, *, timeout: float = 10.0) -> Models:
        """The models of the service, and what a request may hold. Raises SightlineError."""
        with typed_errors():
            return models(self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout))

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncScorerClient:
    """As `ScorerClient`, for asyncio. Make it inside the running event loop."""

    def __init__(self, target: str, *, tls: Tls | None = None, token: str | None = None) -> None:
        self._channel = open_aio_channel(target, tls=tls, token=token, retry=_RETRY)
        self._stub: Any = scorer_pb2_grpc.ScorerServiceStub(self._channel)

    async def score(
        self,
        image: Image,
        texts: Sequence[str],
        *,
        model: str = "",
        long_text: LongText = "sentences",
        timeout: float = _TIMEOUT,  # noqa: ASYNC109  gRPC sends it to the server
    ) -> ScoreResult:
        """As `ScorerClient.score`."""
        with typed_errors():
            return score_result(await self._stub.Score(_request(image, texts, model, long_text), timeout=timeout))

    async def score_many(
        self,
        pairs: Iterable[Pair],
        *,
        model: str = "",
        long_text: LongText = "sentences",
        timeout: float = _TIMEOUT,  # noqa: ASYNC109
        max_in_flight: int = _IN_FLIGHT,
    ) -> AsyncIterator[Outcome]:
        """As `ScorerClient.score_many`, for `async for`."""

        async def one(image: Image, texts: Sequence[str]) -> Outcome:
            try:
                return await self.score(image, texts, model=model, long_text=long_text, timeout=timeout)
            except SightlineError as error:
                return error

        waiting: deque[asyncio.Task[Outcome]] = deque()
        try:
            for image, texts in pairs:
                if len(waiting) >= max(1, max_in_flight):
                    yield await waiting.popleft()
                waiting.append(asyncio.create_task(one(image, texts)))
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()

    async def list_models(self, *, timeout: float = 10.0) -> Models:  # noqa: ASYNC109
        """As `ScorerClient.list_models`."""
        with typed_errors():
            return models(await self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout))

    async def close(self) -> None:
        """As `ScorerClient.close`."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _request(image: Image, texts: Sequence[str], model: str, long_text: LongText) -> pb.ScoreRequest:
    if isinstance(texts, str):
        raise InvalidInput("texts is one string: give a list of texts", reason="TEXTS_NOT_A_LIST")
    return pb.ScoreRequest(
        image=pb.Image(content=_content(image)), texts=list(texts), model=model, long_text=_LONG_TEXT[long_text]
    )


def _content(image: Image) -> bytes:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"the image {os.fspath(image)} cannot be read: {error.strerror}", reason="IMAGE_FILE_UNREADABLE"
        ) from error


def _outcome(call: Any) -> Outcome:
    if isinstance(call, SightlineError):
        return call
    try:
        return score_result(call.result())
    except grpc.RpcError as error:
        return from_rpc_error(error)
