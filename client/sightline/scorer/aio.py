"""The scorer's client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from sightline.channel import Tls, Token, open_aio_channel
from sightline.errors import SightlineError
from sightline.many import IN_FLIGHT, Progress, count_of, in_order_async
from sightline.patience import Retries, Retry
from sightline.pictures import image_bytes
from sightline.scorer.many import Known, Outcome, Pair, ScoreItem, group_of, lost_image
from sightline.scorer.types import EmbedResult, Models, ScoreResult, embed_result, models, score_result
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.v1 import scorer_pb2_grpc
from sightline.scorer.wire import (
    HEALTH_SERVICE,
    TIMEOUT,
    Image,
    ImageDigest,
    LongText,
    ScoreOptions,
    digest_of,
    embed_requests,
    image_message,
    score_request,
    upload_batches,
    upload_outcomes,
    upload_pieces,
)


class AsyncScorerClient:
    """As `ScorerClient`, for asyncio. Make it inside the running event loop."""

    def __init__(
        self, target: str, *, tls: Tls | None = None, token: str | Token | None = None, retry: Retry | None = None
    ) -> None:
        self._channel = open_aio_channel(target, tls=tls, token=token, health_service=HEALTH_SERVICE)
        self._stub: Any = scorer_pb2_grpc.ScorerServiceStub(self._channel)
        self._retries = Retries(retry or Retry())

    async def score(
        self,
        image: Image,
        texts: Sequence[str],
        *,
        phrases: Sequence[Sequence[str]] | None = None,
        timeout: float = TIMEOUT,  # noqa: ASYNC109  gRPC sends it to the server
        **options: Unpack[ScoreOptions],
    ) -> ScoreResult:
        """As `ScorerClient.score`."""
        request = score_request(image_message(image), texts, phrases, options)
        return score_result(await self._call(self._stub.Score, request, timeout), request.kind)

    def score_many(
        self,
        pairs: Iterable[Pair],
        *,
        timeout: float = TIMEOUT,
        max_in_flight: int = IN_FLIGHT,
        progress: Progress | None = None,
        **options: Unpack[ScoreOptions],
    ) -> AsyncIterator[Outcome]:
        """As `ScorerClient.score_many`, for `async for`. `pairs` is read, and its files are, in a thread."""
        known = Known()
        return in_order_async(
            (ScoreItem(pair, options) for pair in pairs),
            lambda item: self._run(item, known, timeout),
            total=count_of(pairs),
            max_in_flight=max_in_flight,
            progress=progress,
            group=group_of(max_in_flight),
            prepare=lambda items: self._store_recurring(known, items, timeout),
        )

    async def embed(
        self,
        images: Iterable[Image] = (),
        texts: Sequence[str] = (),
        *,
        model: str = "",
        long_text: LongText = "sentences",
        half: bool = False,
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> EmbedResult:
        """As `ScorerClient.embed`."""
        parts = [
            await self._call(self._stub.Embed, request, timeout)
            for request in embed_requests(images, texts, model=model, long_text=long_text, half=half)
        ]
        return embed_result(parts)

    async def upload(
        self,
        images: Iterable[Image],
        *,
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> list[ImageDigest | SightlineError]:
        """As `ScorerClient.upload`."""
        outcomes: list[ImageDigest | SightlineError] = []
        for contents in upload_batches(map(image_bytes, images)):
            digests = [digest_of(content) for content in contents]
            missing = await self._missing(list(dict.fromkeys(digests)), timeout)
            wanted = {one: content for one, content in zip(digests, contents, strict=True) if one in missing}
            failed = await self._upload(wanted, timeout) if wanted else {}
            outcomes += [failed.get(digest) or ImageDigest(digest.hex()) for digest in digests]
        return outcomes

    async def list_models(self, *, timeout: float = 10.0) -> Models:  # noqa: ASYNC109
        """As `ScorerClient.list_models`."""
        return models(await self._call(self._stub.ListModels, pb.ListModelsRequest(), timeout))

    async def close(self) -> None:
        """As `ScorerClient.close`."""
        self._retries.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, timeout: float) -> Any:  # noqa: ASYNC109
        return await self._retries.acall(lambda seconds: method(request, timeout=seconds), timeout)

    async def _missing(self, digests: Sequence[bytes], timeout: float) -> set[bytes]:  # noqa: ASYNC109
        request = pb.FindMissingImagesRequest(sha256=digests)
        return set((await self._call(self._stub.FindMissingImages, request, timeout)).sha256)

    async def _upload(
        self,
        images: dict[bytes, bytes],
        timeout: float,  # noqa: ASYNC109
    ) -> dict[bytes, SightlineError]:
        method = self._stub.UploadImages
        return upload_outcomes(
            await self._retries.acall(lambda seconds: method(upload_pieces(images.items()), timeout=seconds), timeout)
        )

    async def _store_recurring(self, known: Known, items: Sequence[ScoreItem], timeout: float) -> None:  # noqa: ASYNC109
        ask = known.unknown(items)
        if not ask:
            return
        try:
            missing = await self._missing(ask, timeout)
            known.stored.update(digest for digest in ask if digest not in missing)
            images = known.recurring(items, missing)
            if images:
                failed = await self._upload(images, timeout)
                known.stored.update(digest for digest in images if digest not in failed)
        except SightlineError:
            return  # saves bytes only: the items go with their images, and find out for themselves what is wrong

    async def _run(self, item: ScoreItem, known: Known, timeout: float) -> Outcome:  # noqa: ASYNC109
        if item.outcome is not None:
            return item.outcome
        try:
            if item.digest in known.stored:
                try:
                    return item.result(await self._call(self._stub.Score, item.named(), timeout))
                except SightlineError as error:
                    if not lost_image(error):
                        raise
                    known.stored.discard(item.digest)
            return item.result(await self._call(self._stub.Score, item.inline, timeout))
        except SightlineError as error:
            return error
