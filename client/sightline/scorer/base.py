"""What the scorer's clients do, sync and async alike: see `sightline.base` for how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sightline.base import BaseClient, Flow, Rpc
from sightline.convert import from_message
from sightline.errors import InvalidInput, SightlineError
from sightline.many import Sendable
from sightline.pictures import image_bytes
from sightline.scorer.many import Known, Outcome, ScoreItem, lost_image
from sightline.scorer.types import EmbedResult, Models, ScoreResult, embed_result, score_result
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.v1 import scorer_pb2_grpc
from sightline.scorer.wire import (
    Image,
    ImageDigest,
    LongText,
    ScoreOptions,
    digest_of,
    embed_requests,
    image_message,
    score_request,
    several,
    upload_batches,
    upload_outcomes,
    upload_pieces,
)
from sightline.texts import checked_text


class BaseScorerClient(BaseClient):
    """Builds requests and reads answers; the client makes the calls."""

    _SERVICE = "sightline_scorer.v1.ScorerService"
    _STUB = scorer_pb2_grpc.ScorerServiceStub

    def _score(
        self,
        image: Image,
        texts: Sequence[str],
        phrases: Sequence[Sequence[str]] | None,
        options: ScoreOptions,
        timeout: float | None,
    ) -> Flow[ScoreResult]:
        request = score_request(image_message(image), texts, phrases, options)
        return score_result((yield Rpc("Score", request, timeout)), request.kind)

    def _embed(
        self,
        images: Iterable[Image],
        texts: Sequence[str],
        model: str,
        long_text: LongText,
        half: bool,
        timeout: float | None,
    ) -> Flow[EmbedResult]:
        if isinstance(texts, str):
            raise InvalidInput("texts is one string: give a list of strings", reason="TEXTS_NOT_A_LIST")
        sent_images, sent_texts = Sendable(several(images), image_message), Sendable(texts, checked_text)
        parts = []
        for request in embed_requests(sent_images, sent_texts, model=model, long_text=long_text, half=half):
            if not (request.images or request.texts) and (error := sent_images.first() or sent_texts.first()):
                raise error
            parts.append((yield Rpc("Embed", request, timeout)))
        result = embed_result(parts)
        return replace(result, images=sent_images.merged(result.images), texts=sent_texts.merged(result.texts))

    def _upload(self, images: Iterable[Image], timeout: float | None) -> Flow[list[ImageDigest | SightlineError]]:
        outcomes: list[ImageDigest | SightlineError] = []
        sent = Sendable(several(images), image_bytes)
        for contents in upload_batches(sent):
            digests = [digest_of(content) for content in contents]
            missing = yield from self._missing(list(dict.fromkeys(digests)), timeout)
            wanted = {one: content for one, content in zip(digests, contents, strict=True) if one in missing}
            failed = (yield from self._store(wanted, timeout)) if wanted else {}
            outcomes += [failed.get(digest) or ImageDigest(digest.hex()) for digest in digests]
        return list(sent.merged(outcomes))

    def _list_models(self, timeout: float | None) -> Flow[Models]:
        return from_message((yield Rpc("ListModels", pb.ListModelsRequest(), timeout)), Models)

    def _missing(self, digests: Sequence[bytes], timeout: float | None) -> Flow[set[bytes]]:
        return set((yield Rpc("FindMissingImages", pb.FindMissingImagesRequest(sha256=digests), timeout)).sha256)

    def _store(self, images: dict[bytes, bytes], timeout: float | None) -> Flow[dict[bytes, SightlineError]]:
        return upload_outcomes((yield Rpc("UploadImages", lambda: upload_pieces(images.items()), timeout)))

    def _store_recurring(self, known: Known, items: Sequence[ScoreItem], timeout: float | None) -> Flow[None]:
        ask = known.unknown(items)
        if not ask:
            return
        try:
            missing = yield from self._missing(ask, timeout)
            known.stored.update(digest for digest in ask if digest not in missing)
            images = known.recurring(items, missing)
            if images:
                failed = yield from self._store(images, timeout)
                known.stored.update(digest for digest in images if digest not in failed)
        except SightlineError:
            return  # this only saves bytes: the items are sent with their images, and report errors themselves

    def _score_item(self, item: ScoreItem, known: Known, timeout: float | None) -> Flow[Outcome]:
        if item.outcome is not None:
            return item.outcome
        try:
            if item.digest in known.stored:
                try:
                    return item.result((yield Rpc("Score", item.named(), timeout)))
                except SightlineError as error:
                    if not lost_image(error):
                        raise
                    known.stored.discard(item.digest)
            return item.result((yield Rpc("Score", item.inline, timeout)))
        except SightlineError as error:
            return error
