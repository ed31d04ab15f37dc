"""Clients of the scorer, sync and async.

    with ScorerClient("127.0.0.1:50051") as scorer:
        result = scorer.score(Path("cat.jpg"), ["a cat on a sofa", "a dog in the rain"])
        print(result.clip_score)                      # float32 [2]

        for outcome in scorer.score_many(pairs):      # (image, texts) in, results out, in the same order
            if isinstance(outcome, SightlineError):
                ...                                   # this item failed; the others have their scores

Light: gRPC, protobuf, NumPy. An image is given by its encoded bytes, a path, a Pillow picture or its SHA-256. Every
    call has a deadline, is retried within it while the service is unavailable or busy (see `sightline.Patience`), and
    raises subclasses of `sightline.SightlineError`:

    InvalidInput         an image or text is wrong; the message says which and what to do about it
    NotFound             no such model or image; the message lists the available models
    Overloaded           the queue was full for longer than the client's patience; retry after `retry_after` seconds
    Unavailable          the service or its Triton was unavailable for that long
    PreconditionFailed, Unauthenticated, PermissionDenied, DeadlineExceeded, Cancelled, InternalError
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Unpack

from sightline.base import SyncClient
from sightline.errors import SightlineError
from sightline.many import IN_FLIGHT, Progress, count_of, in_order
from sightline.scorer.base import BaseScorerClient
from sightline.scorer.many import Known, Outcome, Pair, ScoreItem, group_of
from sightline.scorer.types import EmbedResult, Models, ScoreResult
from sightline.scorer.wire import Image, ImageDigest, LongText, ScoreOptions


class ScorerClient(BaseScorerClient, SyncClient):
    """A sync client. Safe to share between threads; close it, or use it as a context manager. See `BaseClient`."""

    def score(
        self,
        image: Image,
        texts: Sequence[str],
        *,
        phrases: Sequence[Sequence[str]] | None = None,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> ScoreResult:
        """Compare one image with K texts; the service encodes it once.

        Args:
            image: see `Image`.
            texts: K texts; none may be empty.
            phrases: [K] parts of each text (its nouns, say) to score in addition to the whole; each list may be empty.
            timeout: seconds for all tries together, if not the client's.
            options: see `ScoreOptions`.

        Raises:
            SightlineError: one of its subclasses, see the module.
        """
        return self._run(self._score(image, texts, phrases, options, timeout))

    def score_many(
        self,
        pairs: Iterable[Pair],
        *,
        timeout: float | None = None,
        max_in_flight: int = IN_FLIGHT,
        progress: Progress | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Iterator[Outcome]:
        """Score many images, each with its texts; yields in the order of `pairs`, which is read as it is needed.

        An image that occurs several times is uploaded once and then named by its digest; so is one that the service has
        already.

        Args:
            pairs: (image, texts) or (image, texts, phrases), any number.
            timeout: seconds for each item, from when it is sent, if not the client's.
            max_in_flight: items read and not yet yielded.
            progress: called as progress(items yielded, total or None) before each is yielded.
            options: see `ScoreOptions`.

        Yields:
            A ScoreResult, or the SightlineError of that item alone.
        """
        known = Known()
        return in_order(
            (ScoreItem(pair, options) for pair in pairs),
            lambda item, live: self._run(self._score_item(item, known, timeout), live),
            total=count_of(pairs),
            max_in_flight=max_in_flight,
            progress=progress,
            group=group_of(max_in_flight),
            prepare=lambda items: self._run(self._store_recurring(known, items, timeout)),
        )

    def embed(
        self,
        images: Iterable[Image] = (),
        texts: Sequence[str] = (),
        *,
        model: str = "",
        long_text: LongText = "sentences",
        half: bool = False,
        timeout: float | None = None,
    ) -> EmbedResult:
        """The embeddings of images and texts, in as many requests as needed.

        Args:
            images: N images.
            texts: M texts; none may be empty.
            model: a name from `list_models()`, not an ensemble.
            long_text: for a text longer than the window, give the mean of its sentences' embeddings, or an error.
            half: send the numbers as float16; the arrays are float32 in any case.
            timeout: seconds for each request, if not the client's.

        Raises:
            SightlineError: a request failed. If a single item failed, the result holds its error in the item's place.
        """
        return self._run(self._embed(images, texts, model, long_text, half, timeout))

    def upload(self, images: Iterable[Image], *, timeout: float | None = None) -> list[ImageDigest | SightlineError]:
        """Store images in the service, so that requests can name them; images that it has are not sent again.

        The service keeps them until it needs the space for others. Only one of several replicas gets them.

        Returns:
            [N] the digest of each image, or why it could not be stored.

        Raises:
            SightlineError: a request failed.
        """
        return self._run(self._upload(images, timeout))

    def list_models(self, *, timeout: float | None = None) -> Models:
        """The models of the service, and what a request may hold. Raises SightlineError."""
        return self._run(self._list_models(timeout))
