"""A form for a recipe, made from its schema: every key with its type, bounds, meaning and the recipe's value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightline.errors import NotFound
from sightline_chassis.keys import keys_of
from sightline_chassis.shipped import shipped
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.run_queue import recipes_in

FIRST = ("iterations", "seed", "model", "data.train", "data.test", "data.prompts_per_iteration", "sampling.candidates")
"""Keys that the form shows first."""


def recipes() -> list[dict[str, str]]:
    """The shipped recipes: name and description."""
    known = recipes_in(shipped("recipes"))
    return [{"name": name, "about": load_recipe(path, environment=False).description} for name, path in known.items()]


def shipped_recipe(name: str) -> Path:
    """The file of a shipped recipe. Raises NotFound."""
    found = recipes_in(shipped("recipes")).get(name)
    if found is None:
        raise NotFound(
            f"there is no shipped recipe {name[:100]!r}: `sightline recipe list` shows them", reason="RECIPE_NOT_FOUND"
        )
    return found


def form(name: str) -> list[dict[str, Any]]:
    """A shipped recipe's fields, in the schema's order: key, type, value as JSON, meaning, whether it is shown first.

    Raises:
        NotFound: there is no recipe of that name.
    """
    recipe = load_recipe(shipped_recipe(name), environment=False)
    tree = recipe.model_dump(mode="json")
    fields = []
    for key in keys_of(Recipe):
        if "NAME" in key.path or key.type == "section" or key.path in ("name", "description"):
            continue
        found, value = _at(tree, key.path)
        if not found:
            continue  # part of a section that the recipe leaves out
        fields.append(
            {
                "key": key.path,
                "type": key.type,
                "value": json.dumps(value),
                "about": key.description,
                "first": key.path in FIRST,
            }
        )
    return fields


def _at(tree: Any, path: str) -> tuple[bool, Any]:
    for name in path.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return False, None
        tree = tree[name]
    return True, tree
