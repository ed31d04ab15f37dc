"""RunDirectory: the whole state of a run, as files.

    runs/<id>/
      recipe.yaml                  the resolved recipe; paths in the run are relative to it (run:data/...)
      run.json                     id, state, error and its reason, versions of the packages and of the picture rule
      events.jsonl                 what happened, for people and watchers
      dropped.json                 rows of the datasets that were left out, by reason; the first ones by name
      metrics.json                 one object per policy version, from the base model at version 0
      images/                      images that the dataset stores as bytes, by their SHA-256
      policies/v000001/            adapter + manifest.json (written last)
      iterations/0001/
        candidates/00000.parquet   K candidates of a shard of prompts, with token ids, log-probs, seed, version
        scores/00000.parquet       their rewards, one row for each candidate
        rollout.json               the policy that sampled, and how many iterations it is behind the trained one
        dropped/00000.json         prompts of a shard without answers, such as those with a damaged image, and
                                   candidates that the gate refused; update.json: pairs, evaluation.json: what was asked
        pairs.parquet              TRL's preference format, every side with its policy version
        pairs.json update.json publish.json
        seconds.json               wall time of the iteration, over all lives of the trainer
        evaluation.json            this policy's row of metrics.json
        captions.parquet           held-out captions; greedy.parquet, answers.parquet: the greedy ones, yes/no answers
        by_image.json              each image's contribution to each metric
        against_base.json          each metric's change against the base model, with its paired interval
      replaced/0001/               old results that a changed recipe made again

Every file is written under a temporary name, synced and renamed: files that exist are complete, and a killed run
continues from the last finished file. The directory can be moved, renamed and resumed from anywhere.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError
from sightline.errors import PreconditionFailed
from sightline.picture_rule import PICTURE_RULE
from sightline.sampler import read_manifest
from sightline_chassis.settings import SettingsError, read_yaml

from sightline_trainer.binding import Bound, bound_by, differences, obsolete
from sightline_trainer.files import damaged, read_json, sync_directory, write_json, write_whole
from sightline_trainer.open_parts import importing
from sightline_trainer.places import canonical, located, portable
from sightline_trainer.recipe import Recipe

State = Literal["queued", "running", "succeeded", "failed", "stopped"]


class RunDirectory:
    """Names the files of a run and keeps its state."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @property
    def id(self) -> str:
        return self.root.name

    @property
    def namespace(self) -> str:
        """The run id of its policies at a sampler: the run's name, and a part that is unique among runs of that
        name."""
        known = self.state().get("namespace", "")
        if not known:
            made = next((read_manifest(path).run_id for path in sorted(self.policies.glob("v[0-9]*"))), "")
            known = made or f"{self.id}-{uuid.uuid4().hex[:8]}"
            self._note(namespace=known)
        return str(known)

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def policies(self) -> Path:
        return self.root / "policies"

    def iteration(self, number: int) -> Path:
        return self.root / "iterations" / f"{number:04d}"

    def open(self, recipe: Recipe) -> str:
        """Make the directory, or resume its run: results that a changed recipe affects are moved to `replaced/` first,
        to be made again.

        Returns:
            The changes and the results to redo, for people; empty if all existing files are kept.

        Raises:
            PreconditionFailed: it holds a run of another recipe.
        """
        self.check(recipe)
        stages, changes = self._changed(recipe)
        iterations = self.root / "iterations"
        old = list(obsolete(iterations, stages, ahead=recipe.sampling.staleness > 0))
        if old:
            number = 1 + max((int(path.name) for path in (self.root / "replaced").glob("[0-9]*")), default=0)
            for path in [*old, *([self.metrics] if self.metrics.exists() else [])]:
                target = self.root / "replaced" / f"{number:04d}" / path.relative_to(self.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
            sync_directory(self.root)
        text = yaml.safe_dump(portable(recipe.model_dump(mode="json"), self.root), sort_keys=False)
        write_whole(self.root / "recipe.yaml", lambda aside: aside.write_text(text))
        return f"changed: {changes}; {len(old)} files are made again; the old ones are in replaced/" if old else ""

    def check(self, recipe: Recipe) -> None:
        """Check that the directory is free, or holds a run that this recipe can continue and that reads pictures as
        this trainer does.

        Raises:
            PreconditionFailed: it holds a run of another recipe, or of more iterations (the message names what
                differs), it was started with another rule for reading pictures, or its run.json is missing.
        """
        if self._begun() and not (self.root / "run.json").exists():
            raise PreconditionFailed(
                f"{self.root} has results but no run.json, which says how they were made: restore it from a copy, or "
                f"start a new run",
                reason="RUN_UNREADABLE",
            )
        rule = self.state().get("picture_rule", "")
        if self._begun() and rule != PICTURE_RULE:
            theirs = f"rule {rule}" if rule else "no named rule to read a picture, as by Sightline 0.1.0"
            raise PreconditionFailed(
                f"{self.root} was started with {theirs}, but this trainer reads pictures by rule {PICTURE_RULE}: "
                f"finish it with the release that started it, or start a new run",
                reason="PICTURE_RULE_DIFFERS",
            )
        self._changed(recipe)

    def _changed(self, recipe: Recipe) -> tuple[set[Bound], str]:
        """The stages that changed keys affect, and these keys with both values."""
        known = self.tree()
        if known is None:
            return set(), ""
        changed = differences(canonical(known, self.root), canonical(recipe.model_dump(mode="json"), self.root))
        bound = {key: bound_by(key) for key in changed}

        def named(*stages: Bound) -> str:
            return "; ".join(f"{key}: {changed[key][0]} -> {changed[key][1]}" for key in bound if bound[key] in stages)

        # A run that ended before its first file, as by a wrong path, has no candidates to protect.
        if named("sample") and self._begun():
            raise PreconditionFailed(
                f"{self.root} holds a run of another recipe: {named('sample')}. These define its candidates; name "
                "another run directory, or run this directory's recipe.yaml",
                reason="RUN_RECIPE_DIFFERS",
            )
        done = len(list((self.root / "iterations").glob("[0-9]*/publish.json")))
        if done > recipe.iterations:
            raise PreconditionFailed(
                f"{self.root} has done {done} iterations, and the recipe wants {recipe.iterations}; give "
                f"iterations={done} or more, or another run directory",
                reason="RUN_RECIPE_DIFFERS",
            )
        return set(bound.values()) - {"free"}, named("pair", "update", "evaluate")

    def tree(self) -> dict[str, Any] | None:
        """The resolved recipe of the run as plain values, with current paths; None before it was opened.

        Raises:
            DataCorrupted: recipe.yaml is damaged.
        """
        path = self.root / "recipe.yaml"
        if not path.exists():
            return None
        try:
            tree = read_yaml(path)
        except SettingsError as error:
            raise damaged(path, str(error).removeprefix(f"{path}: ")) from error
        if not tree:
            raise damaged(path, "it contains no recipe")
        if isinstance(dpo := tree.get("dpo"), dict) and "image_cache_mb" in dpo:  # written by 0.1.0
            dpo["image_cache_mib"] = dpo.pop("image_cache_mb")
        return located(tree, self.root)

    def recipe(self, parts: Collection[str] = ()) -> Recipe | None:
        """The resolved recipe of the run, or None before it was opened.

        Args:
            parts: third-party parts that may be imported (see `open_parts`); readers need none.

        Raises:
            DataCorrupted: recipe.yaml is damaged, or from a version with other keys.
        """
        tree = self.tree()
        try:
            with importing(parts):
                return None if tree is None else Recipe.model_validate(tree)
        except ValidationError as error:
            raise damaged(self.root / "recipe.yaml", _first(error)) from error

    def rows(self) -> list[Any]:
        """The content of metrics.json: one row for each policy, the base model's first.

        Raises:
            DataCorrupted: it is damaged.
        """
        return read_json(self.metrics) or []

    def evaluations(self) -> list[dict[str, float]]:
        """The metrics of each policy that was measured, the base model's first, also while the run works.

        Raises:
            DataCorrupted: a file is damaged.
        """
        found = sorted((self.root / "iterations").glob("[0-9]*/evaluation.json"))
        return [row for path in found if (row := read_json(path))]

    def set_state(self, state: State, **facts: object) -> None:
        """Record the run's state."""
        if not self._begun():
            facts = {"picture_rule": PICTURE_RULE, **facts}
        self._note(**{"error": "", "reason": "", **facts, "state": state, "updated": time.time()})

    def state(self) -> Mapping[str, Any]:
        """What run.json says."""
        return read_json(self.root / "run.json") or {}

    def _note(self, **facts: object) -> None:
        known = read_json(self.root / "run.json") or {"id": self.id, "created": time.time()}
        write_json(self.root / "run.json", {**known, **facts})

    def _begun(self) -> bool:
        return (self.root / "iterations").exists()

    def next_version(self, floor: int) -> int:
        """An unused policy version: above `floor` and above all in the directory."""
        used = [int(path.name[1:]) for path in self.policies.glob("v[0-9]*")]
        return max([floor, *used]) + 1


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    more = f", and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}{more}"[:300]
