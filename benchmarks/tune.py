"""Try other values of a recipe at the leaderboard's budget, measured on validation scenes, never on test scenes.

    python benchmarks/tune.py clip_dpo --seeds 0
    python benchmarks/tune.py clip_dpo --seeds 0 --set dpo.loss.sft=1.0 --set filters.gap.min=4

Values start from the leaderboard's (`leaderboard.TUNED` over the recipe's file). Each run adds a line to
runs/tune/tries.jsonl, which records how many tries a recipe had; results/tries.jsonl has those for the leaderboard,
made from the files' own values. Measured are plain samples at temperature 1, greedy captions, and samples by the
recipe's own decoding if it has one. Validation scenes have no questions: POPE is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT
from leaderboard import measured, read_recipe, services
from sightline_trainer.decoding_settings import Decoding
from standings import FIGURES, SeedRun, ratio

SCENES, QUESTIONS = 400, 200


def ways(recipe: Any) -> dict[str, Any]:
    """The recipe with each measured way of sampling captions."""

    def drawn(decoding: Any, temperature: float) -> Any:
        changed = {"decoding": decoding, "temperature": temperature}
        return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=changed)})

    found = {"plain": drawn(Decoding(), 1.0), "greedy": drawn(Decoding(), 0.0)}
    return found if recipe.evaluation.decoding.plain else {**found, "decoded": recipe}


def try_one(name: str, seed: int, runs: Path, sampler: str, scorer: str, values: list[str]) -> dict[str, Any]:
    """Run and measure; the figures by way of sampling."""
    from sightline_cli.run import with_data
    from sightline_trainer.execute import execute
    from sightline_trainer.runs import RunDirectory

    on_validation = [*values, f"data.test=playground:validation?count={SCENES}&seed=3"]
    recipe = with_data(read_recipe(name, seed, sampler, scorer, on_validation), runs / "data")
    root = runs / f"{name}-{seed}"
    shutil.rmtree(root, ignore_errors=True)
    run = RunDirectory(root)
    execute(recipe, run, lambda event: None)
    rows = json.loads((root / "metrics.json").read_text())
    found: dict[str, Any] = {
        "recipe": name,
        "seed": seed,
        "values": values,
        "pairs": [row["pairs"] for row in rows[1:]],
    }
    for way, asked in ways(recipe).items():
        plain = way if way == "greedy" else "plain"
        kept = runs / f"base-{plain}-{seed}.json"
        if not kept.exists():
            kept.write_text(json.dumps(measured(ways(recipe)[plain], run, 0, SCENES, QUESTIONS)))
        base = json.loads(kept.read_text())
        final = measured(asked, run, int(rows[-1]["policy_version"]), SCENES, QUESTIONS)
        both = SeedRun(seed, *({m: np.asarray(c[m]).T for m in c} for c in (base, final)), None, {})
        figures = {key: figure for key, figure in FIGURES.items() if key != "pope_f1_change" or "pope_f1" in final}
        found[way] = {key: round(figure(both), 3) for key, figure in figures.items()}
        found[way] |= {"chair_s": round(ratio(both.final, "chair_s"), 3), "cover": round(ratio(both.final, "cover"), 3)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="values")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/tune")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(ROOT)
    with services(options.runs / "services") as (sampler, scorer):
        for seed in options.seeds:
            found = try_one(options.recipe, seed, options.runs, sampler, scorer, options.values)
            print(json.dumps(found), flush=True)
            with (options.runs / "tries.jsonl").open("a") as tries:
                tries.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
