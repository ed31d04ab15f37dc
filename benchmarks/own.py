"""Compare recipes/sightline.yaml with clip_dpo and the oracle on test scenes, over seeds, at the leaderboard's budget.

    python benchmarks/own.py                            five seeds, an hour on two cores; finished runs are kept
    python benchmarks/own.py --seeds 0 --recipes sightline

Each run leaves one JSON under benchmarks/results/own/, with the contribution of each of 600 test scenes: samples at
temperature 1 as the recipe decodes them, greedy captions, 4 samples of 200 scenes (`distinct`), 1,000 questions; and
the same of the base model with the same seed. sightline.yaml's greedy captions are decoded without guidance, as
clip_dpo's are; `plain_chair_s` and `plain_distinct` are of its samples without guidance. Intervals are 95 % bootstraps
over seeds and images (standings.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from harness import RESULTS, ROOT, Row, cpu_seconds, write
from leaderboard import keep, measured, plainly, read_recipe, services
from standings import FIGURES, Counts, SeedRun, counts_in, over_without, ratio, with_interval

RECIPES = ("sightline", "clip_dpo", "oracle")
SEEDS = (0, 1, 2, 3, 4)
SCENES, QUESTIONS = 600, 1000
MORE = {"greedy_prompts": SCENES, "diverse_prompts": 200, "samples": 4}
KEPT = RESULTS / "own"


def run_one(name: str, seed: int, runs: Path, sampler: str, scorer: str) -> dict[str, Any]:
    """Train a recipe from the start and measure its last policy; the base model too, if the seed has no kept result."""
    from sightline_cli.run import with_data
    from sightline_trainer.execute import execute
    from sightline_trainer.runs import RunDirectory

    recipe = with_data(read_recipe(name, seed, sampler, scorer), runs / "data")
    root, began = runs / f"{name}-{seed}", (time.monotonic(), cpu_seconds())
    shutil.rmtree(root, ignore_errors=True)
    run = RunDirectory(root)
    execute(recipe, run, lambda event: None)
    rows = json.loads((root / "metrics.json").read_text())
    took = round(time.monotonic() - began[0]), round(cpu_seconds() - began[1])
    version = int(rows[-1]["policy_version"])
    counts = measured(recipe, run, version, SCENES, QUESTIONS, **MORE)
    if not recipe.evaluation.decoding.plain:
        plain = measured(plainly(recipe), run, version, SCENES, 0, **MORE)
        counts |= {key: plain[key] for key in ("greedy_chair_s", "greedy_cover")}
        counts |= {f"plain_{key}": plain[key] for key in ("chair_s", "distinct")}
    base = KEPT / f"base-{seed}.json"
    if not base.exists():
        keep(base, {"seed": seed, "counts": measured(plainly(recipe), run, 0, SCENES, QUESTIONS, **MORE)})
    return {
        "recipe": name, "seed": seed, "pairs": [row["pairs"] for row in rows[1:]], "counts": counts,
        "training_wall_seconds": took[0], "training_cpu_seconds": took[1],
    }  # fmt: skip


def beside(name: str, other: str, seeds: list[int]) -> list[SeedRun]:
    """Runs of a recipe, each with another one's as `without` and the base model's as `base`."""

    def kept(one: str, seed: int) -> Counts:
        return counts_in(json.loads((KEPT / f"{one}-{seed}.json").read_text()))

    return [SeedRun(seed, *(kept(one, seed) for one in ("base", name, other)), {}) for seed in seeds]


def minus(than: Literal["base", "without"], metric: str, theirs: str = "") -> Callable[[SeedRun], float]:
    """The recipe's metric minus that (or `theirs`) of the base model or of the other recipe."""
    return lambda run: ratio(run.final, metric) - ratio(getattr(run, than), theirs or metric)


def rows_of(seeds: list[int]) -> list[Row]:
    """All figures."""
    own, oracle = beside("sightline", "clip_dpo", seeds), beside("oracle", "clip_dpo", seeds)
    cut, base = FIGURES["chair_s_cut"], "the base model"
    plain = minus("without", "plain_chair_s", "chair_s")
    asked: list[tuple[str, list[SeedRun], Callable[[SeedRun], float], str, float | None, str]] = [
        ("sightline_chair_s_cut", own, cut, "higher", 0.72, base),
        ("sightline_cut_over_clip_dpo", own, over_without, "higher", 0.0, "clip_dpo"),
        ("clip_dpo_chair_s_cut", beside("clip_dpo", "clip_dpo", seeds), cut, "higher", None, base),
        ("oracle_chair_s_cut", oracle, cut, "higher", None, base),
        ("sightline_cover_change", own, FIGURES["cover_change"], "higher", 0.02, base),
        ("sightline_pope_f1_change", own, FIGURES["pope_f1_change"], "higher", -0.01, base),
        ("sightline_length_change", own, FIGURES["length_change"], "higher", -0.05, base),
        ("sightline_distinct_change", own, minus("base", "distinct"), "higher", -0.10, base),
        ("sightline_greedy_chair_s_over_clip_dpo", own, minus("without", "greedy_chair_s"), "lower", 0.0, "clip_dpo"),
        ("sightline_greedy_cover_over_clip_dpo", own, minus("without", "greedy_cover"), "higher", 0.0, "clip_dpo"),
        ("sightline_plain_chair_s_over_clip_dpo", own, plain, "lower", None, "clip_dpo"),
        ("sightline_plain_distinct_change", own, minus("base", "plain_distinct", "distinct"), "higher", None, base),
        ("sightline_cut_at_equal_length", own, FIGURES["chair_s_cut_at_equal_length"], "higher", None, base),
        ("sightline_attribute_change", own, FIGURES["attribute_change"], "higher", None, base),
    ]
    rows = []
    for name, runs, figure, better, target, against in asked:
        value, low, high = with_interval(runs, figure)
        detail = {"low": low, "high": high, "seeds": seeds, "by_seed": [round(figure(run), 4) for run in runs]}
        rows.append(Row(name, value, "ratio", better, target, against, detail))  # type: ignore[arg-type]
    return rows


def main() -> None:
    """Run what is missing, and write the figures of the seeds that have all recipes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/own")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.chdir(ROOT)
    wanted = [(name, seed) for seed in options.seeds for name in options.recipes]
    missing = [(name, seed) for name, seed in wanted if not (KEPT / f"{name}-{seed}.json").exists()]
    if missing:
        with services(options.runs / "services") as (sampler, scorer):
            for name, seed in missing:
                made = run_one(name, seed, options.runs, sampler, scorer)
                keep(KEPT / f"{name}-{seed}.json", made)
                print(f"{name} seed {seed}: {made['training_cpu_seconds']} CPU seconds of training", flush=True)
    whole = [seed for seed in SEEDS if all((KEPT / f"{name}-{seed}.json").exists() for name in RECIPES)]
    if whole:
        write("own", rows_of(whole))


if __name__ == "__main__":
    main()
