"""Recipe: everything that defines a run, as data.

A recipe is read from YAML, overridden by `key.subkey=value` flags, checked (unknown keys are refused) and then
frozen. The resolved recipe is written into the run directory, so a run can always be told what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from sightline_chassis.settings import Section, load_settings

from sightline_trainer.candidates import CANDIDATES
from sightline_trainer.pairs import FILTERS, RULES
from sightline_trainer.parts import Parts, parts_of
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
    model: str = Field(description="The base LVLM: a Hugging Face folder or name.")
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

    @model_validator(mode="after")
    def _extrapolates_an_adapter(self) -> Recipe:
        if self.publication.extrapolate and self.dpo.train != "lora":
            raise ValueError("publication.extrapolate scales a LoRA: set dpo.train to lora, or leave it at 0")
        return self

    def identity(self) -> dict[str, Any]:
        """What makes a run this run: everything but where its services happen to listen."""
        tree = self.model_dump(mode="json")
        del tree["sampling"]["address"], tree["reward"]["address"]
        return tree


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key.subkey=value` overrides.

    Raises:
        SettingsError: the file can't be read, a key is unknown or a value is out of bounds; says which and why.
    """
    return load_settings(Recipe, service="recipe", config=path, overrides=overrides)
