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
RunPath = Annotated[Path, typer.Option("--run", help="Run directory; an existing run is restarted.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EventLines = Annotated[bool, typer.Option("--json", help="Print only events, as JSON lines.")]


def _tell(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("sightline"))
        raise typer.Exit


def _calling(flag: str, text: str) -> Any:
    """An option for all commands that call a service; its environment variable has the flag's name."""
    variable = f"SIGHTLINE_{flag.removeprefix('--').replace('-', '_').upper()}"
    return typer.Option(flag, envvar=variable, help=text, rich_help_panel="Credentials for running services")


@app.callback()
def credentials(
    tls: Annotated[bool, _calling("--tls", "Encrypt the connection.")] = False,
    tls_ca: Annotated[
        Path | None,
        _calling("--tls-ca", "PEM certificates that sign the service's; default: gRPC's own."),
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
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell)
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
    quick: Annotated[bool, typer.Option("--quick", help="Run one small iteration: about a minute.")] = False,
    as_json: EventLines = False,
    debug: Debug = False,
) -> None:
    """Align a small LVLM: three services on this machine, three iterations, a few minutes on a CPU."""

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
        typer.Option(
            help=(
                "YAML file with address, tls and token_file of scorer and sampler, as in the trainer's `connections`."
            )
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help=(
                "Do not start the run. Report what would end or waste it, try one prompt and one step"
                " of the update, and estimate memory and time. Exit code 2 if the run cannot start."
            ),
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only events, as JSON lines; with --check a single object.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a recipe in the foreground, with progress bars and a live table. Run it again to resume after a stop.

    Try it with `--check` first: within a minute or two it reports what would end the run.
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
    service: Annotated[ServiceName, typer.Argument(help="The service to run.")],
    config: Annotated[Path | None, typer.Option(help="Settings file (YAML).")] = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Run one service until SIGTERM. Flags override SIGHTLINE_* variables, the file and the defaults."""
    package = "sightline_scorer.gateway" if service is ServiceName.SCORER_HTTP else f"sightline_{service.value}"

    def work() -> None:
        import importlib

        module = importlib.import_module(f"{package}.server")
        raise typer.Exit(module.main(config, overrides or []))

    guarded(work, debug, "gateway" if service is ServiceName.SCORER_HTTP else service.value)


@app.command()
def token(
    team: Annotated[str, typer.Argument(help="Name of the calling team, such as vision.")],
    from_stdin: Annotated[bool, typer.Option("--stdin", help="Hash a token from stdin instead of making one.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a bearer token for a team, and print the line with its hash for the service's tokens file."""

    def work() -> None:
        from sightline_cli.token import token as make

        make(team, from_stdin=from_stdin, as_json=as_json)

    guarded(work, debug)


@app.command("sample")
def sample_(
    image: Annotated[Path, typer.Argument(help="A picture: JPEG, PNG, WebP or GIF.")],
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    also: Annotated[list[Path] | None, typer.Option(help="Another picture; may be repeated.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    n: Annotated[int, typer.Option("-n", help="Number of candidates.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same candidates.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="Softmax temperature; 0: greedy; default 1.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus mass; default 1 (all tokens).")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Maximum tokens of a candidate.")] = None,
    noise: Annotated[int | None, typer.Option(help="Add diffusion noise to the picture: step 0..999.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Address of a sampler; default: start one.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model for a sampler started here: a directory or a hub name; default: the playground's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, with tokens.")] = False,
    debug: Debug = False,
) -> None:
    """Sample N candidates for a picture, with tokens, log-probs, seeds and policy versions."""

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
    name: Annotated[str, typer.Option(help="Name of the scorer's model; default: the scorer's default.")] = "",
    model: Annotated[
        str | None,
        typer.Option(help="open_clip name or directory for a scorer started here; default: the playground's."),
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


@app.command("generate")
def generate_(
    wanted: Annotated[Path, typer.Argument(help="JSON lines: id, shows (what the picture should show), prompt.")],
    to: Annotated[Path, typer.Option(help="Directory to write the dataset to.")],
    url: Annotated[str, typer.Option(envvar="SIGHTLINE_PICTURES_URL", help="Text-to-image endpoint (OpenAI's API).")],
    endpoint_model: Annotated[str, typer.Option(help="Model to request from the endpoint.")] = "",
    size: Annotated[str, typer.Option(help="Size to request, such as 1024x1024.")] = "",
    count: Annotated[int, typer.Option(help="Number of pictures per text; the best is kept.", min=1, max=64)] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the pictures.")] = 0,
    scorer: Annotated[str | None, typer.Option(help="Address of a scorer; default: start one.")] = None,
    model: Annotated[
        str | None, typer.Option(help="open_clip name or directory to start one on; default: the playground's.")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="Pretrained tag or weights of an open_clip name.")] = None,
    debug: Debug = False,
) -> None:
    """Make a dataset of pictures from texts: a text-to-image server draws them, the scorer picks the best."""

    def work() -> None:
        from sightline_cli.generate import generate

        generate(
            wanted, to, url=url, model=endpoint_model, size=size, count=count, seed=seed, scorer=scorer, source=model,
            pretrained=pretrained,
        )  # fmt: skip

    guarded(work, debug, "scorer")


@app.command("report")
def report_(
    runs: Annotated[list[Path], typer.Argument(help="A run directory; several are compared side by side.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Output file; default: report.html in the run, or in this directory for several runs."),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Number of pictures per gallery.", min=0, max=2000)] = 48,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a report on a run as one HTML file: curves, pictures before and after, candidates and pairs, lineage."""

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
    trainer: Annotated[str | None, typer.Option(help="Address of a trainer service whose runs to show.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; callers need the token on any address.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: a free one.", min=0, max=65535)] = 8400,
    token: Annotated[
        Path | None, typer.Option("--console-token-file", help="File with the token that others must present.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Open a console in the browser to watch, start, stop, resume and compare runs."""

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
            help="Check running services instead: score a known picture, sample, check a seed, stage a policy that "
            "changes nothing and retire it, list runs.",
        ),
    ] = False,
    scorer: Annotated[str | None, typer.Option(help="With --live: address of a scorer.")] = None,
    sampler: Annotated[str | None, typer.Option(help="With --live: address of a sampler.")] = None,
    trainer: Annotated[str | None, typer.Option(help="With --live: address of a trainer.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check this machine, or services, and say what to fix. Exit code 1 if something is bad, 2 if no service is named.

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
    """Print the version."""
    guarded(lambda: typer.echo(importlib.metadata.version("sightline")), debug=False)
