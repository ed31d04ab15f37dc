"""RunDirectory: the whole state of a run, as files.

    runs/<id>/
      recipe.yaml                  the resolved recipe
      run.json                     id, state, error and its reason, versions of the packages and of the picture rule
      events.jsonl                 what happened, for people and watchers
      metrics.json                 one object per policy version, from the base model at version 0
      images/                      images that the dataset holds as bytes, by their SHA-256
      policies/v000001/            adapter + manifest.json (written last)
      iterations/0001/
        candidates/00000.parquet   K candidates of a shard of prompts, with token ids, log-probs, seed, version
        scores/00000.parquet       their rewards, one row for each candidate
        rollout.json               the policy that sampled, and how many iterations it is behind the one that learns
        dropped/00000.json         prompts of a shard that nobody could answer, such as those with a damaged image
        pairs.parquet              TRL's preference format, every side with its policy version
        pairs.json update.json publish.json
        seconds.json               wall time of the iteration, over all lives of the trainer
        evaluation.json            this policy's row of metrics.json
        captions.parquet           held-out captions; greedy.parquet, answers.parquet: the greedy ones, yes/no answers
        by_image.json              what each image adds to each metric
        against_base.json          each metric's change against the base model, with its paired interval

Every file is written aside, synced and renamed into place: what exists is whole, and a run that was killed goes on
from the last finished file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError
from sightline.errors import PreconditionFailed
from sightline.picture_rule import PICTURE_RULE
from sightline_chassis.settings import SettingsError, read_yaml

from sightline_trainer.files import read_json, write_json, write_whole
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

    def open(self, recipe: Recipe) -> None:
        """Make the directory, or go on with the run it holds.

        Raises:
            PreconditionFailed: it holds a run of another recipe.
        """
        self.check(recipe)
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
        write_whole(self.root / "recipe.yaml", lambda aside: aside.write_text(text))

    def check(self, recipe: Recipe) -> None:
        """See that the directory is free, or holds a run of this recipe that read its pictures as this trainer does.

        Raises:
            PreconditionFailed: it holds a run of another recipe, or one begun with another rule to read a picture.
        """
        rule = self.state().get("picture_rule", "")
        if self._begun() and rule != PICTURE_RULE:
            theirs = f"rule {rule}" if rule else "no named rule to read a picture, as by Sightline 0.1.0"
            raise PreconditionFailed(
                f"{self.root} was begun with {theirs}, and this trainer reads pictures by rule {PICTURE_RULE}: finish "
                "it with the release that began it, or start a new run",
                reason="PICTURE_RULE_DIFFERS",
            )
        known = self.recipe()
        if known is not None and known.identity() != recipe.identity():
            raise PreconditionFailed(
                f"{self.root} holds a run of another recipe or with other values; "
                "name another run directory, or run the recipe.yaml that stands in this one",
                reason="RUN_RECIPE_DIFFERS",
            )

    def recipe(self) -> Recipe | None:
        """The resolved recipe of the run, or None before it was opened.

        Raises:
            PreconditionFailed: RUN_UNREADABLE, it is none of this version.
        """
        path = self.root / "recipe.yaml"
        try:
            if not path.exists():
                return None
            tree = read_yaml(path)
            dpo = tree.get("dpo")
            if isinstance(dpo, dict) and "image_cache_mb" in dpo:  # as 0.1.0 wrote it
                dpo["image_cache_mib"] = dpo.pop("image_cache_mb")
            return Recipe.model_validate(tree)
        except (SettingsError, ValidationError) as error:
            told = str(error) if isinstance(error, SettingsError) else _first(error)
            raise PreconditionFailed(
                f"run {self.id!r}: its recipe.yaml cannot be read by this version ({told[:300]})",
                reason="RUN_UNREADABLE",
            ) from None

    def rows(self) -> list[Any]:
        """What metrics.json holds: one row for each policy, the base model's first."""
        return read_json(self.metrics) or []

    def set_state(self, state: State, **facts: object) -> None:
        """Record where the run stands."""
        known = read_json(self.root / "run.json") or {"id": self.id, "created": time.time()}
        if not self._begun():
            known = {**known, "picture_rule": PICTURE_RULE}
        said = {"error": "", "reason": "", **facts, "state": state, "updated": time.time()}
        write_json(self.root / "run.json", {**known, **said})

    def state(self) -> Mapping[str, Any]:
        """What run.json says."""
        return read_json(self.root / "run.json") or {}

    def _begun(self) -> bool:
        return (self.root / "iterations").exists()

    def next_version(self, floor: int) -> int:
        """A policy version that nobody used: over `floor` and over all that stand in the directory."""
        used = [int(path.name[1:]) for path in self.policies.glob("v[0-9]*")]
        return max([floor, *used]) + 1


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    more = f", and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}{more}"
