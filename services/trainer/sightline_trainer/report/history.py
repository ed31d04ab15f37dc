"""History: the content of a run's files, read once; it also works while the run continues."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import NotFound
from sightline.sampler import ManifestError, PolicyManifest, manifest_digest, policy_dirname, read_manifest

from sightline_trainer.dropped import DroppedRows, summary_of
from sightline_trainer.events import read_events
from sightline_trainer.files import damaged, read_json
from sightline_trainer.rollout import Rollout
from sightline_trainer.runs import RunDirectory

Row = dict[str, float]


@dataclass(frozen=True)
class PolicyEntry:
    """One policy of the run, with the digest of its manifest."""

    manifest: PolicyManifest
    digest: str


@dataclass(frozen=True)
class LeftOut:
    """Rows of one place that the run left out: a dataset, an iteration's sampling or update, an evaluation."""

    where: str
    summary: str


@dataclass(frozen=True)
class History:
    """A run, as recorded in its files.

    Attributes:
        rows: the metrics of each evaluation, the base model's first.
        updates: iteration -> the update's metrics.
        counts: iteration -> pairs kept, and drops by reason.
        seconds: iteration -> stage -> wall time, without the time between a kill and a restart.
        policies: by version, oldest first.
        left_out: unusable rows by place, counted by reason.
        label: the run's name on the page, if its directory's name is not enough.
    """

    run: RunDirectory
    recipe: dict[str, Any]
    state: dict[str, Any]
    rows: list[Row]
    updates: dict[int, Row] = field(default_factory=dict)
    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    policies: list[PolicyEntry] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    label: str = ""

    @classmethod
    def read(cls, directory: Path) -> History:
        """Read a run directory.

        Raises:
            NotFound: there is no run.
            DataCorrupted: one of its files is damaged.
        """
        run = RunDirectory(directory)
        path = run.root / "recipe.yaml"
        if not path.exists():
            raise NotFound(
                f"no run at {directory}: it has no recipe.yaml; `sightline run` and `sightline demo` make runs",
                reason="RUN_NOT_FOUND",
            )
        recipe = run.tree() or {}
        data = recipe.get("data")
        if not isinstance(data, dict) or not {"train", "test"} <= data.keys():
            raise damaged(path, "it does not name data.train and data.test")
        numbers = sorted(int(each.name) for each in (run.root / "iterations").glob("[0-9]*"))
        found = {number: run.iteration(number) for number in numbers}
        updates = {
            number: data["metrics"] for number, each in found.items() if (data := read_json(each / "update.json"))
        }
        counts = {number: data for number, each in found.items() if (data := read_json(each / "pairs.json"))}
        return cls(
            run=run,
            recipe=recipe,
            state=dict(run.state()),
            rows=run.evaluations(),
            updates=updates,
            counts=counts,
            seconds=_seconds(run.events),
            policies=_policies(run.policies),
            left_out=list(_left_out(run, numbers)),
        )

    @property
    def name(self) -> str:
        """The run's name on the page; by default its directory's name."""
        return self.label or self.run.id


def _policies(directory: Path) -> list[PolicyEntry]:
    policies = []
    for path in sorted(directory.glob("v[0-9]*")):
        try:
            manifest = read_manifest(path)
        except (ManifestError, OSError):
            continue  # being written
        if path.name == policy_dirname(manifest.version):
            policies.append(PolicyEntry(manifest, manifest_digest(path)))
    return sorted(policies, key=lambda policy: policy.manifest.version)


def _left_out(run: RunDirectory, numbers: list[int]) -> Iterator[LeftOut]:
    for key, found in (read_json(run.root / "dropped.json") or {}).items():
        yield LeftOut(key, summary_of(Counter(found["counts"]), found["rows"]))
    for number in numbers:
        directory = run.iteration(number)
        for what, place in (("sampling", directory), ("released pairs", directory / "released")):
            if rows := Rollout(place).dropped():
                yield LeftOut(f"iteration {number}, {what}", summary_of(Counter(row["reason"] for row in rows), rows))
        for name in ("update", "evaluation"):
            dropped = DroppedRows.read(directory / "dropped" / f"{name}.json")
            if dropped:
                yield LeftOut(f"iteration {number}, {name}", dropped.summary)


def _seconds(events: Path) -> dict[int, dict[str, float]]:
    """The time since the previous event counts for the next event's stage; a start restarts the clock."""
    spent: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    before: float | None = None
    for _, event in read_events(events):
        if event.stage not in ("start", "iteration", "end") and before is not None:
            spent[event.iteration][event.stage] += max(0.0, event.time - before)
        before = event.time
    return {number: dict(stages) for number, stages in spent.items()}


def when(seconds: float) -> str:
    """A time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
