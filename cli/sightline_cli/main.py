"""`sightline`: align a vision-language model, or run the services that do it.

Exit codes: see sightline_cli.failures.
"""

from __future__ import annotations

import importlib.metadata
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sightline_cli.credentials import Credentials, give, given
from sightline_cli.eval import app as eval_app
from sightline_cli.failures import guarded
from sightline_cli.policies import app as policies_app
from sightline_cli.recipe import app as recipe_app
from sightline_cli.runs import app as runs_app
from sightline_cli.scorer import app as scorer_app
from sightline_cli.triton import app as triton_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(eval_app, name="eval")
app.add_typer(policies_app, name="policies")
app.add_typer(recipe_app, name="recipe")
app.add_typer(runs_app, name="runs")
app.add_typer(scorer_app, name="scorer")
app.add_typer(triton_app, name="triton")

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as dpo.beta=0.2.")
]
RunPath = Annotated[Path, typer.Option("--run", help="Run directory; a run that is there is begun anew.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
EventLines = Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout, nothing else.")]


def _tell(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("sightline"))
        raise typer.Exit


def _calling(flag: str, text: str) -> Any:
    """An option for all commands that call a service; the variable that stands in for it has the flag's name."""
    variable = f"SIGHTLINE_{flag.removeprefix('--').replace('-', '_').upper()}"
    return typer.Option(flag, envvar=variable, help=text, rich_help_panel="Calling a running service that asks for it")


@app.callback()
def credentials(
    tls: Annotated[bool, _calling("--tls", "Encrypt.")] = False,
    tls_ca: Annotated[
        Path | None,
        _calling("--tls-ca", "PEM certificates that sign the service's; default: those that gRPC brings."),
    ] = None,
    tls_cert: Annotated[Path | None, _calling("--tls-cert", "Our own certificate, for mutual TLS.")] = None,
    tls_key: Annotated[Path | None, _calling("--tls-key", "Its private key.")] = None,
    tls_name: Annotated[
        str | None, _calling("--tls-name", "Name in the service's certificate, if not the address's.")
    ] = None,
    token_file: Annotated[
        Path | None, _calling("--token-file", "File with the token to send; SIGHTLINE_TOKEN may hold it instead.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Tell the version.", is_eager=True, callback=_tell)
    ] = False,
) -> None:
    """Online preference alignment of vision-language models, as services."""
    give(Credentials(tls, tls_ca, tls_cert, tls_key, tls_name, token_file))


class ServiceName(StrEnum):
    """The services that can be run."""

    SCORER = "scorer"
    SCORER_HTTP = "scorer-http"
    SAMPLER = "sampler"
    TRAINER = "trainer"


@app.command()
def demo(
    run: RunPath = Path("runs/demo"),
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="One small iteration: about a minute.")] = False,
    as_json: EventLines = False,
    debug: Debug = False,
) -> None:
    """Watch a small LVLM lose its hallucinations: three services on loopback, three iterations, minutes on a CPU."""

    def work() -> None:
        from sightline_cli.demo import QUICK
        from sightline_cli.demo import demo as start

        start(run, [*(QUICK if quick else ()), *(overrides or [])], as_json)

    guarded(work, debug, "playground")


@app.command("run")
def run_recipe(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one, such as clip_dpo.")],
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run directory; default runs/NAME-TIME.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Address of a sampler; default: the recipe's, or start one.")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="Address of a scorer; default: the recipe's, or start one.")
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="Port of /metrics on loopback; 0: none.", min=0, max=65535)] = 0,
    connections: Annotated[
        Path | None,
        typer.Option(help="YAML file of scorer and sampler: address, tls, token_file, as the trainer's `connections`."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Begin nothing: look for what would end the run or waste it, try one prompt and one step of the "
            "update, say what memory and time it will take. Leaves nothing behind. Exit code 2: something is wrong.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Events as JSON lines on stdout; with --check one object, nothing else.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a recipe in the foreground, with progress bars and a live table. Run it again to go on after a stop.

    `--check` first: it takes seconds to minutes, and a run that can't come about ends there and not after hours.
    """

    def work() -> None:
        if check:
            from sightline_cli.check import check as look

            if not look(
                recipe,
                overrides or [],
                directory=run,
                sampler=sampler,
                scorer=scorer,
                connections=connections,
                as_json=as_json,
            ):
                raise typer.Exit(2)
            return
        from sightline_cli.run import run as start

        start(
            recipe,
            overrides or [],
            directory=run,
            sampler=sampler,
            scorer=scorer,
            metrics_port=metrics_port,
            connections=connections,
            as_json=as_json,
        )

    guarded(work, debug, "scorer,sampler,trainer")


@app.command()
def serve(
    service: Annotated[ServiceName, typer.Argument(help="Which service.")],
    config: Annotated[Path | None, typer.Option(help="Settings file (YAML).")] = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Run one service until SIGTERM. Settings: flags over SIGHTLINE_* variables over the file over defaults."""
    package = "sightline_scorer.gateway" if service is ServiceName.SCORER_HTTP else f"sightline_{service.value}"

    def work() -> None:
        import importlib

        module = importlib.import_module(f"{package}.server")
        raise typer.Exit(module.main(config, overrides or []))

    guarded(work, debug, "gateway" if service is ServiceName.SCORER_HTTP else service.value)


@app.command()
def token(
    team: Annotated[str, typer.Argument(help="The team that will call, such as vision.")],
    from_stdin: Annotated[bool, typer.Option("--stdin", help="Hash a token from stdin; make none.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a bearer token for a team, and the line with its hash for the service's tokens file."""

    def work() -> None:
        from sightline_cli.token import token as make

        make(team, from_stdin=from_stdin, as_json=as_json)

    guarded(work, debug)


@app.command("sample")
def sample_(
    image: Annotated[Path, typer.Argument(help="A picture: JPEG, PNG, WebP or GIF.")],
    prompt: Annotated[str, typer.Argument(help="What is asked about it.")],
    also: Annotated[list[Path] | None, typer.Option(help="A further picture behind it; may stand again.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    n: Annotated[int, typer.Option("-n", help="Candidates.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed; the same one gives the same candidates.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default 1.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus; default 1, all.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Most tokens of a candidate.")] = None,
    noise: Annotated[int | None, typer.Option(help="Diffusion noise on the picture: step 0..999.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Address of a sampler; default: start one.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to start one on: a folder or a hub name; default: the playground's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with tokens.")] = False,
    debug: Debug = False,
) -> None:
    """Ask a policy about a picture: N candidates with tokens, log-probs, seeds and policy versions."""

    def work() -> None:
        from sightline_cli.sample import Wanted, sample

        wanted = Wanted(n, seed, temperature, top_p, max_tokens, noise)
        pictures = [image, *(also or [])]
        sample(pictures, prompt, wanted, system=system, sampler=sampler, model=model, as_json=as_json)

    guarded(work, debug, "sampler")


@app.command("score")
def score_(
    image: Annotated[Path, typer.Argument(help="A picture: JPEG, PNG, WebP or GIF.")],
    texts: Annotated[list[str], typer.Argument(help="Texts to compare with it.")],
    scorer: Annotated[str | None, typer.Option(help="Address of a scorer; default: start one.")] = None,
    name: Annotated[str, typer.Option(help="Which of the scorer's models; default: its own choice.")] = "",
    model: Annotated[
        str | None, typer.Option(help="open_clip name or directory to start one on; default: the playground's.")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="Pretrained tag or weights of an open_clip name.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score texts against a picture: CLIPScore, cosine and logit, best first."""

    def work() -> None:
        from sightline_cli.score import score

        score(image, texts, scorer=scorer, name=name, model=model, pretrained=pretrained, as_json=as_json)

    guarded(work, debug, "scorer")


@app.command("report")
def report_(
    runs: Annotated[list[Path], typer.Argument(help="A run directory; several are compared side by side.")],
    out: Annotated[Path | None, typer.Option(help="Default: report.html in the run, or here for several.")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures of each gallery.", min=0, max=2000)] = 48,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run as one HTML file: curves, pictures before and after, candidates and pairs, lineage."""

    def work() -> None:
        from sightline_cli.report import report

        report(runs, out, pictures, as_json)

    guarded(work, debug, "report,trainer")


@app.command("watch")
def watch_(
    run: Annotated[str, typer.Argument(help="A run directory, or with --trainer a run's id.")],
    trainer: Annotated[str | None, typer.Option(help="Address of a trainer that has the run.")] = None,
    as_json: EventLines = False,
    debug: Debug = False,
) -> None:
    """Watch a run in the terminal until it ends; `sightline ui` shows it in the browser."""

    def work() -> None:
        from sightline_cli import watch

        if trainer is not None:
            watch.watch_remote(trainer, run, as_json)
        else:
            watch.watch(Path(run), as_json)

    guarded(work, debug, "trainer")


@app.command("ui")
def ui_(
    runs: Annotated[Path, typer.Argument(help="A directory of runs.")] = Path("runs"),
    trainer: Annotated[str | None, typer.Option(help="Address of a trainer: show its runs.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach asks for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8400,
    token: Annotated[
        Path | None, typer.Option("--console-token-file", help="File with the token that others must know.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Open a console in the browser: all runs, live; start, stop, resume, compare them."""

    def work() -> None:
        from sightline_cli.console.serve import serve

        serve(runs, trainer, given().of_client(), host, port, token)

    guarded(work, debug, "report,trainer")


@app.command("export")
def export_(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    to: Annotated[str, typer.Option(metavar="DIR|hub:ORG/NAME", help="A new directory, or a name on the hub.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's pairs as a preference dataset with images, ready for TRL's DPOTrainer."""

    def work() -> None:
        from sightline_cli.export import export

        export(run, to, as_json)

    guarded(work, debug, "trainer")


@app.command("convert")
def convert_(
    source: Annotated[Path, typer.Argument(help="A released checkpoint, such as MobileVLM_V2-1.7B's directory.")],
    target: Annotated[Path, typer.Argument(help="A new directory.")],
    debug: Debug = False,
) -> None:
    """Turn a released MobileVLM V2 checkpoint into one that sampler and trainer load."""

    def write() -> None:
        from sightline_chassis.families.mobilevlm_checkpoint import convert

        convert(source, target)
        typer.echo(target)

    guarded(write, debug)


@app.command("doctor")
def doctor_(
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Look at running services instead: score a known picture, sample, prove a seed, stage a policy that "
            "changes nothing and retire it, list runs.",
        ),
    ] = False,
    scorer: Annotated[str | None, typer.Option(help="With --live: address of a scorer.")] = None,
    sampler: Annotated[str | None, typer.Option(help="With --live: address of a sampler.")] = None,
    trainer: Annotated[str | None, typer.Option(help="With --live: address of a trainer.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at this machine, or at services; say what to do. Exit code 1 if something is bad, 2 if nothing is named.

    This machine: Python, Triton, torch, packages, ports.
    """

    def look() -> None:
        from sightline_cli.doctor import doctor
        from sightline_cli.live import LiveServices, look_at

        addresses = LiveServices(scorer, sampler, trainer)
        if not (look_at(addresses, as_json) if live or addresses.any() else doctor(as_json)):
            raise typer.Exit(1)

    guarded(look, debug)


@app.command("version")
def version_() -> None:
    """Tell the version."""
    guarded(lambda: typer.echo(importlib.metadata.version("sightline")), debug=False)
