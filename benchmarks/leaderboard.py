"""Leaderboard: every recipe on the playground at equal budget, over seeds, with intervals.

    make leaderboard                                        all recipes, 3 seeds; finished runs are kept
    python benchmarks/leaderboard.py --recipes bpo --seeds 0

Equal budget: at most 768 pairs and 48 updates in each of 3 iterations, as the recipe files say (two pairs of a prompt
are one row of POVID's loss). What a filter drops is not made up for; the table shows the pairs that were trained on. A
seed moves prompts, candidates, the update and the evaluation's samples. The base model is measured once for each seed.

A cut is 1 - CHAIR_s after the last iteration / CHAIR_s of the base model. Intervals: 95 % percentile bootstrap over
seeds, and over test images within a seed, the same images for a policy and its base. With 3 seeds they are rough.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, ROOT, Row, cpu_seconds, write
from numpy.typing import NDArray

RECIPES = ("clip_dpo", "mixed", "bpo", "povid", "oracle")
METRICS = ("chair_s", "chair_i", "cover", "pope_f1", "mean_tokens", "clip_score")
TARGETS = {"clip_dpo_chair_s_cut": 0.6, "clip_dpo_cover_change": -0.01}
SCENES, QUESTIONS = 600, 300
RESAMPLES = 2000


def overrides(name: str, seed: int, sampler: str, scorer: str) -> list[str]:
    """What a run of the leaderboard has in place of the recipe's values."""
    return [
        "threads=1",
        f"seed={seed}",
        f"evaluation.seed={seed}",
        f"data.test=playground:test?count={SCENES}&seed=2",
        f"evaluation.prompts={SCENES}",
        f"evaluation.questions={QUESTIONS}",
        "evaluation.greedy_prompts=0",
        "evaluation.diverse_prompts=0",
        f"sampling.address={sampler}",
        f"reward.address={scorer}",
    ]


def run_one(name: str, seed: int, runs: Path, sampler: str, scorer: str) -> None:
    """Run a recipe with a seed from nothing, but for the base model's evaluation where another recipe has made it."""
    from sightline_cli.run import with_data
    from sightline_trainer.events import Event
    from sightline_trainer.execute import execute
    from sightline_trainer.recipe import load_recipe
    from sightline_trainer.runs import RunDirectory

    root = runs / f"{name}-{seed}"
    shutil.rmtree(root, ignore_errors=True)
    base = next((done for done in runs.glob(f"*-{seed}/iterations/0000") if (done / "evaluation.json").exists()), None)
    if base is not None:
        shutil.copytree(base, root / "iterations/0000")
    recipe = with_data(
        load_recipe(ROOT / f"recipes/{name}.yaml", overrides(name, seed, sampler, scorer)), runs / "data"
    )
    wall, cpu = time.monotonic(), cpu_seconds()

    def tell(event: Event) -> None:
        if event.stage == "iteration":
            row = event.metrics
            print(f"{name} seed {seed}: v{row['policy_version']:.0f} CHAIR_s {row['chair_s']:.3f}", flush=True)

    execute(recipe, RunDirectory(root), tell)
    used = {"wall_seconds": round(time.monotonic() - wall), "cpu_seconds": round(cpu_seconds() - cpu)}
    (root / "leaderboard.json").write_text(json.dumps(used) + "\n")


def finished(root: Path) -> bool:
    return (root / "leaderboard.json").exists()


def by_image(root: Path, iteration: int) -> dict[str, NDArray[np.float64]]:
    """{metric: [images, 2] of what each image adds above and below the line}, images in the order of their names."""
    counts = json.loads((root / f"iterations/{iteration:04d}/by_image.json").read_text())
    order = np.argsort(counts["images"])
    return {name: np.array(parts)[order] for name, parts in counts["of"].items() if name in METRICS}


def outcomes(roots: Sequence[Path], rng: np.random.Generator | None) -> dict[str, float]:
    """Means over seeds of each metric, its base and the cut; with `rng` over seeds and images that are drawn anew."""
    picked = roots if rng is None else [roots[i] for i in rng.integers(len(roots), size=len(roots))]
    rows = []
    for root in picked:
        last = max(int(path.name) for path in (root / "iterations").iterdir())
        base, final = _cached(root, 0), _cached(root, last)
        count = len(base["chair_s"])
        drawn = np.arange(count) if rng is None else rng.integers(count, size=count)
        row = {}
        for name in METRICS:
            for when, parts in (("base", base), ("final", final)):
                above, below = parts[name][drawn].sum(axis=0)
                row[f"{name}_{when}"] = above / below
        row["cut"] = 1 - row["chair_s_final"] / row["chair_s_base"]
        row["cover_change"] = row["cover_final"] - row["cover_base"]
        row["length_change"] = row["mean_tokens_final"] / row["mean_tokens_base"] - 1
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


_KNOWN: dict[tuple[Path, int], dict[str, NDArray[np.float64]]] = {}


def _cached(root: Path, iteration: int) -> dict[str, NDArray[np.float64]]:
    key = (root, iteration)
    if key not in _KNOWN:
        _KNOWN[key] = by_image(root, iteration)
    return _KNOWN[key]


def summary(roots: Sequence[Path]) -> dict[str, Any]:
    """All figures of one recipe: {name: (value, low, high)}, per seed, pairs and time."""
    rng = np.random.default_rng(0)
    values = outcomes(roots, None)
    draws = [outcomes(roots, rng) for _ in range(RESAMPLES)]
    figures = {
        name: [value, *np.percentile([draw[name] for draw in draws], [2.5, 97.5]).tolist()]
        for name, value in values.items()
    }
    used = [json.loads((root / "leaderboard.json").read_text()) for root in roots]
    curves = [json.loads((root / "metrics.json").read_text()) for root in roots]
    return {
        "seeds": [int(root.name.rsplit("-", 1)[1]) for root in roots],
        "figures": figures,
        "chair_s_by_iteration": [[row["chair_s"] for row in curve] for curve in curves],
        "cover_by_iteration": [[row["cover"] for row in curve] for curve in curves],
        "pairs_by_iteration": [[row["pairs"] for row in curve[1:]] for curve in curves],
        "wall_seconds": float(np.mean([one["wall_seconds"] for one in used])),
        "cpu_seconds": float(np.mean([one["cpu_seconds"] for one in used])),
    }


def table(summaries: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, the base model first."""
    heads = (
        "recipe",
        "seeds",
        "CHAIR_s",
        "cut",
        "CHAIR_i",
        "cover",
        "POPE F1",
        "tokens",
        "CLIPScore",
        "pairs",
        "CPU s",
        "wall s",
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]

    def cell(figure: Sequence[float], form: str) -> str:
        value, low, high = (format(number, form) for number in figure)
        return f"{value} ({low} .. {high})"

    forms = {"chair_i": ".3f", "cover": ".3f", "pope_f1": ".3f", "mean_tokens": ".1f", "clip_score": ".2f"}
    for number, (name, figured) in enumerate(summaries.items()):
        figures = figured["figures"]
        if number == 0:
            cells = [cell(figures[f"{metric}_base"], form) for metric, form in forms.items()]
            base = cell(figures["chair_s_base"], ".3f")
            lines.append("| " + " | ".join(["base model", "", base, "", *cells, "", "", ""]) + " |")
        cells = [cell(figures[f"{metric}_final"], form) for metric, form in forms.items()]
        pairs = f"{np.mean([sum(one) for one in figured['pairs_by_iteration']]):.0f}"
        seeds = ", ".join(map(str, figured["seeds"]))
        row = [name, seeds, cell(figures["chair_s_final"], ".3f"), cell(figures["cut"], ".0%"), *cells, pairs]
        spent = [f"{figured[clock]:.0f}" for clock in ("cpu_seconds", "wall_seconds")]
        lines.append("| " + " | ".join([*row, *spent]) + " |")
    return "\n".join(lines)


def report(runs: Path) -> None:
    """Write the result of all runs that are finished."""
    summaries = {}
    for name in RECIPES:
        roots = sorted(root for root in runs.glob(f"{name}-[0-9]*") if finished(root))
        if roots:
            summaries[name] = summary(roots)
    if not summaries:
        return
    print(table(summaries))
    rows = []
    for name, figured in summaries.items():
        for metric, of in (
            ("chair_s_cut", "cut"),
            ("cover_change", "cover_change"),
            ("length_change", "length_change"),
        ):
            value, low, high = figured["figures"][of]
            detail = {"low": low, "high": high, **{key: figured[key] for key in figured if key != "figures"}}
            if metric == "chair_s_cut":
                detail["figures"] = figured["figures"]
            key = f"{name}_{metric}"
            better = "lower" if metric == "length_change" else "higher"
            against = "the base model, after 3 iterations"
            rows.append(Row(key, value, "ratio", better, TARGETS.get(key), against, detail))  # type: ignore[arg-type]
    write("leaderboard", rows)
    (RESULTS / "leaderboard.md").write_text(table(summaries) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/leaderboard")
    parser.add_argument("--report", action="store_true", help="only report what is finished")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.chdir(ROOT)
    wanted = [(name, seed) for seed in options.seeds for name in options.recipes]
    missing = [(name, seed) for name, seed in wanted if not finished(options.runs / f"{name}-{seed}")]
    if missing and not options.report:
        from sightline_cli.processes import Processes

        with Processes(options.runs / "services") as processes:
            processes.start("sampler", ["engine.model=playground/weights/llava", "engine.threads=1"])
            processes.start("scorer", ["models.clip.source=local-dir:playground/weights/clip", "triton.threads=1"])
            sampler, scorer = processes.wait("sampler").grpc, processes.wait("scorer").grpc
            for name, seed in missing:
                run_one(name, seed, options.runs, sampler, scorer)
                report(options.runs)
    report(options.runs)


if __name__ == "__main__":
    main()
