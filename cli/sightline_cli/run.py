"""``sightline run``: one recipe in the foreground, with local services where the recipe names none."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

from sightline_trainer.recipe import Recipe, load_recipe

from sightline_cli.datasets import resolve
from sightline_cli.processes import Processes


def local_services(recipe: Recipe) -> dict[str, list[str]]:
    """Settings of the services that are started for a recipe on this machine, one torch thread each."""
    settings = {
        "sampler": [f"model={recipe.model}", "threads=1"],
        "scorer": [f"models.default.source={recipe.reward.weights}", "triton.threads=1"],
    }
    if recipe.sampling.address:
        del settings["sampler"]
    if recipe.reward.address:
        del settings["scorer"]
    return settings


def run(
    recipe_path: Path,
    overrides: list[str],
    *,
    directory: Path | None,
    sampler: str | None,
    scorer: str | None,
    metrics_port: int,
) -> None:
    """Load the recipe, start what is missing, run the loop and show it."""
    recipe = load_recipe(recipe_path, overrides)
    directory = directory or Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ExitStack() as stack:
        addresses = {"sampler": sampler or recipe.sampling.address, "scorer": scorer or recipe.reward.address}
        missing = {name: flags for name, flags in local_services(recipe).items() if addresses[name] is None}
        if missing:
            processes = stack.enter_context(Processes(directory / "services"))
            for name, flags in missing.items():
                processes.start(name, flags)
        train, test = (resolve(data, directory / "data") for data in (recipe.data.train, recipe.data.test))
        for name in missing:
            addresses[name] = processes.wait(name).grpc
        _loop(recipe, directory, str(addresses["sampler"]), str(addresses["scorer"]), train, test, metrics_port)


def _loop(recipe: Recipe, directory: Path, sampler: str, scorer: str, train: Path, test: Path, port: int) -> None:
    from prometheus_client import start_http_server
    from sightline_trainer.display import Display
    from sightline_trainer.events import EventLog, Fanout
    from sightline_trainer.loop import Loop, Places
    from sightline_trainer.runs import RunDirectory

    if port:
        start_http_server(port, addr="127.0.0.1")
    run_directory = RunDirectory(directory)
    run_directory.root.mkdir(parents=True, exist_ok=True)
    with Display(recipe.iterations) as display:
        observer = Fanout(EventLog(run_directory.events), display)
        loop = Loop(recipe, run_directory, Places(sampler, scorer, train, test), observer)
        run_directory.set_state("running")
        try:
            loop.run()
        except KeyboardInterrupt:
            run_directory.set_state("stopped")
            raise
        except Exception as error:
            run_directory.set_state("failed", error=str(error))
            raise
        run_directory.set_state("succeeded")
