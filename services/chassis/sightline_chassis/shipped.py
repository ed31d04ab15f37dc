"""Finds files that come with the package by name: recipes, the playground's models, protos, the chart.

In a wheel these files are inside the packages; in a checkout beside them. This module does not import the packages
whose files it finds.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from sightline.errors import NotFound

PLAYGROUND = "playground:"
_LOCAL = "local-dir:"
MODELS = ("clip", "llava", "llava-skilled")
# By name: the package that carries them, their directory inside it, and where a checkout has them, from the package.
_PLACES = {
    "recipes": ("sightline_trainer", "recipes", "../../../recipes"),
    "weights": ("sightline_playground", "weights", "../weights"),
    "protos": ("sightline", "protos", "../../protos"),
    "chart": ("sightline_cli", "chart", "../../helm/sightline"),
}


def shipped(name: str) -> Path:
    """The directory of "recipes", "weights", "protos" or "chart".

    Raises:
        NotFound: its package is not installed, or does not contain it.
    """
    package, inside, beside = _PLACES[name]
    found = importlib.util.find_spec(package)
    for home in found.submodule_search_locations or () if found is not None else ():
        for place in (inside, beside):
            directory = (Path(home) / place).resolve()
            if directory.is_dir():
                return directory
    raise NotFound(f"this installation has no {name}: install sightline[playground]", reason="NOT_SHIPPED")


def model_place(name: str) -> str:
    """Resolve a model's name: "playground:NAME" becomes the directory of that shipped model, `~` the home directory;
    others are unchanged.

    Raises:
        NotFound: the playground has no such model, or is not installed.
    """
    if not name.startswith(PLAYGROUND):
        scheme = _LOCAL if name.startswith(_LOCAL) else ""
        return scheme + os.path.expanduser(name.removeprefix(scheme))
    model = name.removeprefix(PLAYGROUND)
    if model not in MODELS:
        known = ", ".join(PLAYGROUND + each for each in MODELS)
        raise NotFound(f"unknown {name[:100]}; the playground has {known}", reason="MODEL_NOT_FOUND")
    return str(shipped("weights") / model)


def known_model(name: str) -> str:
    """A validator of settings: checks that a playground model exists."""
    try:
        model_place(name)
    except NotFound as error:
        raise ValueError(str(error)) from None
    return name
