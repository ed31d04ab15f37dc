"""Run real architectures through the whole loop, on tiny checkpoints and photos of mixed sizes.

    make families                 # every family; half an hour on two cores
    make families ARGS=--quick    # six of them, float32 alone, full fine-tuning with one iteration; five minutes

Of each family: its checkpoint (true config, processor and shape of template, random weights) behind a sampler, with a
scorer on the playground's CLIP for all families; runs of LoRA and full fine-tuning in float32, and of LoRA in bfloat16
(trainer and sampler). A third of the prompts are conversations about two images, with a system prompt and an answer
before. A run is two iterations of sample, score, pair, update, publish with proof and evaluate, then merge and export
(`family_loop.py`). Families that may be refused have one row: `<family>_runs`, or `<family>_refused` with the reason.

A family's rows are written when it is done. Finished families are kept unless `--again` is set, so an interrupted run
continues (SIGTERM ends it at once), and further families can be added.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT, Row, write

sys.path.insert(0, str(ROOT / "tests"))

QUICK = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "smolvlm")
MODES = (("lora", "float32"), ("full", "float32"), ("lora", "bfloat16"))
WITHIN = {
    "arrival_gap": (1e-3, "the sampler's log-probs of the trainer's probes"),
    "worst_pair_gap": (1e-3, "plain forwards of one processor call, and the sampler's log-probs"),
    "gradient_difference": (1e-4, "the same pairs one by one in plain rows"),
}


def measure(family: str, scorer: str, work: Path, modes: Sequence[tuple[str, str]] = MODES) -> list[Row]:
    """The rows of a family."""
    from family_loop import Loop, checkpoint, datasets_at, loop, recipe

    began, model = time.monotonic(), checkpoint(work / "model", family)
    data = datasets_at(work / "data", conversations=True)
    loops: list[Loop] = []
    faults: dict[str, str] = {}
    for dtype in dict.fromkeys(dtype for _, dtype in modes):
        asked = [mode for mode in modes if mode[1] == dtype]
        try:
            with sampling(model, dtype) as address:
                for mode in asked:
                    try:
                        iterations = 1 if mode[0] == "full" and modes != MODES else 2
                        wanted = recipe(model, (address, scorer), data, mode, iterations)
                        loops.append(loop(wanted, work / "-".join(mode)))
                    except Exception as error:
                        logging.getLogger(__name__).warning("%s", " ".join(mode), exc_info=True)
                        faults[" ".join(mode)] = _said(error)
        except Exception as error:  # the sampler does not start
            faults |= {" ".join(mode): _said(error) for mode in asked}
    return rows_of(family, loops, faults, time.monotonic() - began)


def rows_of(family: str, loops: Sequence[Any], faults: dict[str, str], seconds: float) -> list[Row]:
    """Rows of what was measured; the figures are those of float32, the worst of LoRA and full."""
    seen = {each.mode: {**_figures(each), "pairs": each.pairs, **each.facts} for each in loops}
    detail = {"loops": seen, "seconds": round(seconds)} | ({"failed": faults} if faults else {})
    rows = [Row(f"{family}_whole_loop", float(not faults), "", "higher", 1.0, "", detail)]
    exact = [each for each in loops if each.mode.endswith("float32")]
    for name, (bound, against) in WITHIN.items():
        if exact:
            value = max(getattr(each, name) for each in exact)
            unit = "share of the norm" if name == "gradient_difference" else "nats a token"
            rows.append(Row(f"{family}_{name}", value, unit, "lower", bound, against))
    if exact:
        value = min(each.image_matters for each in exact)
        rows.append(Row(f"{family}_image_matters", value, "nats a token", "higher", 1e-3, "a blank picture"))
    return rows


def _figures(found: Any) -> dict[str, float]:
    names = ("arrival_gap", "worst_pair_gap", "gradient_difference", "image_matters")
    values = {name: getattr(found, name) for name in names}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def other(family: str, scorer: str, work: Path) -> list[Row]:
    """The row of a family that runs, or is refused at the sampler's start with the reason."""
    from family_loop import checkpoint, datasets_at, loop, recipe
    from sightline.errors import PreconditionFailed

    model, data = checkpoint(work / "model", family), datasets_at(work / "data")
    by = "sampler"
    try:
        with sampling(model, "float32") as address:
            by = "run"
            found = loop(recipe(model, (address, scorer), data, MODES[0], 2), work / "lora")
    except PreconditionFailed as error:
        begun = any((work / "lora/run/iterations").glob("*/candidates/*"))
        detail = {"by": by, "before_sampling": not begun, "said": _said(error, model)}
        return [Row(f"{family}_refused", float(not begun), "", "higher", 1.0, "", detail)]
    except Exception as error:
        return [Row(f"{family}_runs", 0.0, "", "higher", 1.0, "", {"failed": _said(error, model)})]
    return [Row(f"{family}_runs", 1.0, "", "higher", 1.0, "", {**_figures(found), "pairs": found.pairs, **found.facts})]


@contextlib.contextmanager
def sampling(model: Path, dtype: str) -> Iterator[str]:
    """Start a sampler with its gate in a thread of this process (a new process needs 15 s to import); its address."""
    from sampler_models import running

    engine = {"dtype": dtype}
    if (model / "chat_template.jinja").exists():  # BLIP-2's processor does not read it
        engine["chat_template"] = str(model / "chat_template.jinja")
    with running(model, engine=engine, policies={"gate": {"required": True}}) as at:
        yield at.address


def _said(error: BaseException, model: Path | None = None) -> str:
    reason = getattr(error, "reason", "") or type(error).__name__
    text = " ".join(str(error).split())
    return f"{reason}: {text.replace(str(model), 'the model') if model else text}"[:600]


def finished(file: Path) -> dict[str, Row]:
    """The rows of an existing result, by name."""
    if not file.exists():
        return {}
    return {row["name"]: Row(**row) for row in json.loads(file.read_text())["rows"]}


def _end_at_once(scratch: Path, processes: Any) -> None:
    """Let SIGTERM end this process at any point. In a loop, a run's own handler would end only that run, and the next
    would begin."""

    def end(number: int, frame: object) -> None:
        processes.stop()
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def main() -> None:
    """Measure the requested families that have no rows yet, and print all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="these alone")
    parser.add_argument("--quick", action="store_true", help=", ".join(QUICK))
    parser.add_argument("--again", action="store_true", help="measure finished families again")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of families.json")
    parser.add_argument("--log", action="store_true", help="show what the trainer logs, and errors whole")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO if arguments.log else logging.CRITICAL)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import families
    from sightline_cli.processes import Processes

    known = [*families.FAMILIES, *families.OTHERS]
    wanted = arguments.families or (QUICK if arguments.quick else known)
    if unknown := set(wanted) - set(known):
        parser.error(f"no such family: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    rows = finished(arguments.results / "families.json")
    modes = MODES[:2] if arguments.quick else MODES
    with tempfile.TemporaryDirectory(prefix="families-") as scratch, Processes(Path(scratch) / "services") as processes:
        _end_at_once(Path(scratch), processes)
        processes.start("scorer", [f"models.clip.source=local-dir:{ROOT / 'playground/weights/clip'}"])
        scorer = processes.wait("scorer").grpc
        for family in wanted:
            if not arguments.again and _done(rows, family, modes):
                continue
            work = Path(scratch) / family
            known_whole = family in families.FAMILIES
            made = measure(family, scorer, work, modes) if known_whole else other(family, scorer, work)
            rows = {name: row for name, row in rows.items() if name not in _names(family)}
            rows |= {row.name: row for row in made}
            at = {name: place for place, each in enumerate(known) for name in _names(each)}
            rows = dict(sorted(rows.items(), key=lambda item: at[item[0]]))
            print(f"{family}: {made[0].name} {made[0].value:g}, {made[0].detail}", flush=True)
            write("families", list(rows.values()), directory=arguments.results, show=False)
    write("families", list(rows.values()), directory=arguments.results)


def _names(family: str) -> set[str]:
    ends = ("whole_loop", *WITHIN, "image_matters", "runs", "refused")
    return {f"{family}_{end}" for end in ends}


def _done(rows: dict[str, Row], family: str, modes: Sequence[tuple[str, str]]) -> bool:
    """Whether the family was measured in these modes without a failure."""
    whole = rows.get(f"{family}_whole_loop")
    if whole is not None:
        return whole.value == 1.0 and {" ".join(mode) for mode in modes} <= set(whole.detail["loops"])
    return any(rows[name].value == 1.0 for name in _names(family) & set(rows))


if __name__ == "__main__":
    main()
