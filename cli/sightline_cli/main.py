"""``sightline``: align a vision-language model, or run the services that do it.

Exit codes: 0 done; 1 failed, the reason is on the last lines; 2 the command line can not be read; 130 interrupted;
143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sightline_cli.eval import app as eval_app

app = typer.Typer(
    help="Online preference alignment of vision-language models, as services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(eval_app, name="eval")

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as dpo.beta=0.2.")
]
RunPath = Annotated[Path, typer.Option("--run", help="Run directory; one that exists is gone on with.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


class ServiceName(StrEnum):
    """The services that can be run."""

    SCORER = "scorer"
    SCORER_HTTP = "scorer-http"
    SAMPLER = "sampler"
    TRAINER = "trainer"


@app.command()
def demo(run: RunPath = Path("runs/demo"), overrides: Overrides = None, debug: Debug = False) -> None:
    """Watch a small LVLM lose its hallucinations: three services on loopback, three iterations, minutes on a CPU."""
    from sightline_cli.demo import demo as start

    _guarded(lambda: start(run, overrides or []), debug)


@app.command("run")
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, such as recipes/clip_dpo.yaml.")],
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run directory; default runs/NAME-TIME.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Address of a sampler; default: the recipe's, or start one.")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="Address of a scorer; default: the recipe's, or start one.")
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="Port of /metrics on loopback; 0 picks one.")] = 0,
    debug: Debug = False,
) -> None:
    """Run a recipe in the foreground, with progress bars and a live table. Run it again to go on after a stop."""
    from sightline_cli.run import run as start

    _guarded(
        lambda: start(
            recipe, overrides or [], directory=run, sampler=sampler, scorer=scorer, metrics_port=metrics_port
        ),
        debug,
    )


@app.command()
def serve(
    service: Annotated[ServiceName, typer.Argument(help="Which service.")],
    config: Annotated[Path | None, typer.Option(help="Settings file (YAML).")] = None,
    overrides: Overrides = None,
) -> None:
    """Run one service until SIGTERM. Settings: flags over SIGHTLINE_* variables over the file over defaults."""
    import importlib

    package = "sightline_scorer.gateway" if service is ServiceName.SCORER_HTTP else f"sightline_{service.value}"
    module = importlib.import_module(f"{package}.server")
    raise typer.Exit(module.main(config, overrides or []))


@app.command()
def token(
    team: Annotated[str, typer.Argument(help="The team that will call, such as vision.")],
    from_stdin: Annotated[bool, typer.Option("--stdin", help="Hash a token from stdin; make none.")] = False,
    debug: Debug = False,
) -> None:
    """Make a bearer token for a team, and the line with its hash for the service's tokens file."""
    from sightline_cli.token import token as make

    _guarded(lambda: make(team, from_stdin=from_stdin), debug)


@app.command("sample")
def sample_(
    image: Annotated[Path, typer.Argument(help="A picture: JPEG, PNG, WebP or GIF.")],
    prompt: Annotated[str, typer.Argument(help="What is asked about it.")],
    n: Annotated[int, typer.Option("-n", help="Candidates.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed; the same one gives the same candidates.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default 1.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus; default 1, all.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Most tokens of a candidate.")] = None,
    noise: Annotated[int | None, typer.Option(help="Diffusion noise on the picture: step 0..999.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Address of a sampler; default: start one.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model to start one on; default: the playground's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with tokens.")] = False,
    debug: Debug = False,
) -> None:
    """Ask a policy about a picture: N candidates with tokens, log-probs, seeds and policy versions."""
    from sightline_cli.sample import Wanted, sample

    wanted = Wanted(n, seed, temperature, top_p, max_tokens, noise)
    _guarded(lambda: sample(image, prompt, wanted, sampler=sampler, model=model, as_json=as_json), debug)


def _guarded(command: Callable[[], None], debug: bool) -> None:
    """Run a command: an expected error is one paragraph on stderr and exit code 1; SIGTERM unwinds as Ctrl-C does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from sightline_chassis.errors import SightlineError
    from sightline_chassis.settings import SettingsError

    from sightline_cli.processes import StartError

    try:
        command()
    except (SightlineError, SettingsError, StartError) as error:
        if debug:
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.secho("interrupted; run the same command again to go on", fg="yellow", err=True)
        raise typer.Exit(130) from None


def main() -> None:
    """Entry point of the ``sightline`` script."""
    # Threads of torch that wait for each other by spinning crawl as soon as another process wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="sightline")
