"""The scorer's own metrics; the chassis has those that every service has."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from sightline_chassis import metrics

from sightline_scorer.triton.settings import TritonSettings

T = TypeVar("T")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

PAIRS = Counter("sightline_scorer_pairs_total", "Image-text pairs, by outcome (OK or the status code).", ("outcome",))
BATCH_TEXTS = Histogram(
    "sightline_scorer_batch_texts", "Texts of one request.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
)
SCORE = Histogram(
    "sightline_scorer_score", "CLIPScore of the scored pairs.", ("model",), buckets=tuple(range(0, 101, 5))
)
STAGE_SECONDS = Histogram(
    "sightline_scorer_stage_seconds",
    "Time of a request's stages, waiting included: decode (image to pixels), image and text (tokens, towers).",
    ("stage",),
    buckets=_SECONDS,
)
DECODE_FAILURES = Counter(
    "sightline_scorer_image_decode_failures_total", "Refused images, by the error's reason.", ("reason",)
)
NONFINITE = Counter(
    "sightline_scorer_nonfinite_total", "Embeddings that were not used because they were not finite or not of length 1."
)
MODEL_INFO = Gauge(
    "sightline_scorer_model_info",
    "Always 1; the labels describe each model.",
    ("model", "architecture", "weights_digest", "preprocessing_digest", "precision"),
)
TRITON_RESTARTS = Counter("sightline_scorer_triton_restarts_total", "Attempts to restart an embedded Triton.")
CACHE = Counter(
    "sightline_scorer_embeddings_total",
    "Requested embeddings: hit (cached), miss (computed), coalesced (being computed for another request).",
    ("model", "tower", "outcome"),
)
CACHE_BYTES = Gauge("sightline_scorer_cache_bytes", "Bytes of cached embeddings.", ("model", "tower"))
QUEUE = Gauge("sightline_scorer_queue_items", "Images or texts that wait for a batch.", ("model", "tower"))
BATCH = Histogram(
    "sightline_scorer_batch_items",
    "Images or texts of one batch sent to Triton.",
    ("tower",),
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
TRITON_CALLS = Counter(
    "sightline_scorer_triton_calls_total", "Batches sent to Triton, by the transport of their tensors.", ("transport",)
)
MODEL_VERSION = Gauge("sightline_scorer_model_version", "Version of each served model.", ("model",))
MODEL_UP = Gauge(
    "sightline_scorer_model_up",
    "Whether the last probe of each model's towers worked; models behind a sampler are not probed.",
    ("model",),
)
FETCHES = Counter(
    "sightline_scorer_fetches_total", "Images fetched by URI: OK, or the reason of the refusal.", ("outcome",)
)
STORE_BYTES = Gauge("sightline_scorer_image_store_bytes", "Bytes of stored uploaded images.")


_LIVING: dict[tuple[Gauge, tuple[str, str]], Sequence[weakref.ref[Any]]] = {}


def count(gauge: Gauge, labels: tuple[str, str], owner: T, number: Callable[[T], float]) -> None:
    """Show a number of the owner at each scrape; of several owners, such as two versions of a model, the sum."""
    key = gauge, labels
    # A new list each time: scrapes read it from another thread.
    _LIVING[key] = [ref for ref in _LIVING.get(key, ()) if ref() is not None] + [weakref.ref(owner)]
    gauge.labels(*labels).set_function(lambda: sum(number(each) for ref in _LIVING[key] if (each := ref()) is not None))


def backend_label(settings: TritonSettings) -> str:
    """Name of the towers' backend in the chassis' metrics."""
    return "worker" if settings.mode == "worker" else "triton"


def backend_up(settings: TritonSettings) -> Gauge:
    """Whether Triton, or the worker, answers with right embeddings."""
    return metrics.BACKEND_UP.labels(backend_label(settings))


OUTCOMES = (
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "INTERNAL",
)
DECODE_REASONS = (
    *("IMAGE_EMPTY", "IMAGE_TOO_LARGE", "IMAGE_TOO_MANY_PIXELS", "IMAGE_TOO_THIN", "IMAGE_UNREADABLE", "IMAGE_DAMAGED"),
)


def preregister() -> None:
    """Export every outcome at 0 from the start, so that `rate()` sees the first of each kind."""
    for outcome in OUTCOMES:
        PAIRS.labels(outcome)
    for reason in DECODE_REASONS:
        DECODE_FAILURES.labels(reason)
    for stage in ("decode", "image", "text"):
        STAGE_SECONDS.labels(stage)
