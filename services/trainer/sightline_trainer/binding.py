"""Binding: which results of a run a recipe defines, stage by stage, and so which results stay when it changes.

What changes neither pairs, policies nor measurements (addresses, threads, timeouts, more iterations) binds nothing.
What defines candidates or their rewards binds the whole run. A change further down redoes the stages from there on:
what they made is moved into `replaced/` and made again, with what came before it kept.
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
    # These two losses need a column of the pairs.
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
    """Dotted key -> both values, of all keys whose values differ; a value that is not there is None."""
    here, there = dict(_leaves(one)), dict(_leaves(other))
    keys = dict.fromkeys([*here, *there])
    return {key: (here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)}


def bound_by(key: str) -> Bound:
    """The first stage whose results the key defines."""
    if _below(key, *_FREE):
        return "free"
    return next((stage for prefix, stage in _BOUND if _below(key, prefix)), "sample")


def obsolete(iterations: Path, changed: set[Bound], *, ahead: bool) -> Iterator[Path]:
    """What stands under `iterations` and would come out otherwise now; files, or whole iterations.

    Args:
        changed: stages that a changed key defines.
        ahead: whether the second iteration is sampled by the base model too (sampling.staleness).
    """
    own = 2 if ahead else 1  # iterations whose candidates no policy of this run wrote
    first = next((stage for stage in ("pair", "update") if stage in changed), None)
    for directory in sorted(iterations.glob("[0-9]*")):
        number = int(directory.name)
        if first and number > own and _any_update(iterations):
            yield directory  # sampled from a policy that is replaced
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
