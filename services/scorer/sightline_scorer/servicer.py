"""The RPCs of `sightline_scorer.v1.ScorerService`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from sightline.errors import InternalError, InvalidInput, PermissionDenied, SightlineError
from sightline.picture_rule import PICTURE_RULE
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.v1 import scorer_pb2_grpc
from sightline_chassis.gate import calling_limits, calling_team, charge
from sightline_chassis.image_store import ImageStore, Upload

from sightline_scorer import costs
from sightline_scorer.embed_request import EmbedRequests, item_error
from sightline_scorer.score_request import Scoring
from sightline_scorer.settings import ScorerLimits

logger = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class ScorerServicer(scorer_pb2_grpc.ScorerServiceServicer):
    """Connects gRPC and `Scoring`. It raises SightlineErrors, which the chassis turns into statuses."""

    def __init__(
        self,
        scoring: Scoring,
        store: ImageStore,
        limits: ScorerLimits,
        uri_schemes: Sequence[str],
        reload: Callable[[], Awaitable[tuple[list[str], list[str]]]] | None,
    ) -> None:
        self._scoring = scoring
        self._store = store
        self._limits = limits
        self._uri_schemes = uri_schemes
        self._reload = reload
        self._embedding = EmbedRequests(scoring.models, scoring.embedder, limits)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """One image, K texts."""
        return await self._scoring.score(request, context.time_remaining())

    async def ScoreStream(
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Context
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Many items; each has its own outcome, answered as it is ready.

        At most `stream_in_flight` items are worked on or wait for a caller that is slow to read its answers.
        """
        places = asyncio.Semaphore(self._limits.stream_in_flight)
        answers: asyncio.Queue[pb.ScoreStreamResponse | BaseException | None] = asyncio.Queue()
        running: set[asyncio.Task[None]] = set()

        async def work(item: pb.ScoreStreamRequest) -> None:
            answers.put_nowait(await self._outcome(item, context))

        async def read() -> None:
            try:
                async for item in request_iterator:
                    await places.acquire()
                    task = asyncio.create_task(work(item))
                    running.add(task)
                    task.add_done_callback(running.discard)
                while running:
                    await asyncio.wait(running)
                answers.put_nowait(None)
            except Exception as error:  # for example a client that disconnects
                answers.put_nowait(error)

        reader = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
                places.release()
        finally:
            reader.cancel()
            for task in list(running):
                task.cancel()

    async def FindMissingImages(
        self, request: pb.FindMissingImagesRequest, context: Context
    ) -> pb.FindMissingImagesResponse:
        """The images that are not stored here."""
        if len(request.sha256) > self._limits.max_digests:
            raise InvalidInput(
                f"{len(request.sha256)} digests, over the limit of {self._limits.max_digests}: ask in several requests",
                reason="TOO_MANY_DIGESTS",
            )
        return pb.FindMissingImagesResponse(sha256=self._store.missing(request.sha256, calling_team()))

    async def UploadImages(
        self, request_iterator: AsyncIterator[pb.UploadImagesRequest], context: Context
    ) -> pb.UploadImagesResponse:
        """Store images; each has its own outcome."""
        response = pb.UploadImagesResponse()
        upload: Upload | None = None
        async for piece in request_iterator:
            if upload is None:
                if len(response.outcomes) >= self._limits.max_digests:
                    raise InvalidInput(
                        f"over {self._limits.max_digests} images in one upload: use several", reason="TOO_MANY_DIGESTS"
                    )
                upload = Upload(piece.sha256, self._limits)
            elif piece.sha256 and piece.sha256 != upload.sha256:
                raise InvalidInput(
                    f"a piece of image {piece.sha256.hex()} came before the last piece of {upload.sha256.hex()}: set "
                    "`last` on each image's last piece",
                    reason="UPLOAD_INTERLEAVED",
                )
            upload.add(piece.chunk)
            if piece.last:
                upload.finish(self._store, calling_team(), calling_limits().stored_image_bytes)
                error = None if upload.error is None else item_error(upload.error)
                response.outcomes.add(sha256=upload.sha256, error=error)
                upload = None
        if upload is not None:
            raise InvalidInput(
                f"the stream ended inside image {upload.sha256.hex()}: set `last` on its last piece",
                reason="UPLOAD_INCOMPLETE",
            )
        return response

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """The embeddings themselves."""
        return await self._embedding.embed(request, context.time_remaining())

    async def ReloadModels(self, request: pb.ReloadModelsRequest, context: Context) -> pb.ReloadModelsResponse:
        """Apply the current settings."""
        if self._reload is None:
            raise PermissionDenied(
                "models are reloaded by SIGHUP only: send it to the service, or set reload.rpc=true",
                reason="RELOAD_NOT_ALLOWED",
            )
        # Shielded: a caller that disconnects must not stop it half-way.
        changed, removed = await asyncio.shield(asyncio.ensure_future(self._reload()))
        return pb.ReloadModelsResponse(models=self._scoring.models.infos(), changed=changed, removed=removed)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Models and limits."""
        limits = self._limits
        return pb.ListModelsResponse(
            models=self._scoring.models.infos(),
            picture_rule=PICTURE_RULE,
            other_versions=self._scoring.models.others,
            limits=pb.Limits(
                max_image_bytes=limits.max_image_bytes,
                max_image_pixels=limits.max_image_pixels,
                max_texts=limits.max_texts,
                max_text_bytes=limits.max_text_bytes,
                max_digests=limits.max_digests,
                max_images=limits.max_images,
                uri_schemes=self._uri_schemes,
            ),
        )

    async def _outcome(self, item: pb.ScoreStreamRequest, context: Context) -> pb.ScoreStreamResponse:
        try:
            charge(costs.of_score(item.request))
            response = await self._scoring.score(item.request, context.time_remaining())
        except SightlineError as error:
            return pb.ScoreStreamResponse(id=item.id, error=item_error(error))
        except Exception:
            logger.exception("an item of a stream failed")
            return pb.ScoreStreamResponse(
                id=item.id,
                error=item_error(InternalError("an internal error of the scorer; its log has the traceback")),
            )
        return pb.ScoreStreamResponse(id=item.id, response=response)
