"""Clients of the scorer, sync and async.

    with ScorerClient("127.0.0.1:50051") as scorer:
        result = scorer.score(Path("cat.jpg"), ["a cat on a sofa", "a dog in the rain"])
        print(result.clip_score)                      # float32 [2]

        for outcome in scorer.score_many(pairs):      # (image, texts) in, results out, in the same order
            if isinstance(outcome, SightlineError):
                ...                                   # this item failed; the others have their scores

Light: gRPC, protobuf, NumPy. An image is its encoded bytes, a path, a Pillow picture, or named by its SHA-256. Every
call has a deadline, is tried again within it while the service is away or busy (see `Retry`), and raises subclasses of
`sightline_chassis.SightlineError`:

    InvalidInput         an image or text is wrong; the message says which and what to do about it
    NotFound             no such model, or no such image; the message lists the models there are
    Overloaded           too much waited already until the deadline; `retry_after` seconds
    Unavailable          the service or its Triton was away until the deadline
    PreconditionFailed, Unauthenticated, PermissionDenied, DeadlineExceeded, Cancelled, InternalError
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from sightline.channel import Tls, Token, open_channel
from sightline.errors import SightlineError
from sightline.many import IN_FLIGHT, Live, Progress
from sightline.patience import Retries, Retry
from sightline.pictures import image_bytes
from sightline.scorer import many
from sightline.scorer.many import Outcome, Pair
from sightline.scorer.types import (
    EmbedResult,
    Models,
    ScoreResult,
    embed_result,
    models,
    score_result,
)
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


class ScorerClient:
    """A sync client. Safe to share between threads; close it, or use it as a context manager.

    Args:
        target: a gRPC target: "127.0.0.1:50051", "dns:///scorer.ns.svc:50051" (all addresses take turns, those whose
            health says NOT_SERVING are left out).
        tls: PEM files of an encrypted channel.
        token: a bearer token, sent with every call; a string, or a `Token`, which can also be read from a file.
        retry: how calls are tried again; `NEVER` for once only.
    """

    def __init__(
        self, target: str, *, tls: Tls | None = None, token: str | Token | None = None, retry: Retry | None = None
    ) -> None:
        self._channel = open_channel(target, tls=tls, token=token, health_service=HEALTH_SERVICE)
        self._stub: Any = scorer_pb2_grpc.ScorerServiceStub(self._channel)
        self._retries = Retries(retry or Retry())

    def score(
        self,
        image: Image,
        texts: Sequence[str],
        *,
        phrases: Sequence[Sequence[str]] | None = None,
        timeout: float = TIMEOUT,
        **options: Unpack[ScoreOptions],
    ) -> ScoreResult:
        """Compare one image with K texts; the service encodes it once.

        Args:
            image: see `Image`.
            texts: K texts, none empty.
            phrases: [K] parts of each text (its nouns, say) to score beside the whole; each list may be empty.
            timeout: seconds, for all tries together.
            options: see `ScoreOptions`.

        Raises:
            SightlineError: one of its subclasses, see the module.
        """
        request = score_request(image_message(image), texts, phrases, options)
        return score_result(self._call(self._stub.Score, request, timeout), request.kind)

    def score_many(
        self,
        pairs: Iterable[Pair],
        *,
        timeout: float = TIMEOUT,
        max_in_flight: int = IN_FLIGHT,
        progress: Progress | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Iterator[Outcome]:
        """Score many images, each with its texts; yields in the order of `pairs`, which is read as it is needed.

        An image that occurs again is uploaded once and then named by its digest; so is one that the service holds.

        Args:
            pairs: (image, texts) or (image, texts, phrases), any number.
            timeout: seconds for each item, from when it is sent.
            max_in_flight: items read and not yet yielded.
            progress: called as progress(items yielded, items in all or None) before each is yielded.
            options: see `ScoreOptions`.

        Yields:
            A ScoreResult, or the SightlineError of that item alone.
        """
        return many.score_many(self, pairs, options, timeout, max_in_flight, progress)

    def embed(
        self,
        images: Iterable[Image] = (),
        texts: Sequence[str] = (),
        *,
        model: str = "",
        long_text: LongText = "sentences",
        half: bool = False,
        timeout: float = TIMEOUT,
    ) -> EmbedResult:
        """The embeddings of images and texts, in as many requests as it takes.

        Args:
            images: N images.
            texts: M texts, none empty.
            model: a name of `list_models()`, no ensemble.
            long_text: of a text over the window, the mean of its sentences' embeddings, or an error.
            half: let the numbers travel as float16; the arrays are float32 in any case.
            timeout: seconds for each request.

        Raises:
            SightlineError: a request failed. An item that failed alone stands as its error in the result.
        """
        parts = [
            self._call(self._stub.Embed, request, timeout)
            for request in embed_requests(images, texts, model=model, long_text=long_text, half=half)
        ]
        return embed_result(parts)

    def upload(self, images: Iterable[Image], *, timeout: float = TIMEOUT) -> list[ImageDigest | SightlineError]:
        """Store images in the service, so that requests can name them; those that it holds are not sent again.

        The service keeps them until others need the place. Of several replicas one gets them.

        Returns:
            [N] the digest of each image, or why it could not be stored.

        Raises:
            SightlineError: a request failed.
        """
        outcomes: list[ImageDigest | SightlineError] = []
        for contents in upload_batches(map(image_bytes, images)):
            digests = [digest_of(content) for content in contents]
            missing = self._missing(list(dict.fromkeys(digests)), timeout)
            wanted = {one: content for one, content in zip(digests, contents, strict=True) if one in missing}
            failed = self._upload(wanted, timeout) if wanted else {}
            outcomes += [failed.get(digest) or ImageDigest(digest.hex()) for digest in digests]
        return outcomes

    def list_models(self, *, timeout: float = 10.0) -> Models:
        """The models of the service, and what a request may hold. Raises SightlineError."""
        return models(self._call(self._stub.ListModels, pb.ListModelsRequest(), timeout))

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._retries.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout: float) -> Any:
        return self._retries.call(lambda seconds: method(request, timeout=seconds), timeout)

    # What many.py needs of a client.

    def _send(self, request: pb.ScoreRequest, timeout: float, live: Live) -> pb.ScoreResponse:
        def attempt(seconds: float) -> pb.ScoreResponse:
            call = self._stub.Score.future(request, timeout=seconds)
            with live.holding(call.cancel):
                answer: pb.ScoreResponse = call.result()
            return answer

        return self._retries.call(attempt, timeout, live.stopped)

    def _missing(self, digests: Sequence[bytes], timeout: float) -> set[bytes]:
        request = pb.FindMissingImagesRequest(sha256=digests)
        return set(self._call(self._stub.FindMissingImages, request, timeout).sha256)

    def _upload(self, images: dict[bytes, bytes], timeout: float) -> dict[bytes, SightlineError]:
        method = self._stub.UploadImages
        return upload_outcomes(
            self._retries.call(lambda seconds: method(upload_pieces(images.items()), timeout=seconds), timeout)
        )
