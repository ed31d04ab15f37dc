"""What Prometheus can know of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

STAGES = ("sample", "pair", "update", "publish", "evaluate")

ITERATION = Gauge("sightline_trainer_iteration", "Iteration under way, from 1; 0 before the first.")
POLICY_VERSION = Gauge("sightline_trainer_policy_version", "Newest policy that was trained.")
HEARTBEAT = Gauge("sightline_trainer_heartbeat_timestamp_seconds", "When the loop last made progress.")
PHASE = Gauge("sightline_trainer_phase", "1 for the stage under way.", ["phase"])
PHASE_SECONDS = Histogram(
    "sightline_trainer_phase_seconds", "Seconds of each stage.", ["phase"], buckets=(1, 3, 10, 30, 100, 300, 1000, 3600)
)
PAIRS = Counter("sightline_trainer_pairs_total", "Pairs kept, candidates and prompts dropped, by reason.", ["outcome"])
UPDATE = Gauge("sightline_trainer_update", "TRL's metrics of the last update.", ["metric"])
EVALUATION = Gauge("sightline_trainer_eval_score", "Held-out metrics of the newest policy.", ["benchmark"])


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Marks ``name`` as the stage under way and measures it."""
    PHASE.labels(name).set(1)
    started = time.monotonic()
    try:
        yield
    finally:
        PHASE.labels(name).set(0)
        PHASE_SECONDS.labels(name).observe(time.monotonic() - started)


def count_pairs(counts: Mapping[str, int]) -> None:
    """Adds an iteration's outcomes."""
    for outcome, count in counts.items():
        PAIRS.labels("kept" if outcome == "pairs" else outcome).inc(count)


def record_update(version: int, values: Mapping[str, float]) -> None:
    """Shows what the last update did."""
    POLICY_VERSION.set(version)
    for name, value in values.items():
        UPDATE.labels(name).set(value)


def record_evaluation(values: Mapping[str, float]) -> None:
    """Shows the newest held-out metrics."""
    for name, value in values.items():
        EVALUATION.labels(name).set(value)
