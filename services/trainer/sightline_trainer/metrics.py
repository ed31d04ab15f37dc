"""A run's metrics for Prometheus. docs/monitoring.md explains each metric."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from sightline.errors import Cancelled, SightlineError

STAGES = ("sample", "pair", "update", "publish", "evaluate")
ROLES = ("chosen", "rejected")

ITERATION = Gauge("sightline_trainer_iteration", "Current iteration, from 1; 0 before the first.")
RUNNING = Gauge("sightline_trainer_running", "1 while a run is in progress.")
POLICY_VERSION = Gauge("sightline_trainer_policy_version", "Newest trained policy.")
PUBLISHED_VERSION = Gauge("sightline_trainer_published_version", "Newest policy that arrived at the sampler.")
LAST_CHECKPOINT = Gauge("sightline_trainer_last_checkpoint_timestamp_seconds", "When a policy was last written.")
HEARTBEAT = Gauge("sightline_trainer_heartbeat_timestamp_seconds", "When the loop last made progress.")
PENDING = Gauge(
    "sightline_trainer_pending_sample_requests", "Prompts whose candidates are still to come from the sampler."
)
PHASE = Gauge("sightline_trainer_phase", "1 for the current stage.", ["phase"])
PHASE_SECONDS = Histogram(
    "sightline_trainer_phase_seconds", "Seconds of each stage.", ["phase"], buckets=(1, 3, 10, 30, 100, 300, 1000, 3600)
)
FAILURES = Counter(
    "sightline_trainer_failures_total", "Stages that failed, by the reason of the error.", ["phase", "reason"]
)

PAIRS = Counter(
    "sightline_trainer_pairs_total", "Pairs kept; rows, prompts, candidates and pairs left out, by reason.", ["outcome"]
)
REWARD = Histogram(
    "sightline_trainer_reward", "Rewards of the pairs' sides (CLIPScore).", ["role"], buckets=tuple(range(0, 101, 5))
)
RESPONSE_TOKENS = Histogram(
    "sightline_trainer_response_tokens",
    "Tokens of the pairs' sides.",
    ["role"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
)
LAG = Histogram(
    "sightline_trainer_pair_policy_lag",
    "Version of the policy that is trained minus the version that sampled the pair.",
    buckets=(0, 1, 2, 3, 5, 10, 20, 50),
)

STEPS = Counter("sightline_trainer_steps_total", "Optimiser steps.")
LOSS = Gauge("sightline_trainer_loss", "Mean loss over the last quarter of the last update.")
REWARD_MARGIN = Gauge("sightline_trainer_reward_margin", "DPO's implicit reward, chosen minus rejected.")
ACCURACY = Gauge("sightline_trainer_preference_accuracy_ratio", "Share of pairs whose chosen side the policy prefers.")
CHOSEN_LOGP = Gauge("sightline_trainer_chosen_logp", "Log-prob of chosen responses, in nats a response.")
REJECTED_LOGP = Gauge("sightline_trainer_rejected_logp", "Log-prob of rejected responses, in nats a response.")
KL = Gauge(
    "sightline_trainer_kl",
    "KL of the newest policy from the base model, on its own held-out samples (estimator k3), in nats a response.",
)
GRAD_NORM = Gauge("sightline_trainer_grad_norm", "Norm of the gradient before clipping.")
ARRIVAL_GAP = Gauge(
    "sightline_trainer_arrival_gap", "Mean |log-prob difference| a token between sampler and trainer at the arrival."
)

EVALUATION = Gauge("sightline_trainer_eval_score", "Held-out metrics of the newest policy.", ["benchmark"])
BASE_EVALUATION = Gauge("sightline_trainer_eval_base_score", "The same for the base model.", ["benchmark"])

_UPDATE = {
    "loss": LOSS,
    "margin": REWARD_MARGIN,
    "accuracy": ACCURACY,
    "chosen_logp": CHOSEN_LOGP,
    "rejected_logp": REJECTED_LOGP,
    "grad_norm": GRAD_NORM,
}

for _stage in STAGES:  # exported at 0 from the start: otherwise `rate()` would miss the first of each
    PHASE.labels(_stage)
    PHASE_SECONDS.labels(_stage)
for _role in ROLES:
    REWARD.labels(_role)
    RESPONSE_TOKENS.labels(_role)
PAIRS.labels("kept")
for _stage, _reason in (
    ("update", "LOSS_NOT_FINITE"),
    ("publish", "POLICY_DID_NOT_ARRIVE"),
    ("publish", "POLICY_NOT_ACTIVE"),
):
    FAILURES.labels(_stage, _reason)


@contextmanager
def run() -> Iterator[None]:
    """Mark a run as in progress."""
    RUNNING.set(1)
    HEARTBEAT.set_to_current_time()
    try:
        yield
    finally:
        RUNNING.set(0)
        PENDING.set(0)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark `name` as the current stage, measure it, and count its failure."""
    PHASE.labels(name).set(1)
    started = time.monotonic()
    try:
        yield
    except Cancelled:
        raise
    except Exception as error:
        FAILURES.labels(name, error.reason if isinstance(error, SightlineError) else "UNEXPECTED").inc()
        raise
    finally:
        PHASE.labels(name).set(0)
        PHASE_SECONDS.labels(name).observe(time.monotonic() - started)


def heartbeat(stage: str, done: int, total: int) -> None:
    """The loop made progress; while it samples, `done` of `total` prompts have their candidates."""
    HEARTBEAT.set_to_current_time()
    PENDING.set(total - done if stage in ("sample", "evaluate") else 0)


def begin_iteration(number: int, parent: int) -> None:
    """An iteration begins with policy `parent`."""
    ITERATION.set(number)
    POLICY_VERSION.set(parent)
    PUBLISHED_VERSION.set(parent)


def observed(rows: Iterable[dict[str, Any]], version: int) -> Iterator[dict[str, Any]]:
    """Pass pairs on and export their rewards, lengths and age; `version` is the policy that learns from them."""
    for row in rows:
        for role in ROLES:
            if row[f"{role}_reward"] is not None:
                REWARD.labels(role).observe(row[f"{role}_reward"])
            RESPONSE_TOKENS.labels(role).observe(len(row[f"{role}_ids"] or ()))
        sampled = [row[f"{role}_policy_version"] for role in ROLES]
        LAG.observe(version - min((of for of in sampled if of is not None), default=version))
        yield row


def count_left_out(what: str, counts: Mapping[str, int]) -> None:
    """Add rows that were left out: `row` of a dataset, `pair` at an update's start, `held_out` of an evaluation."""
    for reason, count in counts.items():
        PAIRS.labels(f"{what}_{reason.lower()}").inc(count)


def count_pairs(counts: Mapping[str, int]) -> None:
    """Add an iteration's outcomes."""
    for outcome, count in counts.items():
        PAIRS.labels("kept" if outcome == "pairs" else outcome).inc(count)


def record_update(version: int, values: Mapping[str, float]) -> None:
    """Export the metrics of the last update."""
    POLICY_VERSION.set(version)
    LAST_CHECKPOINT.set_to_current_time()
    STEPS.inc(values.get("steps", 0.0))
    for name, gauge in _UPDATE.items():
        if name in values:
            gauge.set(values[name])


def record_arrival(version: int, gap: float) -> None:
    """A policy arrived at the sampler."""
    PUBLISHED_VERSION.set(version)
    ARRIVAL_GAP.set(gap)


def record_evaluation(version: int, values: Mapping[str, float]) -> None:
    """Export the held-out metrics of a policy, without their intervals; version 0 is the base model."""
    for name, value in values.items():
        if name.endswith(("_low", "_high")):
            continue
        EVALUATION.labels(name).set(value)
        if name == "kl_to_base":
            KL.set(value)
        if version == 0:
            BASE_EVALUATION.labels(name).set(value)
