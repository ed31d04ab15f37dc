"""Convert callers' arguments to messages for the wire."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from sightline.convert import enum_numbers
from sightline.errors import InvalidInput, SightlineError, from_code
from sightline.pictures import Picture, image_bytes
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.texts import checked_text

PIECE_BYTES = 256 * 1024
"""Bytes of a piece of an upload; large messages stall the service's event loop."""

_REQUEST_BYTES = 16 * 1024 * 1024
_UPLOAD_IMAGES = 256
_EMBED_IMAGES = 16
_EMBED_TEXTS = 256

LongText: TypeAlias = Literal["sentences", "reject"]
"""What to do with a text longer than the model's window: score its sentences, or refuse it. Never cut it silently."""

Kind: TypeAlias = Literal["default", "cosine", "clip_score", "logit", "probability", "percentile", "reward"]
"""The kind of score in `ScoreResult.value`. "default" is the model's own: CLIPScore, or a reward."""

Unit: TypeAlias = Literal["whole", "sentences", "phrases"]
"""Which parts of a text are scored; "phrases" are the caller's, in addition to the whole text."""

Aggregation: TypeAlias = Literal["mean", "min", "sum"]
"""How the scores of a text's parts are combined into the text's score."""

_LONG_TEXTS = enum_numbers(pb.LongText.DESCRIPTOR)
_KINDS = {"default": int(pb.SCORE_KIND_UNSPECIFIED), **enum_numbers(pb.ScoreKind.DESCRIPTOR)}
_UNITS = enum_numbers(pb.TextUnit.DESCRIPTOR)
_AGGREGATIONS = enum_numbers(pb.Aggregation.DESCRIPTOR)


class ScoreOptions(TypedDict, total=False):
    """How texts are scored; each has a default."""

    model: str
    """A name from `list_models()`; empty (the default) means the service's default model."""
    kind: Kind
    """The kind of score in `ScoreResult.value`; default "default"."""
    unit: Unit
    """Which parts of each text are scored; default "whole", or "phrases" if phrases are given."""
    aggregation: Aggregation
    """How the parts' scores are combined; default "mean"."""
    long_text: LongText
    """What to do with a text longer than the model's window; default "sentences"."""


@dataclass(frozen=True, slots=True)
class ImageDigest:
    """An image that the service has already, named by the SHA-256 of its file.

    Raises InvalidInput if it is not 64 hexadecimal digits.
    """

    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise InvalidInput(
                f"{self.sha256[:80]!r} is not an SHA-256: give its 64 hexadecimal digits", reason="DIGEST_MALFORMED"
            )


@dataclass(frozen=True, slots=True)
class ImageUri:
    """An image that the service fetches, if its settings allow that scheme and host."""

    uri: str


Image: TypeAlias = Picture | ImageDigest | ImageUri
"""An encoded image, its path, or a Pillow picture (see `Picture`); the digest of an image that the service has, or the
URI of one that it fetches."""


def image_message(image: Image) -> pb.Image:
    """The image for the wire. Raises InvalidInput."""
    if isinstance(image, ImageDigest):
        return pb.Image(sha256=bytes.fromhex(image.sha256))
    if isinstance(image, ImageUri):
        return pb.Image(uri=image.uri)
    return pb.Image(content=image_bytes(image, "bytes, a path, a Pillow picture, an ImageDigest or an ImageUri"))


def several(images: Iterable[Image]) -> Iterable[Image]:
    """The images. Raises InvalidInput if they are a single one."""
    if isinstance(images, str | bytes | bytearray | memoryview) or not isinstance(images, Iterable):
        raise InvalidInput(f"images is a {type(images).__name__}: give a list of images", reason="IMAGES_NOT_A_LIST")
    return images


def score_request(
    image: pb.Image, texts: Sequence[str], phrases: Sequence[Sequence[str]] | None, options: ScoreOptions
) -> pb.ScoreRequest:
    """A request. Raises InvalidInput for arguments that do not fit."""
    if unknown := set(options) - set(ScoreOptions.__annotations__):
        raise InvalidInput(
            f"unknown option {', '.join(sorted(unknown))}: known are {', '.join(ScoreOptions.__annotations__)}",
            reason="OPTION_UNKNOWN",
        )
    found = text_list(texts)
    request = pb.ScoreRequest(
        image=image,
        texts=found,
        model=_model_name(options.get("model", "")),
        long_text=_choice("long_text", options.get("long_text", "sentences"), _LONG_TEXTS),
        kind=_choice("kind", options.get("kind", "default"), _KINDS),
        unit=_choice("unit", options.get("unit", "whole" if phrases is None else "phrases"), _UNITS),
        aggregation=_choice("aggregation", options.get("aggregation", "mean"), _AGGREGATIONS),
    )
    if phrases is not None:
        if isinstance(phrases, str) or not isinstance(phrases, Sequence):
            raise InvalidInput(
                f"phrases is a {type(phrases).__name__}: give a list of strings for each text",
                reason="PHRASES_MISMATCH",
            )
        if len(phrases) != len(found):
            raise InvalidInput(
                f"{len(phrases)} lists of phrases for {len(found)} texts: give one for each text, empty if it has none",
                reason="PHRASES_MISMATCH",
            )
        request.phrases.extend(pb.Phrases(phrases=text_list(some, "phrases")) for some in phrases)
    return request


def _model_name(value: object) -> str:
    if not isinstance(value, str) or not value.isascii():
        raise InvalidInput(f"model is {value!r}, not the name of one: see list_models()", reason="MODEL_UNKNOWN")
    return value


def _choice(name: str, value: object, known: Mapping[str, int]) -> Any:
    if not isinstance(value, str) or value not in known:
        raise InvalidInput(f"{name} is {value!r}: one of {', '.join(known)}", reason=f"{name.upper()}_UNKNOWN")
    return known[value]


def text_list(texts: Sequence[str], name: str = "texts") -> list[str]:
    """The texts. Raises InvalidInput if protobuf cannot carry one."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        what = "one string" if isinstance(texts, str) else f"a {type(texts).__name__}"
        raise InvalidInput(f"{name} is {what}: give a list of strings", reason="TEXTS_NOT_A_LIST")
    return [checked_text(text, f"{name}[{index}]") for index, text in enumerate(texts)]


def upload_pieces(images: Iterable[tuple[bytes, bytes]]) -> Iterator[pb.UploadImagesRequest]:
    """Images as (SHA-256, content), in pieces."""
    for sha256, content in images:
        starts = range(0, max(1, len(content)), PIECE_BYTES)
        for start in starts:
            yield pb.UploadImagesRequest(
                sha256=sha256 if start == 0 else b"",
                chunk=content[start : start + PIECE_BYTES],
                last=start == starts[-1],
            )


def upload_batches(contents: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Contents in batches, one for each upload."""
    batch: list[bytes] = []
    size = 0
    for content in contents:
        if batch and (len(batch) >= _UPLOAD_IMAGES or size + len(content) > _REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(content)
        size += len(content)
    if batch:
        yield batch


def upload_outcomes(response: pb.UploadImagesResponse) -> dict[bytes, SightlineError]:
    """The errors of images that were not stored."""
    return {one.sha256: item_error(one.error) for one in response.outcomes if one.HasField("error")}


def embed_requests(
    images: Iterable[pb.Image], texts: Iterable[str], *, model: str, long_text: LongText, half: bool
) -> Iterator[pb.EmbedRequest]:
    """Requests of bounded size; at least one, so that the service itself refuses an empty call. Raises InvalidInput."""

    def fresh() -> pb.EmbedRequest:
        return pb.EmbedRequest(
            model=_model_name(model),
            long_text=_choice("long_text", long_text, _LONG_TEXTS),
            format=pb.EMBEDDING_FORMAT_FLOAT16 if half else pb.EMBEDDING_FORMAT_FLOAT32,
        )

    request, size, sent = fresh(), 0, False
    for message in images:
        if request.images and (len(request.images) >= _EMBED_IMAGES or size + len(message.content) > _REQUEST_BYTES):
            yield request
            request, size, sent = fresh(), 0, True
        request.images.append(message)
        size += len(message.content)
    rest = list(texts)
    while rest or request.images or not sent:
        request.texts.extend(rest[:_EMBED_TEXTS])
        rest = rest[_EMBED_TEXTS:]
        yield request
        request, sent = fresh(), True


def item_error(error: pb.ItemError) -> SightlineError:
    """The typed error of one item."""
    return from_code(
        error.code,
        error.message,
        reason=error.reason or None,
        metadata=dict(error.metadata),
        retry_after=error.retry_after_seconds or None,
    )


def digest_of(content: bytes) -> bytes:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(content).digest()
