"""The sampler's own metrics, in prometheus_client's default registry beside those of the chassis."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram
from sightline.sampler.types import Arrival

GENERATIONS = Counter("sightline_sampler_generations_total", "Candidates finished.", ("finish_reason",))
TOKENS = Counter(
    "sightline_sampler_tokens_total", "Tokens: of prompts (image tokens included), and sampled.", ("kind",)
)
OUTPUT_TOKENS = Histogram(
    "sightline_sampler_output_tokens",
    "Tokens per candidate.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
)
CANDIDATES = Histogram(
    "sightline_sampler_candidates_per_prompt", "Requested candidates (K).", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
DUPLICATES = Counter(
    "sightline_sampler_duplicate_candidates_total", "Candidates with the same text as an earlier one of their request."
)
FIRST_TOKEN = Histogram(
    "sightline_sampler_first_candidate_seconds",
    "From the request to its first finished candidate.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
STEP_ROWS = Histogram(
    "sightline_sampler_step_rows",
    "Candidates per decoding step.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
ROWS = Gauge("sightline_sampler_rows", "Candidates being decoded.")
WAITING = Gauge("sightline_sampler_waiting_prompts", "Waiting prompts.")
POLICY_VERSION = Gauge("sightline_sampler_policy_version", "The active policy.")
POLICY_LOADED = Gauge("sightline_sampler_policy_loaded_timestamp_seconds", "When the active policy was activated.")
POLICIES = Gauge("sightline_sampler_policies_loaded", "Policies loaded, the base model included.")
SWAPS = Counter("sightline_sampler_policy_swaps_total", "Policies staged, activated and retired.", ("step", "outcome"))
SWAP_SECONDS = Histogram(
    "sightline_sampler_policy_swap_seconds",
    "Time to stage, activate or retire a policy.",
    ("step",),
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

PAUSED = Gauge("sightline_sampler_paused", "Whether a pause was requested.")
STALE = Counter(
    "sightline_sampler_stale_responses_total",
    "Answers of an engine that did not come from the requested policy, and were discarded.",
)
DROPPED = Counter(
    "sightline_sampler_redrawn_candidates_total",
    "Candidates that contained an image placeholder and were sampled again with another seed.",
)
ARRIVALS = Counter("sightline_sampler_arrivals_total", "Policies examined by probes.", ("outcome",))
ARRIVAL_GAP = Gauge(
    "sightline_sampler_arrival_gap", "Mean |log-prob difference| a token to the trainer, of the last policy examined."
)
ARRIVAL_MOVED = Gauge(
    "sightline_sampler_arrival_moved", "Mean |log-prob change| a token of the engine, of the last policy examined."
)
ARRIVAL_CORRELATION = Gauge(
    "sightline_sampler_arrival_correlation",
    "Correlation of the engine's change with the trainer's, of the last policy examined; NaN if unknown.",
)

STEPS = ("stage", "activate", "retire")

for _reason in ("eos", "length", "stop", "aborted"):  # exported at 0 from the start
    GENERATIONS.labels(_reason)
for _outcome in ("passed", "failed"):
    ARRIVALS.labels(_outcome)
for _kind in ("prompt", "output"):
    TOKENS.labels(_kind)
for _step in STEPS:
    SWAP_SECONDS.labels(_step)
    for _outcome in ("ok", "refused", "failed"):
        SWAPS.labels(_step, _outcome)


def count_arrival(arrival: Arrival) -> None:
    """Export the result of a policy's probes."""
    ARRIVALS.labels("passed" if arrival.passed else "failed").inc()
    ARRIVAL_GAP.set(arrival.gap)
    ARRIVAL_MOVED.set(arrival.moved)
    ARRIVAL_CORRELATION.set(float("nan") if arrival.correlation is None else arrival.correlation)
