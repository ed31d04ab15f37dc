"""Every documented command is valid: its program, options and settings exist.

Each is parsed as its program does it, in this process; nothing is run (`test_documented_commands_run.py` does that).
"""

import argparse
import importlib.util
import re
import runpy
import sys
import tomllib
from collections.abc import Sequence
from typing import Any

import click
import pytest
import typer
from documented import NOT_RUN, Documented, documented
from running import ROOT
from sightline_chassis.settings import load_settings
from sightline_chassis.shipped import shipped
from sightline_cli.main import app
from sightline_sampler.settings import SamplerSettings
from sightline_scorer.gateway.settings import GatewaySettings
from sightline_scorer.settings import ScorerSettings
from sightline_trainer.recipe import load_recipe
from sightline_trainer.settings import TrainerSettings

COMMANDS = documented()
SERVICES: dict[str, Any] = {
    "scorer": ScorerSettings,
    "scorer-http": GatewaySettings,
    "sampler": SamplerSettings,
    "trainer": TrainerSettings,
}
TRIED_PROGRAMS = ("sightline", "python", "make", "pip")
_OTHERS = "python -m sightline_trainer.evaluation.lmms_eval_model"


class Parsed(Exception):
    """The arguments were accepted."""


def only_parsing(monkeypatch: pytest.MonkeyPatch, words: Sequence[str]) -> None:
    """Make argparse stop once it has parsed the words."""
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        real(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", list(words))


def sightline(words: list[str]) -> dict[str, Any]:
    """The values of a command's parameters, as click parses them; raises click's errors."""
    command: Any = typer.main.get_command(app)
    context = click.Context(command, info_name="sightline")
    names, rest = ["sightline"], words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        assert found is not None, f"there is no command {' '.join([*names, rest[0]])}"
        command, names, rest = found, [*names, rest[0]], rest[1:]
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context)
    if isinstance(command, click.Group):
        return {}
    made = command.make_context(" ".join(names), list(rest), parent=context)
    return {**made.params, "command": names[1:]}


def named(words: list[str]) -> list[list[str]]:
    """A command for each word of `runs {list,watch}`; placeholders in brackets are left out."""
    words = [word for word in words if word not in ("...", "…")]
    for place, word in enumerate(words):
        if re.fullmatch(r"\{[\w,]+\}", word):
            return [[*words[:place], each, *words[place + 1 :]] for each in word[1:-1].split(",")]
    return [words]


def of_sightline(words: list[str]) -> None:
    told = sightline(words)
    command, overrides = told.get("command", []), list(told.get("overrides") or told.get("set") or [])
    assert not [each for each in overrides if "=" not in each], overrides
    if command[:1] == ["serve"]:
        if overrides:
            load_settings(SERVICES[command[1] if len(command) > 1 else words[2]], service=words[2], overrides=overrides)
    elif command in (["run"], ["recipe", "show"]):
        recipe = str(told["recipe"])
        if recipe in ("RECIPE", "NAME"):
            return
        file = ROOT / recipe if recipe.endswith(".yaml") else shipped("recipes") / f"{recipe}.yaml"
        if recipe != "mine.yaml":
            load_recipe(file, overrides, environment=False)


TRIED = [each for each in COMMANDS if each.program in TRIED_PROGRAMS and not each.bare.startswith(_OTHERS)]


def test_documented_commands_are_found_and_each_has_a_way() -> None:
    others = {command.program for command in COMMANDS} - set(TRIED_PROGRAMS)
    assert others <= set(NOT_RUN), "a program that is neither parsed nor in the list"
    assert {"README.md", "docs/tutorial.md", "recipes/clip_dpo.yaml", "examples/score_images.py"} <= {
        command.file for command in COMMANDS
    }
    used = {command.why_not_run for command in COMMANDS}
    assert [begin for begin, why in NOT_RUN.items() if why not in used] == [], "a reason without a command"


@pytest.mark.parametrize("command", [c for c in TRIED if c.program == "sightline"], ids=lambda command: command.id)
def test_documented_commands_of_sightline_are_taken(command: Documented) -> None:
    words = command.words()
    # In a sentence a command's name may stand alone, and RUN or DIR for what the reader has.
    if re.search(r"[|<>]| or |\.\.\.$", command.text) and "`" not in command.text:
        words = words[: next((at for at, word in enumerate(words) if set(word) & set("|<>")), len(words))]
    for each in named(words):
        try:
            of_sightline(each)
        except click.MissingParameter:
            assert len(each) <= 4, "a sentence may name a command without its arguments"


@pytest.mark.parametrize("command", [c for c in TRIED if c.program == "python"], ids=lambda command: command.id)
def test_documented_commands_of_python_are_taken(command: Documented, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = named(command.words()[1:])
    of_module = words[0] == "-m"
    only_parsing(monkeypatch, words[1:] if of_module else words)
    if of_module:
        assert importlib.util.find_spec(words[1]) is not None
    with pytest.raises(Parsed):
        (runpy.run_module if of_module else runpy.run_path)(
            words[1] if of_module else str(ROOT / words[0]), run_name="__main__"
        )


@pytest.mark.parametrize("command", [c for c in TRIED if c.program == "make"], ids=lambda command: command.id)
def test_documented_commands_of_make_are_targets(command: Documented) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {word for word in command.words()[1:] if "=" not in word} <= targets


@pytest.mark.parametrize("command", [c for c in TRIED if c.program == "pip"], ids=lambda command: command.id)
def test_documented_commands_of_pip_name_extras_that_there_are(command: Documented) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert command.words()[1] in ("install", "uninstall")
    for word in command.words()[2:]:
        if found := re.fullmatch(r"sightline\[([\w,-]+)\]", word):
            assert set(found[1].split(",")) <= set(extras)
