"""Which results of a run depend on which keys of the recipe, and so which are kept when a key changes.

Keys that do not affect pairs, policies or measurements (addresses, threads, timeouts, more iterations) may change
freely. Keys that define candidates or their rewards must not change during a run. A change to a later stage repeats the
stages from there on: their results are moved to `replaced/` and made again; earlier results are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

Bound = Literal["free", "sample", "pair", "update", "evaluate"]

_FREE: Final = (
    "name", "description", "iterations", "threads",
    "sampling.address", "sampling.max_in_flight", "sampling.timeout_seconds", "sampling.rests",
    "reward.address", "reward.max_in_flight", "reward.timeout_seconds",
    "candidates.injected.address", "candidates.injected.url", "candidates.injected.timeout_seconds",
    "filters.text_in_image.timeout_seconds",
    "dpo.launch", "dpo.report_to", "dpo.image_cache_mib", "dpo.batch_tokens", "dpo.checkpoint_seconds",
    "services",
    "publication.keep", "publication.probes", "publication.max_probe_gap",
)  # fmt: skip
_BOUND: Final[tuple[tuple[str, Bound], ...]] = (
    ("candidates.buffer", "pair"),
    ("filters", "pair"),
    ("pairing", "pair"),
    # These two losses need a column in the pairs.
    ("dpo.loss.optimism", "pair"),
    ("dpo.loss.rpo", "pair"),
    ("dpo", "update"),
    ("publication", "update"),
    ("data.test", "evaluate"),
    ("evaluation", "evaluate"),
)

_EVALUATED: Final = (
    "evaluation.json", "captions.parquet", "greedy.parquet", "answers.parquet", "by_image.json", "against_base.json",
)  # fmt: skip
_UPDATED: Final = ("update.json", "publish.json", *_EVALUATED)
_PAIRED: Final = ("pairs.parquet", "pairs.json", *_UPDATED)
MADE_BY: Final[Mapping[Bound, tuple[str, ...]]] = {"pair": _PAIRED, "update": _UPDATED, "evaluate": _EVALUATED}
"""Files of an iteration that a change makes obsolete."""


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> both values, for all keys whose values differ; a missing value is None."""
    here, there = dict(_leaves(one)), dict(_leaves(other))
    keys = dict.fromkeys([*here, *there])
    return {key: (here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)}


def bound_by(key: str) -> Bound:
    """The first stage whose results depend on the key."""
    if _below(key, *_FREE):
        return "free"
    return next((stage for prefix, stage in _BOUND if _below(key, prefix)), "sample")


def obsolete(iterations: Path, changed: set[Bound], *, ahead: bool) -> Iterator[Path]:
    """The results under `iterations` that would now differ: files, or whole iterations.

    Args:
        changed: stages with a changed key.
        ahead: whether the base model samples the second iteration too (sampling.staleness).
    """
    own = 2 if ahead else 1  # iterations whose candidates were not sampled by a policy of this run
    first = next((stage for stage in ("pair", "update") if stage in changed), None)
    for directory in sorted(iterations.glob("[0-9]*")):
        number = int(directory.name)
        if first and number > own and _any_update(iterations):
            yield directory  # sampled by a policy that is replaced
            continue
        stage: Bound | None = first if first and number else "evaluate" if "evaluate" in changed else None
        if stage is not None:
            yield from (path for name in MADE_BY[stage] if (path := directory / name).exists())


def _any_update(iterations: Path) -> bool:
    return any(iterations.glob("*/update.json"))


def _below(key: str, *prefixes: str) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
