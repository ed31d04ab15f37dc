"""`sightline recipe`: a recipe's values and their origin, and the meaning of its keys."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sightline_cli.failures import guarded

app = typer.Typer(no_args_is_help=True, help="List, copy, show and explain recipes.")

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as dpo.beta=0.2.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command("list")
def list_(as_json: Json = False, debug: Debug = False) -> None:
    """List the recipes that come with Sightline."""

    def tell() -> None:
        from sightline_chassis.shipped import shipped
        from sightline_trainer.recipe import load_recipe
        from sightline_trainer.run_queue import recipes_in

        known = {name: load_recipe(file, environment=False) for name, file in recipes_in(shipped("recipes")).items()}
        if as_json:
            print(json.dumps([{"name": name, "description": one.description} for name, one in known.items()], indent=2))
            return
        for name, recipe in known.items():
            print(f"{name:12} {recipe.description}")

    guarded(tell, debug)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="A shipped recipe, such as clip_dpo.")],
    to: Annotated[Path | None, typer.Argument(help="File to write; default: NAME.yaml in this directory.")] = None,
    debug: Debug = False,
) -> None:
    """Copy a shipped recipe to a file that you can edit."""

    def write() -> None:
        from sightline.errors import AlreadyExists

        from sightline_cli.run import recipe_file

        target = to or Path(f"{name}.yaml")
        if target.exists():
            raise AlreadyExists(f"{target} already exists; name another file", reason="FILE_EXISTS")
        target.write_bytes(recipe_file(name).read_bytes())
        print(target)

    guarded(write, debug)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one, such as clip_dpo.")],
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the recipe that would run: each value, and its origin (default, file, environment or --set)."""

    def tell() -> None:
        from sightline_trainer.recipe import read_recipe

        from sightline_cli.run import recipe_file

        read = read_recipe(recipe_file(recipe), overrides or [])
        tree = read.settings.model_dump(mode="json")
        if as_json:
            origins = {".".join(keys): read.origin(keys) for keys, _ in _leaves(tree)}
            print(json.dumps({"recipe": tree, "origins": origins}, indent=2))
        else:
            print("\n".join(_lines(tree, read.origin)))

    guarded(tell, debug, "trainer")


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="A key or a section, such as filters.gap.min or dpo.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain a key of a recipe: its meaning, type and default. For a section or a part, explain all its keys."""

    def tell() -> None:
        from sightline.errors import NotFound
        from sightline_chassis.keys import keys_of
        from sightline_trainer.recipe import Recipe

        known = list(keys_of(Recipe))
        found = [each for each in known if f"{each.path}.".startswith(f"{key}.")]
        if not found:  # a name in a table with free names, such as dpo.loss.sigmoid
            found = [each for each in known if key.startswith(f"{each.path}.") and each.type.startswith("object")]
        if not found:
            close = difflib.get_close_matches(key, [each.path for each in known], n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "docs/reference lists all keys"
            raise NotFound(f"no key {key} in a recipe; {hint}", reason="KEY_UNKNOWN")
        if as_json:
            print(json.dumps([dataclasses.asdict(each) for each in found], indent=2))
            return
        for each in found:
            default = f"   default {each.default}" if each.default else "   must be given"
            print(f"{each.path}   {each.type}{default}\n    {each.description}")

    guarded(tell, debug, "trainer")


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _lines(tree: dict[str, Any], origin: Any) -> Iterator[str]:
    """YAML, each value followed by its origin."""
    lines: list[tuple[str, str]] = []
    before: tuple[str, ...] = ()
    for keys, value in _leaves(tree):
        shared = next((n for n, (a, b) in enumerate(zip(before, keys[:-1], strict=False)) if a != b), None)
        shared = min(len(before), len(keys) - 1) if shared is None else shared
        lines += [(f"{'  ' * depth}{keys[depth]}:", "") for depth in range(shared, len(keys) - 1)]
        lines.append((f"{'  ' * (len(keys) - 1)}{keys[-1]}: {json.dumps(value, ensure_ascii=False)}", origin(keys)))
        before = keys[:-1]
    width = min(72, max(len(text) for text, _ in lines))
    return (f"{text:{width}}  # {source}" if source else text for text, source in lines)
