"""Recipe: everything that defines a run, as data.

A recipe is read from YAML, overridden by `key.subkey=value` flags, checked (unknown keys are refused) and frozen. The
resolved recipe is written into the run directory, so every run records its own recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from sightline_chassis.settings import Section, SettingsError, SettingsRead, read_settings
from sightline_chassis.shipped import model_place

from sightline_trainer.candidates import CANDIDATES
from sightline_trainer.candidates.policy import PolicySamples
from sightline_trainer.candidates.source import CandidatePart
from sightline_trainer.contradictions import contradictions
from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.open_parts import ALL, importing
from sightline_trainer.pairs import FILTERS, RULES
from sightline_trainer.pairs.filter import FAULTS, FilterPart
from sightline_trainer.pairs.rule import RulePart
from sightline_trainer.parts import Kind, Parts, parts_of
from sightline_trainer.places import located
from sightline_trainer.rewards import REWARDS
from sightline_trainer.rewards.function import term_of
from sightline_trainer.rewards.judge import Combine
from sightline_trainer.rewards.term import TermPart
from sightline_trainer.sections import Data, Dpo, Evaluation, LocalServices, Publication, RewardService, Sampling
from sightline_trainer.template_text import MOST_CHARACTERS, template_text

if TYPE_CHECKING:
    Candidates = Parts
    Terms = Parts
    Filters = Parts
    Pairing = Parts
else:
    Candidates = parts_of("Candidates", CANDIDATES, Kind("sightline.sources", CandidatePart, ("open",)))
    Terms = parts_of("Terms", REWARDS, Kind("sightline.rewards", TermPart, ("open",), term_of))
    Filters = parts_of("Filters", FILTERS, Kind("sightline.filters", FilterPart, FAULTS))
    Pairing = parts_of("Pairing", RULES, Kind("sightline.rules", RulePart, ("pick",)))


class Reward(RewardService):
    """The reward of a candidate: the sum of its terms. The scorer provides CLIPScores."""

    terms: Terms = Field(
        default_factory=lambda: Terms.model_validate({"clip": {}}),
        description=(
            "Terms of the reward, each with its weight; false removes a term; without terms every reward is 0."
        ),
    )
    combine: Combine = Field(
        "sum",
        description="How the terms are added: their values (sum), their ranks from 0 to 100 among a prompt's "
        "candidates (rank, CSR), or their distances from the candidates' mean in standard deviations (normalised, "
        "GDPO). Weights multiply each.",
    )


class Recipe(Section):
    """A run: `iterations` times sample, score, pair, update, publish, evaluate."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=80, description="The method's name.")
    description: str = Field("", description="One line that describes the method.")
    seed: int = Field(0, ge=0, description="Seed of prompts, candidates and updates.")
    iterations: int = Field(
        3,
        ge=0,
        description=("Iterations of the loop; 0: train nothing and measure evaluation.decoding on the base model."),
    )
    model: str = Field(description="The base LVLM: a Hugging Face directory or name, or playground:llava.")
    chat_template: str | None = Field(
        None,
        max_length=MOST_CHARACTERS,
        description=(
            "Jinja chat template that replaces the model's own: a file, relative to the recipe, or the text itself."
        ),
    )
    min_pixels: int | None = Field(
        None,
        ge=1,
        le=1 << 40,
        description="Minimum number of pixels of an image as the model sees it; null: the model's own value.",
    )
    max_pixels: int | None = Field(
        None,
        ge=1,
        le=1 << 40,
        description=(
            "Maximum number of pixels of an image as the model sees it, in sampler and update, for "
            "models that take any resolution; null: the model's own value."
        ),
    )
    quantization: Literal["nf4"] | None = Field(
        None,
        description=(
            "nf4: hold the decoder's linear layers in 4 bits (bitsandbytes), in sampler and update; a"
            " LoRA is trained on them."
        ),
    )
    threads: int = Field(2, ge=1, description="Torch threads of the update on a CPU.")
    data: Data
    sampling: Sampling = Field(default_factory=Sampling)
    candidates: Candidates = Field(
        default_factory=lambda: Candidates.model_validate({"policy": {}}), description="Sources of candidates."
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
    services: LocalServices = Field(default_factory=LocalServices)

    @property
    def parts(self) -> list[Parts]:
        """All tables of parts: candidates, terms, filters, rules."""
        return [self.candidates, self.reward.terms, self.filters, self.pairing]

    @property
    def base_model(self) -> str:
        """The base LVLM for transformers: a folder or a hub name.

        Raises:
            NotFound: the playground has no such model, or is not installed.
        """
        return model_place(self.model)

    @property
    def processor(self) -> ModelProcessor:
        """How to make the base model's processor.

        Raises:
            NotFound: see `base_model`.
        """
        return ModelProcessor(self.base_model, self.chat_template, self.min_pixels, self.max_pixels)

    @model_validator(mode="after")
    def _beams_make_equal_groups(self) -> Recipe:
        for name, part in self.candidates.chosen().items():
            if isinstance(part, PolicySamples) and part.decoding.beams is not None:
                count, groups = part.count or self.sampling.candidates, part.decoding.beams.groups
                if count % groups:
                    raise ValueError(f"candidates.{name}: {count} candidates cannot form {groups} groups of equal size")
        return self

    @model_validator(mode="after")
    def _extrapolates_an_adapter(self) -> Recipe:
        if self.publication.extrapolate and self.dpo.train != "lora":
            raise ValueError("publication.extrapolate scales a LoRA: set dpo.train to lora, or leave it at 0")
        if self.publication.extrapolate and self.dpo.train_projector:
            raise ValueError("publication.extrapolate scales a LoRA, but not a projector: leave out one of the two")
        return self

    @model_validator(mode="after")
    def _quantized_is_not_trained(self) -> Recipe:
        if self.quantization and self.dpo.train != "lora":
            raise ValueError("4 bits can't be trained: with quantization set dpo.train to lora")
        return self

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Recipe:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}: lower one or raise the other"
            )
        return self


_OURS = ("file", "environment", "--set")


def load_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    environment: bool = True,
    files_by: Collection[str] = _OURS,
    parts: Collection[str] = ALL,
) -> Recipe:
    """Read a recipe file and apply `key.subkey=value` overrides; see `read_recipe`."""
    return read_recipe(path, overrides, environment=environment, files_by=files_by, parts=parts).settings


def read_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    environment: bool = True,
    files_by: Collection[str] = _OURS,
    parts: Collection[str] = ALL,
) -> SettingsRead[Recipe]:
    """A recipe, and the origin of each value.

    Args:
        environment: whether to read SIGHTLINE_RECIPE__ variables of this process.
        files_by: which of file, environment and --set may name local files to read.
        parts: third-party parts that may be imported (see `open_parts`); unset, all: the caller wrote the recipe.

    Raises:
        SettingsError: the file can't be read, a key is unknown, a value is out of bounds, or keys contradict each
            other; the message says which and why.
    """
    with importing(parts):
        return _read(path, overrides, environment, files_by)


def _read(path: Path, overrides: Sequence[str], environment: bool, files_by: Collection[str]) -> SettingsRead[Recipe]:
    read = read_settings(Recipe, service="recipe", config=path, overrides=overrides, environment=environment)
    # A run's recipe.yaml names paths relative to the run, whose directory is the file's.
    tree = located(read.settings.model_dump(mode="json"), path.parent)
    told = read.origin(("chat_template",)) in files_by
    tree["chat_template"] = template_text(tree["chat_template"], path.parent, files=told)
    recipe = Recipe.model_validate(tree)
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
