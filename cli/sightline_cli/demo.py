"""`sightline demo`: the whole system on one machine, with the playground's models.

Starts scorer (with Triton), sampler and trainer as separate processes on loopback, has the trainer run
the recipe clip_dpo, shows what happens and stops everything.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape
from sightline.errors import AlreadyExists, InternalError, PreconditionFailed
from sightline_trainer.execute import check_free
from sightline_trainer.files import write_json
from sightline_trainer.pools.dataset_name import directories
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.runs import RunDirectory

from sightline_cli.local_services import local_services
from sightline_cli.processes import Processes, in_use
from sightline_cli.report import write
from sightline_cli.run import STARTED, recipe_file, with_data, with_values
from sightline_cli.showing import showing
from sightline_cli.watch import event_of

RECIPE = "clip_dpo"
QUICK = (
    "iterations=1",
    "data.train=playground:align?count=512&seed=1",
    "data.test=playground:test?count=128&seed=2",
    "data.prompts_per_iteration=256",
)
"""One iteration on a third of the prompts, measured on few scenes: shows what happens, not how much it helps."""


def demo(directory: Path, overrides: list[str], as_json: bool = False) -> None:
    """Run the demonstration from the start in `directory`. With JSON, stdout gets only the run's events.

    Raises:
        NotFound: this installation has no playground.
        AlreadyExists: the directory holds something other than a run, which would be lost.
        PreconditionFailed: RUN_LEASED: another process works in the directory.
    """
    console = Console(stderr=as_json)
    recipe = load_recipe(recipe_file(RECIPE), overrides)
    _clear(directory)
    services = directory / "services"
    with Processes(services) as processes:
        console.print(f"starting scorer (with Triton), sampler and trainer; their logs are in {escape(str(services))}/")
        quiet = {"OMP_NUM_THREADS": "1"}
        for name, flags in local_services(with_values(recipe, sampling={"address": None}), services).items():
            processes.start(name, flags, environment=quiet)
        recipe = with_data(recipe, directory / "data")
        addresses = {name: processes.wait(name) for name in ("scorer", "sampler")}
        known = [f"connections.{name}.address={at.grpc}" for name, at in addresses.items()]
        roots = json.dumps(
            [str(one) for data in (recipe.data.train, recipe.data.test) for one in directories(data)],
            ensure_ascii=False,
        )
        processes.start("trainer", [f"runs={directory.parent}", "resume=false", f"data_roots={roots}", *known])
        addresses["trainer"] = processes.wait("trainer")
        for name, at in addresses.items():
            console.print(f"  {name:8} gRPC {at.grpc}  health {at.health}  metrics http://{at.metrics}/metrics")
        recipe = with_values(
            recipe,
            sampling={"address": addresses["sampler"].grpc},
            reward={"address": addresses["scorer"].grpc},
        )
        write_json(directory / STARTED, {name: addresses[name].grpc for name in ("scorer", "sampler")})
        try:
            _watch(addresses["trainer"].grpc, recipe, directory, as_json)
        except KeyboardInterrupt:
            root = shlex.quote(str(directory))
            raise KeyboardInterrupt(
                f"`sightline run {root}/recipe.yaml --run {root}` continues it, `sightline demo` begins again"
            ) from None
    place = escape(str(directory))
    console.print(f"[bold]metrics[/bold] {place}/metrics.json   [bold]everything[/bold] {place}/", soft_wrap=True)
    console.print(f"[bold]report[/bold] {escape(str(write([directory])))}", soft_wrap=True)


def _clear(directory: Path) -> None:
    if not directory.exists():
        return
    begun = directory.is_dir() and {path.name for path in directory.iterdir()} <= {"data", "services"}
    if not begun and not (directory / "recipe.yaml").exists():
        raise AlreadyExists(
            f"{directory} exists and contains no run; name another directory with --run", reason="DIRECTORY_EXISTS"
        )
    if in_use(directory / "services"):
        raise PreconditionFailed(
            f"another `sightline demo` or `sightline run` works in {directory}: wait until it ends, or name another "
            "directory with --run",
            reason="RUN_LEASED",
        )
    check_free(RunDirectory(directory))
    shutil.rmtree(directory)


def _watch(trainer: str, recipe: Recipe, directory: Path, as_json: bool) -> None:
    """Start the run and show its events until it ends."""
    from sightline.runs import RunClient

    with RunClient(trainer) as client, showing(recipe.iterations, as_json) as tell:
        run = client.start(recipe_text=yaml.safe_dump(recipe.model_dump(mode="json")), run_id=directory.name)
        for said in client.watch(run.id):
            tell(event_of(said))
        run = client.get(run.id)
    if run.error:
        raise InternalError(
            f"the run in {directory} failed: {run.error}; the services' logs are in {directory}/services/",
            reason="RUN_FAILED",
        )
