"""Recipe: everything that defines a run, as data.

A recipe is read from YAML, overridden by `key.subkey=value` flags, checked (unknown keys are refused) and then
frozen. The resolved recipe is written into the run directory, so a run can always be told what it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from sightline_chassis.settings import Section, SettingsError, SettingsRead, read_settings
from sightline_chassis.shipped import model_place

from sightline_trainer.candidates import CANDIDATES
from sightline_trainer.contradictions import contradictions
from sightline_trainer.pairs import FILTERS, RULES
from sightline_trainer.parts import Parts, parts_of
from sightline_trainer.places import located
from sightline_trainer.rewards import REWARDS
from sightline_trainer.sections import Data, Dpo, Evaluation, Publication, RewardService, Sampling

if TYPE_CHECKING:
    Candidates = Parts
    Terms = Parts
    Filters = Parts
    Pairing = Parts
else:
    Candidates = parts_of("Candidates", CANDIDATES)
    Terms = parts_of("Terms", REWARDS)
    Filters = parts_of("Filters", FILTERS)
    Pairing = parts_of("Pairing", RULES)


class Reward(RewardService):
    """What a candidate is worth: the sum of its terms. The scorer is asked for CLIPScores."""

    terms: Terms = Field(
        default_factory=lambda: Terms.model_validate({"clip": {}}),
        description="Terms of the reward, each with its weight; false leaves one out, none at all is 0 for everybody.",
    )
    combine: Literal["sum", "rank"] = Field(
        "sum", description="Sum of weighted values, or of weighted ranks (0..100) among a prompt's candidates (CSR)."
    )


class Recipe(Section):
    """A run: `iterations` times sample, score, pair, update, publish, evaluate."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=80, description="The method's name.")
    description: str = Field("", description="One line for people.")
    seed: int = Field(0, ge=0, description="Seed of prompts, candidates and updates.")
    iterations: int = Field(3, ge=1, description="Rounds of the loop.")
    model: str = Field(description="The base LVLM: a Hugging Face folder or name, or playground:llava.")
    threads: int = Field(2, ge=1, description="Torch threads of the update on a CPU.")
    data: Data
    sampling: Sampling = Field(default_factory=Sampling)
    candidates: Candidates = Field(
        default_factory=lambda: Candidates.model_validate({"policy": {}}), description="Who writes candidates."
    )
    reward: Reward = Field(default_factory=Reward)
    filters: Filters = Field(
        default_factory=lambda: Filters.model_validate({"finished": {}, "length": {}, "gap": {}}),
        description="Which candidates and pairs are good enough to learn from.",
    )
    pairing: Pairing = Field(
        default_factory=lambda: Pairing.model_validate({"best_worst": {}}),
        description="How chosen and rejected are picked from the candidates of one prompt.",
    )
    dpo: Dpo = Field(default_factory=Dpo)
    publication: Publication = Field(default_factory=Publication)
    evaluation: Evaluation = Field(default_factory=Evaluation)

    @property
    def base_model(self) -> str:
        """The base LVLM as transformers takes it: a folder or a name on the hub.

        Raises:
            NotFound: the playground has no such model, or is not installed.
        """
        return model_place(self.model)

    @model_validator(mode="after")
    def _extrapolates_an_adapter(self) -> Recipe:
        if self.publication.extrapolate and self.dpo.train != "lora":
            raise ValueError("publication.extrapolate scales a LoRA: set dpo.train to lora, or leave it at 0")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = (), *, environment: bool = True) -> Recipe:
    """Read a recipe file and apply `key.subkey=value` overrides; see `read_recipe`."""
    return read_recipe(path, overrides, environment=environment).settings


def read_recipe(path: Path, overrides: Sequence[str] = (), *, environment: bool = True) -> SettingsRead[Recipe]:
    """A recipe, and where each value came from.

    Args:
        environment: whether SIGHTLINE_RECIPE__ variables of this process have a say.

    Raises:
        SettingsError: the file can't be read, a key is unknown, a value is out of bounds, or keys contradict each
            other; says which and why.
    """
    read = read_settings(Recipe, service="recipe", config=path, overrides=overrides, environment=environment)
    # A run's own recipe.yaml names paths of the run, whose directory is the file's.
    recipe = Recipe.model_validate(located(read.settings.model_dump(mode="json"), path.parent))
    faults = contradictions(
        recipe.candidates.chosen(),
        recipe.reward.terms.chosen(),
        recipe.filters.chosen(),
        recipe.pairing.chosen(),
        recipe.dpo,
    )
    if message := "; ".join(faults):
        raise SettingsError(f"{path}: {message}")
    return dataclasses.replace(read, settings=recipe)
