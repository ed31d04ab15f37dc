"""`sightline run`: one recipe in the foreground, with local services if the recipe names none."""

from __future__ import annotations

import difflib
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from sightline.errors import InvalidInput, NotFound
from sightline.target import check_target
from sightline_chassis import traces
from sightline_chassis.sections import TraceSettings
from sightline_chassis.settings import load_settings
from sightline_chassis.shipped import shipped
from sightline_trainer.connections import ClientTls, Connection, Connections
from sightline_trainer.execute import check_free, execute, leased
from sightline_trainer.files import read_json, write_json
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.run_queue import recipes_in
from sightline_trainer.runs import RunDirectory

from sightline_cli.credentials import given
from sightline_cli.datasets import resolve
from sightline_cli.local_services import local_services
from sightline_cli.processes import Processes
from sightline_cli.showing import showing


def recipe_file(name: str) -> Path:
    """The file of a recipe, given by its path or by the name of a shipped recipe.

    Raises:
        NotFound: there is no such file and no such shipped recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = recipes_in(shipped("recipes"))
    if name in known:
        return known[name]
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"shipped are {', '.join(known)}"
    raise NotFound(
        f"there is no recipe file {name} in {Path.cwd()} and no shipped recipe of that name; {hint}",
        reason="RECIPE_NOT_FOUND",
    )


def run(
    name: str,
    overrides: list[str],
    *,
    directory: Path | None,
    sampler: str | None,
    scorer: str | None,
    metrics_port: int,
    connections: Path | None = None,
    as_json: bool = False,
) -> None:
    """Load the recipe, start missing services, run the loop and show it.

    Raises:
        PreconditionFailed: RUN_LEASED: another process works in the directory.
        SightlineError: see `execute`.
    """
    recipe = load_recipe(recipe_file(name), overrides)
    directory = directory or Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_free(RunDirectory(directory))  # before its services' files are touched
    with ExitStack() as stack:
        recipe = without_started(recipe, directory)
        recipe, known = connected_to(recipe, sampler, scorer, connections)
        recipe = taking_turns(recipe)
        settings = local_services(recipe, directory / "services")
        processes = stack.enter_context(Processes(directory / "services"))
        traced = load_settings(TraceSettings, service="traces")
        for service, flags in settings.items():
            processes.start(service, [*flags, *([f"traces.endpoint={traced.endpoint}"] if traced.endpoint else [])])
        traces.begin(traced, "trainer")
        stack.callback(traces.end)
        recipe = with_data(recipe, directory / "data")
        addresses = {service: processes.wait(service).grpc for service in settings}
        write_json(directory / STARTED, addresses)
        recipe = with_values(
            recipe, sampling={"address": addresses.get("sampler")}, reward={"address": addresses.get("scorer")}
        )
        try:
            _loop(recipe, directory, metrics_port, known, as_json)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"to resume, give the same command with --run {shlex.quote(str(directory))}"
            ) from None
    if not as_json:
        place, given_as = escape(str(directory)), escape(shlex.quote(str(directory)))
        Console().print(f"[bold]everything[/bold] {place}/   sightline report {given_as}", soft_wrap=True)


STARTED = "services/started.json"
"""File in a run's directory: addresses of the services that `sightline run` started for it."""


def without_started(recipe: Recipe, directory: Path) -> Recipe:
    """A run's own recipe without the addresses of services that an earlier `sightline run` started for it: they ended
    with it."""
    started = read_json(directory / STARTED) or {}
    sections = {"sampling": "sampler", "reward": "scorer"}
    ended = [name for name, service in sections.items() if getattr(recipe, name).address == started.get(service)]
    return recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update={"address": None}) for name in ended}
    )


def connected_to(
    recipe: Recipe, sampler: str | None, scorer: str | None, connections: Path | None
) -> tuple[Recipe, Connections]:
    """The recipe with the addresses and credentials from flags and the connections file.

    Raises:
        InvalidInput: an address that is none, or a token that `sightline run` can't use.
        SettingsError: the file can't be used.
    """
    for address in (sampler, scorer):
        if address is not None:
            check_target(address)
    recipe = with_values(recipe, sampling={"address": sampler}, reward={"address": scorer})
    known = load_settings(Connections, service="connections", config=connections)
    known = Connections(sampler=_by_flag(sampler, known.sampler), scorer=_by_flag(scorer, known.scorer))
    return known.complete(recipe), known


def _by_flag(address: str | None, known: Connection | None) -> Connection | None:
    """The connection: the flag's address with the command's credentials, or the file's connection."""
    if address is None or (known is not None and known.address == address):
        return known
    tls, token_file = given().tls(), given().token_file
    if token_file is None and given().token() is not None:
        raise InvalidInput(
            "`sightline run` takes a token from a file: --token-file, not SIGHTLINE_TOKEN", reason="TOKEN"
        )
    return Connection(address=address, tls=None if tls is None else ClientTls(**vars(tls)), token_file=token_file)


def taking_turns(recipe: Recipe) -> Recipe:
    """The recipe with `sampling.rests` set: a sampler started here on the update's GPU rests during updates."""
    if recipe.sampling.rests is not None or recipe.sampling.address is not None or recipe.sampling.staleness:
        return recipe
    if recipe.dpo.launch or recipe.services.sampler.model_dump().get("engine", {}).get("device", "auto") not in _SHARED:
        return recipe
    import torch

    return with_values(recipe, sampling={"rests": torch.cuda.is_available()})


_SHARED = ("auto", "cuda", "cuda:0")  # a sampler's devices that the update uses too, if there is a GPU


def with_values(recipe: Recipe, **sections: Mapping[str, object]) -> Recipe:
    """The recipe with these values, except those that are None."""
    update = {
        name: getattr(recipe, name).model_copy(
            update={key: value for key, value in values.items() if value is not None}
        )
        for name, values in sections.items()
    }
    return recipe.model_copy(update=update)


def with_data(recipe: Recipe, cache: Path, most: int | None = None) -> Recipe:
    """The recipe with directories in place of dataset references; see `datasets.resolve`."""
    train, test = (resolve(reference, cache, most) for reference in (recipe.data.train, recipe.data.test))
    return with_values(recipe, data={"train": train, "test": test})


def _loop(recipe: Recipe, directory: Path, port: int, connections: Connections, as_json: bool) -> None:
    from prometheus_client import start_http_server
    from sightline_chassis import client_metrics

    client_metrics.install()
    if port:
        start_http_server(port, addr="127.0.0.1")
    known = RunDirectory(directory)
    with showing(recipe.iterations, as_json, known.evaluations()) as tell, _process_known(directory):
        execute(recipe, known, tell, connections)


PROCESS = ".process"
"""File in a run's directory: the process id of its `sightline run`, so that the console can stop it."""


@contextmanager
def _process_known(directory: Path) -> Iterator[None]:
    if leased(RunDirectory(directory)):  # another process works on it, as `execute` will report
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PROCESS).write_text(str(os.getpid()))
    try:
        yield
    finally:
        (directory / PROCESS).unlink(missing_ok=True)
