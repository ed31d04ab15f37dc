"""Many items through one client, with deduplicated images; sightline.many keeps the order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from sightline.errors import NotFound, SightlineError
from sightline.many import row_of
from sightline.scorer.types import ScoreResult, score_result
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.wire import Image, ScoreOptions, digest_of, image_message, score_request

_INLINE_BYTES = 4096  # below this, asking by digest costs more than it saves
_REMEMBERED = 100_000  # digests, 32 bytes each

Pair: TypeAlias = tuple[Image, Sequence[str]] | tuple[Image, Sequence[str], Sequence[Sequence[str]] | None]
"""An image, the texts to compare with it, and optionally the phrases of each text."""

Outcome: TypeAlias = ScoreResult | SightlineError
"""The outcome of one item: its scores, or why there are none. A failure is never a number."""


class ScoreItem:
    """One pair, ready to send. If it cannot be sent, `outcome` holds the error already."""

    def __init__(self, pair: Pair, options: ScoreOptions) -> None:
        self.outcome: SightlineError | None = None
        self.content = self.digest = b""
        try:
            image, texts, *phrases = row_of(pair, "(image, texts) or (image, texts, phrases)")
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
        """The outcome in an answer."""
        try:
            return score_result(response, self.inline.kind)
        except SightlineError as error:
            return error


class Known:
    """Which images the service has, as far as this client knows."""

    def __init__(self) -> None:
        self.stored: set[bytes] = set()
        self._seen: set[bytes] = set()

    def unknown(self, items: Sequence[ScoreItem]) -> list[bytes]:
        """The digests to ask for."""
        return [digest for digest in {item.digest: None for item in items} if digest and digest not in self.stored]

    def recurring(self, items: Sequence[ScoreItem], missing: set[bytes]) -> dict[bytes, bytes]:
        """The missing images that occur again and are worth an upload: content by digest."""
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


def group_of(max_in_flight: int) -> int:
    """How many items are read together, so that one FindMissingImages covers many of them."""
    return max(1, max_in_flight // 2)


def lost_image(error: SightlineError) -> bool:
    """Whether the service lacks a named image: it was evicted, or another replica has it."""
    return isinstance(error, NotFound) and error.reason == "IMAGE_NOT_FOUND"
