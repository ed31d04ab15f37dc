"""`sightline run RECIPE --check`: checks everything that can be checked before a run begins. Leaves no files.

model     llava, 1.26 M parameters; the update trains 158 k (12.53%): LoRA on 28 layers
...
error     TEST_LEAKS: train and test share 3 pictures ...; take these pictures out of data.train ...
the run cannot start: fix the errors above
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console
from sightline.errors import NotFound, SightlineError
from sightline_chassis.settings import SettingsError
from sightline_chassis.shipped import model_place
from sightline_trainer.connections import Connections
from sightline_trainer.preflight.check import Check
from sightline_trainer.preflight.finding import Finding, found_by
from sightline_trainer.recipe import Recipe, load_recipe

from sightline_cli.local_services import local_services
from sightline_cli.processes import Processes, StartError, StartRefused
from sightline_cli.run import connected_to, recipe_file, taking_turns, with_data, with_values

SCENES = 512
"""Maximum number of playground scenes that a check draws."""


def check(
    name: str,
    overrides: list[str],
    *,
    directory: Path | None,
    sampler: str | None,
    scorer: str | None,
    connections: Path | None = None,
    as_json: bool = False,
) -> bool:
    """Check a recipe and print the findings.

    Args:
        name: path of a recipe file, or name of a shipped recipe.
        directory: of the run that would begin or continue; it need not exist.

    Returns:
        Whether the run can start.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        recipe = load_recipe(recipe_file(name), overrides)
        model_place(recipe.model)
    except (SettingsError, NotFound) as error:
        return _refused(found_by(error, "RECIPE_INVALID"), as_json)
    console = Console(stderr=True)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sightline-check-")))
        status = stack.enter_context(console.status("checking"))
        made = Check(
            recipe,
            scratch=scratch,
            root=directory or Path("runs") / recipe.name,
            tell=lambda what: status.update(f"checking {what}"),
        )
        _look(made, scratch, lambda: connected_to(recipe, sampler, scorer, connections), stack)
    if as_json:
        print(json.dumps(made.tree(), ensure_ascii=False))
    else:
        for line in made.lines():
            typer.echo(line)
    return made.ok


def _look(made: Check, scratch: Path, connect: Callable[[], tuple[Recipe, Connections]], stack: ExitStack) -> None:
    """All checks, as long as the next one makes sense."""
    try:
        recipe, known = connect()
        recipe = taking_turns(recipe)
        settings = local_services(recipe, scratch / "services")
        made.recipe = recipe = with_data(recipe, scratch / "data", SCENES)
    except (SightlineError, SettingsError) as error:
        made.findings.append(found_by(error, "SETTINGS_INVALID"))
        return
    made.alone(here=tuple(settings))
    if settings and not made.ok:
        return  # services that could be started here would be unusable
    processes = stack.enter_context(Processes(scratch / "services", passing=True))
    made.tell(f"{' and '.join(settings)}, started for this check" if settings else "the services")
    try:
        for name, flags in settings.items():
            processes.start(name, flags)
        addresses = {name: processes.wait(name).grpc for name in settings}
    except (StartError, StartRefused) as error:
        told = found_by(error)
        made.findings.append(replace(told, code="SERVICE_NOT_STARTED", message=" ".join(told.message.split())))
        return
    made.served(
        with_values(
            recipe, sampling={"address": addresses.get("sampler")}, reward={"address": addresses.get("scorer")}
        ),
        known,
    )


def _refused(finding: Finding, as_json: bool) -> bool:
    """Report a recipe that can't be read: then nothing else can be checked."""
    if as_json:
        tree = {"ok": False, "findings": [finding.tree()], "recipe": None, "memory": None, "seconds": None}
        print(json.dumps(tree, ensure_ascii=False))
    else:
        typer.echo(f"{finding.severity:9} {finding.code}: {finding}")
    return False
