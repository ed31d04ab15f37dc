"""Shipped: what comes with the package (recipes, the playground's models, protos, the chart), found by name.

In a wheel these files lie inside the packages; in a checkout beside them. Nothing here imports the package whose files
it finds.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sightline.errors import NotFound

PLAYGROUND = "playground:"
MODELS = ("clip", "llava")
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
        NotFound: the package that carries it is not installed, or came without it.
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
    """Where a model is: the directory of `playground:clip` or `playground:llava`; other names stay as they are.

    Raises:
        NotFound: the playground has no such model, or is not installed.
    """
    if not name.startswith(PLAYGROUND):
        return name
    model = name.removeprefix(PLAYGROUND)
    if model not in MODELS:
        known = " and ".join(PLAYGROUND + each for each in MODELS)
        raise NotFound(f"unknown {name[:100]}; the playground has {known}", reason="MODEL_NOT_FOUND")
    return str(shipped("weights") / model)


def known_model(name: str) -> str:
    """A validator of settings: the name, whose model is there where it is the playground's."""
    try:
        model_place(name)
    except NotFound as error:
        raise ValueError(str(error)) from None
    return name
