"""Local services: what `sightline run` starts if the recipe names no service, and with which settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sightline.errors import PreconditionFailed
from sightline_chassis.settings import Section, SettingsError, load_settings
from sightline_trainer.needs import Needs
from sightline_trainer.recipe import Recipe

_BY_RUN = "the run sets it: its services listen on loopback and log to the run's directory"
_TAKEN: Final = {
    "sampler": {
        "engine.model": "it is the recipe's model",
        "engine.chat_template": "it is the recipe's chat_template",
        "engine.min_pixels": "it is the recipe's min_pixels",
        "engine.max_pixels": "it is the recipe's max_pixels",
        "engine.quantization": "it is the recipe's quantization",
        "server": _BY_RUN,
        "log": _BY_RUN,
    },
    "scorer": {
        "models.clip.source": "it is the recipe's reward.source",
        "models.clip.pretrained": "it is the recipe's reward.pretrained",
        "server": _BY_RUN,
        "log": _BY_RUN,
    },
}
"""Settings that the recipe sets by another key, and which key that is."""


def local_services(recipe: Recipe, directory: Path) -> dict[str, list[str]]:
    """Settings of the services that a recipe needs on this machine, with one torch thread each: both together fill two
    cores, and more threads would only compete.

    Args:
        directory: for files that the services read.

    Raises:
        PreconditionFailed: the recipe names neither a scorer nor a model for one.
        SettingsError: a key below `services` that the service doesn't know, or that the recipe must not set there.
    """
    from sightline_sampler.settings import SamplerLimits
    from sightline_scorer.settings import ScorerLimits

    settings, needs = {}, Needs.of(recipe)
    if recipe.sampling.address is None:
        wanted = {"max_candidates": needs.candidates, "max_tokens": needs.tokens}
        settings["sampler"] = [f"engine.model={recipe.model}", "engine.threads=1", *_raised(SamplerLimits(), wanted)]
        settings["sampler"] += _shown_by(recipe, directory)
    if recipe.reward.address is None:
        if recipe.reward.source is None:
            raise PreconditionFailed(
                "set reward.address (a running scorer) or reward.source (an open_clip model)", reason="NO_ADDRESS"
            )
        settings["scorer"] = [f"models.clip.source={recipe.reward.source}", "triton.threads=1"]
        settings["scorer"] += _raised(ScorerLimits(), {"max_texts": needs.texts})
        if recipe.reward.pretrained is not None:
            settings["scorer"].append(f"models.clip.pretrained={recipe.reward.pretrained}")
    return {name: _with_own(recipe, name, flags) for name, flags in settings.items()}


def _with_own(recipe: Recipe, service: str, flags: list[str]) -> list[str]:
    """The settings followed by those of the recipe's `services`, which win if both set a key."""
    from sightline_sampler.settings import SamplerSettings
    from sightline_scorer.settings import ScorerSettings

    kinds: dict[str, type[Section]] = {"sampler": SamplerSettings, "scorer": ScorerSettings}
    own = [*_leaves(getattr(recipe.services, service).model_dump(mode="json"))]
    for key, _ in own:
        for taken, instead in _TAKEN[service].items():
            if key == taken or key.startswith(f"{taken}."):
                raise SettingsError(f"services.{service}.{key} can't be set there: {instead}")
    flags += [
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}" for key, value in own
    ]
    if own:
        try:
            load_settings(kinds[service], service=service, overrides=flags)
        except SettingsError as error:
            raise SettingsError(f"services.{service}: {error}") from None
    return flags


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _shown_by(recipe: Recipe, directory: Path) -> list[str]:
    """Settings of a sampler, so that it shows prompts and images to the model as the recipe says."""
    bounds = {"min_pixels": recipe.min_pixels, "max_pixels": recipe.max_pixels}
    settings = [f"engine.{name}={value}" for name, value in bounds.items() if value is not None]
    if recipe.quantization is not None:
        settings.append(f"engine.quantization={recipe.quantization}")
    if recipe.chat_template is not None:
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "chat_template.jinja"
        file.write_text(recipe.chat_template, encoding="utf-8")
        settings.append(f"engine.chat_template={file.resolve()}")
    return settings


def _raised(limits: Section, wanted: dict[str, int]) -> list[str]:
    """Settings for limits that are lower than the recipe needs."""
    return [f"limits.{name}={need}" for name, need in wanted.items() if need > getattr(limits, name)]
