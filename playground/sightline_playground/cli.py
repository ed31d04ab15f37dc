"""The command line. Heavy modules are imported only when a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sightline_playground import weights_dir
from sightline_playground.scenes import SPLITS

if TYPE_CHECKING:
    from rich.console import Console

    from sightline_playground.bands import Band
    from sightline_playground.llava_training import LlavaRecipe


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="python -m sightline_playground", description="A small world with known truth.")
    commands = top.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="train the tiny CLIP and the tiny LVLM from scratch and measure them")
    make.add_argument("--out", type=Path, default=Path("runs/playground"), help="directory (default: %(default)s)")
    make.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    make.add_argument(
        "--keep-scorer", type=Path, metavar="DIR", help="use the CLIP of this playground and train only the LVLM"
    )
    _mixture(make)
    skill = commands.add_parser("skill", help="make a second LVLM that rates answers, improves them, asks and answers")
    skill.add_argument("--base", type=Path, default=weights_dir(), help="playground to start from (default: shipped)")
    skill.add_argument("--out", type=Path, default=Path("runs/playground"), help="directory (default: %(default)s)")
    skill.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    check = commands.add_parser("check", help="measure weights and compare with the model card's tolerance")
    check.add_argument("--weights", type=Path, default=weights_dir(), help="directory (default: the shipped weights)")
    export = commands.add_parser("export", help="write a split as a plain dataset")
    export.add_argument("--out", type=Path, required=True)
    export.add_argument("--split", choices=SPLITS, required=True)
    export.add_argument("--count", type=int, required=True, help="scenes")
    export.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    paint = commands.add_parser("paint", help="serve pictures of texts over HTTP, as a text-to-image server does")
    paint.add_argument("--port", type=int, default=8090, help="on loopback (default: %(default)s)")
    return top


def _mixture(make: argparse.ArgumentParser) -> None:
    """VILA's findings as options (see `mixture`)."""
    group = make.add_argument_group("VILA's findings", "choose the LVLM's training data, and which weights are trained")
    group.add_argument("--steps", type=int, metavar="N", help="train for N steps (default: the shipped LVLM's)")
    group.add_argument("--text-steps", type=int, metavar="N", default=0, help="first, train N steps on captions alone")
    group.add_argument("--freeze-llm", action="store_true", help="after --text-steps, train only the projector")
    for option, what in (("--interleaved", "documents of two pictures"), ("--text-only", "captions without pictures")):
        group.add_argument(option, type=float, metavar="SHARE", default=0.0, help=f"use {what} in this share of steps")


def _recipe(options: argparse.Namespace) -> LlavaRecipe:
    """The LVLM's recipe from the options.

    Raises:
        ValueError: the options contradict each other or are out of range.
    """
    from sightline_playground.llava_training import LlavaRecipe
    from sightline_playground.mixture import Mixture

    mixed = Mixture(options.text_steps, options.freeze_llm, options.interleaved, options.text_only)
    return LlavaRecipe(mixture=mixed) if options.steps is None else LlavaRecipe(steps=options.steps, mixture=mixed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 on success, 1 if a number is out of tolerance, 2 for a wrong command line."""
    commands = parser()
    options = commands.parse_args(arguments)
    if options.command == "export":
        from sightline_playground.export import export

        if options.count < 1:
            commands.error(f"argument --count: {options.count}; wanted 1 or more")
        exported = export(options.out, options.split, options.count, options.seed)
        print(f"{len(exported)} scenes of split {options.split} in {options.out}")
        return 0
    if options.command == "paint":
        from sightline_playground.painter import server

        with server(options.port) as painting:
            print(f"http://127.0.0.1:{painting.server_port}", flush=True)
            painting.serve_forever()
        return 0
    if options.command == "make":
        try:
            options.recipe = _recipe(options)
        except ValueError as error:
            commands.error(str(error))
    if options.command == "check" and not (options.weights / "clip").is_dir():
        commands.error(f"argument --weights: no playground weights in {options.weights}")
    return _report(options)


def _report(options: argparse.Namespace) -> int:
    """Make or measure, then compare the numbers with their bands."""
    from rich.console import Console

    from sightline_playground import make, skilled
    from sightline_playground.bands import BANDS, SKILLED_BANDS

    console = Console()
    reports: list[tuple[dict[str, float], dict[str, Band]]] = []
    if options.command == "make":
        make.make(options.out, options.seed, console, options.keep_scorer, options.recipe)
        reports.append((_written(options.out, console), BANDS))
    elif options.command == "skill":
        skilled.make_skilled(options.base, options.out, options.seed, console)
        reports.append((_written(options.out / skilled.NAME, console), SKILLED_BANDS))
    else:
        reports.append((make.measured(options.weights, console), BANDS))
        if (options.weights / skilled.NAME).is_dir():
            reports.append((skilled.measured(options.weights, console), SKILLED_BANDS))
    return max(_compare(console, *report) for report in reports)


def _written(directory: Path, console: Console) -> dict[str, float]:
    """The numbers beside a model that was just made."""
    import json

    console.print(f"weights, MODEL_CARD.md and metrics.json are in {directory}")
    numbers: dict[str, float] = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))["numbers"]
    return numbers


def _compare(console: Console, numbers: dict[str, float], bands: dict[str, Band]) -> int:
    """Print each number with its tolerance. Returns 1 if a number is outside, otherwise 0."""
    from rich.table import Table

    from sightline_playground.bands import outside

    table = Table("number", "value", "tolerance", "")
    for name, band in bands.items():
        fine = name in numbers and band.holds(numbers[name])
        value = f"{numbers.get(name, float('nan')):.3f}"
        table.add_row(name, value, f"{band.low:g} .. {band.high:g}", "ok" if fine else "OUT")
    console.print(table)
    complaints = outside(numbers, bands)
    for complaint in complaints:
        console.print(complaint)
    return 1 if complaints else 0
