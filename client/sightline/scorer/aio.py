"""The scorer's client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Unpack

from sightline.base import AsyncClient
from sightline.errors import SightlineError
from sightline.many import IN_FLIGHT, Progress, count_of, in_order_async
from sightline.scorer.base import BaseScorerClient
from sightline.scorer.many import Known, Outcome, Pair, ScoreItem, group_of
from sightline.scorer.types import EmbedResult, Models, ScoreResult
from sightline.scorer.wire import Image, ImageDigest, LongText, ScoreOptions


class AsyncScorerClient(BaseScorerClient, AsyncClient):
    """As `ScorerClient`, for asyncio. Make it inside the running event loop."""

    async def score(
        self,
        image: Image,
        texts: Sequence[str],
        *,
        phrases: Sequence[Sequence[str]] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  gRPC sends it to the server
        **options: Unpack[ScoreOptions],
    ) -> ScoreResult:
        """As `ScorerClient.score`."""
        return await self._run(self._score(image, texts, phrases, options, timeout))

    def score_many(
        self,
        pairs: Iterable[Pair],
        *,
        timeout: float | None = None,
        max_in_flight: int = IN_FLIGHT,
        progress: Progress | None = None,
        **options: Unpack[ScoreOptions],
    ) -> AsyncIterator[Outcome]:
        """As `ScorerClient.score_many`, for `async for`. A thread reads `pairs` and their files."""
        known = Known()
        return in_order_async(
            (ScoreItem(pair, options) for pair in pairs),
            lambda item: self._run(self._score_item(item, known, timeout)),
            total=count_of(pairs),
            max_in_flight=max_in_flight,
            progress=progress,
            group=group_of(max_in_flight),
            prepare=lambda items: self._run(self._store_recurring(known, items, timeout)),
        )

    async def embed(
        self,
        images: Iterable[Image] = (),
        texts: Sequence[str] = (),
        *,
        model: str = "",
        long_text: LongText = "sentences",
        half: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> EmbedResult:
        """As `ScorerClient.embed`."""
        return await self._run(self._embed(images, texts, model, long_text, half, timeout))

    async def upload(
        self,
        images: Iterable[Image],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[ImageDigest | SightlineError]:
        """As `ScorerClient.upload`."""
        return await self._run(self._upload(images, timeout))

    async def list_models(self, *, timeout: float | None = None) -> Models:  # noqa: ASYNC109
        """As `ScorerClient.list_models`."""
        return await self._run(self._list_models(timeout))
