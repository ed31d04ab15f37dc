"""Leaderboard: every recipe on the playground at equal budget, over seeds, with intervals.

    make leaderboard                                        all recipes, 3 seeds; finished runs are kept
    python benchmarks/leaderboard.py --recipes bpo --seeds 0
    python benchmarks/leaderboard.py --recipes bpo --seeds 1 --against benchmarks/results/leaderboard/bpo-1.json

Each finished run leaves one JSON under benchmarks/results/leaderboard/, so it continues after any stop, and the table
needs no run directories. For each seed, all recipes run first, then each with its own part neutral (`WITHOUT`), so that
a stop at any time leaves a broad table. `--against` repeats one run and fails if it differs.

Equal budget: a third of the recipe files' prompts, that is at most 256 pairs and 16 updates in each of 3 iterations
(two pairs of a prompt are one row of POVID's loss), so that all recipes with their neutrals take one night on two
cores. Dropped pairs are not replaced; the table shows the pairs that were trained on. Recipes that only change decoding
train on nothing, and their neutral is the base model. A seed sets prompts, candidates, the update and the evaluation's
samples. Inside a run 64 scenes are checked after each iteration (`chair_s` in the JSON); the last policy, and for each
seed the base model, are measured on 600 scenes and 300 questions.

The column `supervision` names what a run uses that your photos may not have: `truth` (the playground's scenes
judge or pick), `annotations` (reference captions, the truth there; errors made by rules read their objects) and
`questions` (yes/no answers from the scene). Thresholds fitted with the truth of validation scenes (marine, sentinel,
finesumfact) do not count as supervision of a run; the recipe's header lists them.

A cut is 1 - CHAIR_s after the last iteration / CHAIR_s of the base model. `standings.py` defines the figures.
With 3 seeds intervals are rough; with one they are over images only. CPU seconds include the run's services; runs that
shared the machine with other work use more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT, Row, cpu_seconds, write
from sightline.errors import PreconditionFailed, SightlineError
from sightline_trainer.decoding_settings import Decoding
from standings import FIGURES, SeedRun, counts_of, over_without, ratio, read, with_interval

RECIPES = (
    "clip_dpo", "povid", "bpo", "oracle",
    "csr", "vlfeedback", "chip", "vdpo", "sena", "pds_dpo", "mrpo", "sapo", "selm", "expo", "rpo", "spa",
    "fine_grained", "icdpo", "marine", "vdd", "lacing", "fact_rlhf", "illume", "finesumfact",
    "mixed", "mdpo", "rlaif_v", "ovip", "sentinel", "sightline",
)  # fmt: skip
_LOTS = ('reward.terms={clip: false, "neutral:lots": {weight: 100}}', "filters.gap=false")
# Each recipe with its own part neutral, at the same budget and seeds. A judge's neutral is one that draws lots; that of
# a made rejected side, training on the chosen side alone; that of decoding is the base model, which needs no run.
WITHOUT: Mapping[str, Sequence[str]] = {
    "clip_dpo": (
        *_LOTS, "filters.score=false", "filters.generic_question=false",
        "pairing.reference_against_rejected.judged=false",
    ),
    "povid": ("dpo.loss={sft: 1.0}", "dpo.batch_size=16"),
    "bpo": ("dpo.loss={sft: 1.0}",),
    "csr": ("reward.terms.clip=false",),
    "vlfeedback": _LOTS,
    "chip": (
        "dpo.loss={sigmoid: 1.0}", "dpo.view.kind=blank", "dpo.view.step=500", "dpo.token_weights.by=none",
        "dpo.token_kl=0",
    ),
    "vdpo": (
        "dpo.guidance.scale=1", "dpo.token_weights.by=none", "pairing.image_contrast=false",
        "data.prompts_per_iteration=768",
    ),
    "sena": ("dpo.loss={sft: 1.0}",),
    "pds_dpo": _LOTS,
    "mrpo": ("dpo.reference.of={base: 1}", "dpo.reference.within=null", "dpo.reference.adaptive=false"),
    "sapo": ("dpo.loss={sft: 1.0}",),
    "selm": ("dpo.loss={sigmoid: 1.0}", "dpo.reference.of={base: 1}"),
    "expo": ("publication.extrapolate=0",),
    "rpo": ("dpo.loss={sigmoid: 1.0, sft: 0.1}", "dpo.rpo_temperature=0.5"),
    "spa": (
        "dpo.loss={sigmoid: 1.0, sft: 0.1}", "dpo.reference.of={base: 1}", "pairing.best_worst=false",
        "data.prompts_per_iteration=768",
    ),
    "fine_grained": ("dpo.token_weights.by=none",),
    "icdpo": _LOTS,
    "fact_rlhf": ("reward.terms={clip: {by: whole}, length: {weight: -0.02}}",),
    "illume": _LOTS,
    "finesumfact": ("reward.terms={clip: {by: whole}}", "filters.gap.min=2"),
    "mixed": (
        "pairing.reference_against_rejected=false", "candidates.reference=false", "candidates.injected=false",
        "data.prompts_per_iteration=768",
    ),
    "mdpo": ("dpo.loss={sigmoid: 1.0}", "dpo.view.kind=blank"),
    "rlaif_v": _LOTS,
    "ovip": ("pairing={all_pairs: {max_pairs: 2}}",),
    "sentinel": _LOTS,
    "sightline": ("dpo.loss.sft=0.1", "publication.extrapolate=0", "evaluation.decoding.guidance=null"),
}  # fmt: skip
_FASTER = "dpo.learning_rate=1.0e-3"
TUNED: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("clip_dpo", "bpo", "csr", "sena", "fine_grained", "chip"), (_FASTER,)),
    "povid": ("candidates.noised_image.step=900", _FASTER),
    "vlfeedback": ("sampling.candidates=8", _FASTER),
    "pds_dpo": ("sampling.candidates=8", _FASTER),
    "sapo": ("candidates.segment.temperature=1.0", "candidates.segment.tokens=24", _FASTER),
    "rpo": ("dpo.rpo_temperature=0.05", "dpo.learning_rate=1.5e-3"),
    "selm": ("dpo.loss.optimism=1.0e-2", _FASTER),
    "mrpo": ("dpo.reference.of={base: 0.2, previous: 0.8}", "dpo.reference.within=50", _FASTER),
    "expo": ("publication.extrapolate=0.5", _FASTER),
    "vdpo": ("dpo.guidance.scale=2.0",),
    "fact_rlhf": ("reward.terms.length.weight=-0.02", _FASTER),
    "illume": ("dpo.learning_rate=1.5e-3",),
    "finesumfact": ("reward.terms.detected.there=40.0", _FASTER),
    "icdpo": ("dpo.learning_rate=3.0e-4",),
    "vdd": ("evaluation.decoding.guidance.contrast.alpha=2.0", "evaluation.decoding.guidance.contrast.beta=0.3"),
    "lacing": (
        "evaluation.decoding.guidance.image_free.gamma=2.0", "evaluation.decoding.guidance.image_free.beta=0.3",
    ),
    # Not of the seeds, and not tuned: the rate that is best for most of the others.
    **dict.fromkeys(("mdpo", "rlaif_v", "ovip", "sentinel", "mixed", "oracle"), (_FASTER,)),
}  # fmt: skip
"""Values that replace those of a recipe's file at this budget, for the recipe and for its neutral.

Chosen on validation scenes (`tune.py`; all tries are in results/tries.jsonl), before any test scene was seen with them:
of four tries of each method, the file's own values among them, those with the largest cut at equal length whose cover
falls by at most 0.05. A method that is not here keeps its file's values. `sightline` was chosen by other tries
(docs/log.md).
"""
SCENES, QUESTIONS = 600, 300
GLANCE = 64
"""Scenes that are checked inside a run."""
SHARE = 3
"""A run uses this share of its recipe's prompts."""
PAIRS = 768 // SHARE
"""Maximum number of pairs in an iteration."""
KEPT = RESULTS / "leaderboard"


def overrides(name: str, seed: int, sampler: str, scorer: str) -> list[str]:
    """Values of a leaderboard run that replace the recipe's."""
    recipe, _, neutral = name.partition("-")
    return [
        "threads=1",
        f"seed={seed}",
        f"evaluation.seed={seed}",
        f"data.test=playground:test?count={SCENES}&seed=2",
        f"evaluation.prompts={GLANCE}",
        "evaluation.questions=0",
        "evaluation.greedy_prompts=0",
        "evaluation.diverse_prompts=0",
        f"sampling.address={sampler}",
        f"reward.address={scorer}",
        *TUNED.get(recipe, ()),
        *(WITHOUT[recipe] if neutral else ()),
    ]


def supervision(recipe: Any) -> str:
    """What a recipe uses that your photos may not have."""
    sources, terms = recipe.candidates.chosen(), recipe.reward.terms.chosen()
    kinds = {
        "truth": bool({"truth", "picked"} & set(terms)),
        "annotations": "reference" in sources,
        "questions": "question_answer" in sources,
    }
    return ", ".join(kind for kind, used in kinds.items() if used) or "none"


def digest(recipe: Any) -> str:
    """Digest of everything that sets a run, so that recipes with the same neutral share one run."""
    aside = {
        "name": True,
        "description": True,
        "sampling": {"address"},
        "reward": {"address"},
        "services": True,
        "dpo": {"reference": {"from_sampler"}},  # changes rounding alone
    }
    said = json.dumps(recipe.model_dump(mode="json", exclude=aside), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def twin_of(made: str, seed: int) -> dict[str, Any] | None:
    """A kept run of the same settings."""
    for path in sorted(KEPT.glob(f"*-{seed}.json")):
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept.get("settings") == made:
            return kept
    return None


def run_one(name: str, seed: int, runs: Path, sampler: str, scorer: str, *, again: bool = False) -> dict[str, Any]:
    """Run a recipe with a seed from the start; measure the base model if the seed has no kept result.

    Args:
        name: of the recipe; with `-without`, the recipe with its own part neutral.
        again: run it even if a run with the same settings is kept.

    Returns:
        The kept result.
    """
    from sightline_cli.run import with_data
    from sightline_trainer.events import Event
    from sightline_trainer.execute import execute
    from sightline_trainer.runs import RunDirectory

    asked = read_recipe(name, seed, sampler, scorer)
    recipe, settings = with_data(asked, runs / "data"), digest(asked)
    if (twin := twin_of(settings, seed)) is not None and not again:
        return {**twin, "recipe": name, "same_as": twin.get("same_as", twin["recipe"])}
    root = runs / f"{name}-{seed}"
    shutil.rmtree(root, ignore_errors=True)
    wall, cpu = time.monotonic(), cpu_seconds()

    def tell(event: Event) -> None:
        if event.stage == "iteration":
            row = event.metrics
            print(f"{name} seed {seed}: v{row['policy_version']:.0f} CHAIR_s {row['chair_s']:.3f}", flush=True)

    execute(recipe, RunDirectory(root), tell)
    rows = json.loads((root / "metrics.json").read_text())
    pairs = [int(row.get("pairs", 0)) for row in rows[1:]]
    if max(pairs) > PAIRS:
        raise PreconditionFailed(f"{max(pairs)} pairs in an iteration: equal budget is {PAIRS}", reason="BUDGET")
    counts = measured(recipe, RunDirectory(root), int(rows[-1]["policy_version"]))
    took = round(time.monotonic() - wall), round(cpu_seconds() - cpu)
    if not (KEPT / f"base-{seed}.json").exists():
        counts_of_base = measured(plainly(recipe), RunDirectory(root), 0)
        keep(KEPT / f"base-{seed}.json", {"seed": seed, "counts": counts_of_base})
    return {
        "recipe": name,
        "seed": seed,
        "commit": _commit(),
        "overrides": [each for each in overrides(name, seed, "", "") if not each.endswith("=")],
        "supervision": supervision(recipe),
        "settings": settings,
        "trained": recipe.iterations > 0,
        "pairs": pairs,
        "chair_s": [row["chair_s"] for row in rows],
        "cover": [row["cover"] for row in rows],
        "wall_seconds": took[0],
        "cpu_seconds": took[1],
        "counts": counts,
    }


@contextmanager
def services(directory: Path) -> Iterator[tuple[str, str]]:
    """Sampler and scorer of the playground inside the block: their addresses."""
    from sightline_cli.processes import Processes

    with Processes(directory) as processes:
        processes.start("sampler", ["engine.model=playground/weights/llava", "engine.threads=1"])
        processes.start("scorer", ["models.clip.source=local-dir:playground/weights/clip", "triton.threads=1"])
        yield processes.wait("sampler").grpc, processes.wait("scorer").grpc


def read_recipe(name: str, seed: int, sampler: str, scorer: str, values: Sequence[str] = ()) -> Any:
    """The recipe of a run, with its share of the prompts; further values override all others."""
    from sightline_trainer.recipe import load_recipe

    file = ROOT / f"recipes/{name.partition('-')[0]}.yaml"
    given = [*overrides(name, seed, sampler, scorer), *values]
    found = load_recipe(file, given)
    asked = found.candidates.chosen().get("question_answer")
    prompts = found.data.prompts_per_iteration / SHARE
    if asked is not None:  # their pairs come on top of those of captions
        prompts /= 1 + asked.share + 0.02
    return load_recipe(file, [*given, f"data.prompts_per_iteration={int(prompts)}"])


def plainly(recipe: Any) -> Any:
    """The recipe, decoded without guidance."""
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"decoding": Decoding()})})


def measured(
    recipe: Any, run: Any, version: int, scenes: int = SCENES, questions: int = QUESTIONS, **more: int
) -> dict[str, list[list[float]]]:
    """Contribution of each image to each metric, for a policy's answers on this many of the recipe's test scenes;
    `more` are further keys of the recipe's `evaluation`."""
    from sightline_trainer.evaluation.evaluate import Evaluated, evaluate
    from sightline_trainer.evaluation.evaluation_set import EvaluationSet
    from sightline_trainer.pools import load_prompts, side_files
    from sightline_trainer.serving import RunPolicies
    from sightline_trainer.session import Session, connected

    settings = recipe.evaluation.model_copy(update={"prompts": scenes, "questions": questions, **more})
    held_out = EvaluationSet.load(side_files(recipe.data.test), load_prompts(recipe.data.test, scenes), settings)

    async def ask(session: Session) -> Evaluated:
        await session.serve(version)
        asking = session.evaluation if recipe.evaluation.decoding.plain else session.decoded()
        in_flight = recipe.sampling.max_in_flight
        return await evaluate(
            held_out, asking, session.reward, version=version, in_flight=in_flight, progress=lambda done, total: None
        )

    policies = RunPolicies(run.policies, run.namespace, recipe.publication.files)
    return counts_of(connected(recipe, ask, policies=policies).ratios.to_json())


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def keep(path: Path, kept: Mapping[str, Any]) -> None:
    """Write a result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    aside.replace(path)


def differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two runs of one recipe and seed differ, except for time and commit."""
    return [key for key in ("recipe", "seed", "overrides", "pairs", "chair_s", "counts") if one[key] != other[key]]


_HEADS = (
    "recipe", "supervision", "seeds", "CHAIR_s", "cut", "cut at equal length", "over without", "CHAIR_i", "cover",
    "POPE F1", "attributes", "tokens", "CLIPScore", "pairs", "CPU s",
)  # fmt: skip
_FORMS = {
    "chair_i": ".3f", "cover": ".3f", "pope_f1": ".3f", "attribute_accuracy": ".3f", "mean_tokens": ".1f",
    "clip_score": ".2f",
}  # fmt: skip


def table(standings: Mapping[str, Sequence[SeedRun]], figures: Mapping[str, Mapping[str, list[float]]]) -> str:
    """A Markdown table, the base model first."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]

    def cell(figure: Sequence[float], form: str) -> str:
        value, low, high = (format(number, form) for number in figure)
        return f"{value} ({low} .. {high})"

    for number, (name, runs) in enumerate(standings.items()):
        if number == 0:
            cells = [cell(with_interval(runs, lambda run, m=m: ratio(run.base, m)), f) for m, f in _FORMS.items()]
            base = cell(with_interval(runs, lambda run: ratio(run.base, "chair_s")), ".3f")
            lines.append("| " + " | ".join(["base model", "", "", base, "", "", "", *cells, "", ""]) + " |")
        own = figures[name]
        cells = [cell(with_interval(runs, lambda run, m=m: ratio(run.final, m)), f) for m, f in _FORMS.items()]
        found = [cell(own[key], ".0%") if key in own else "" for key in _CUTS]
        pairs = sum(sum(run.facts["pairs"]) for run in runs) / len(runs)
        seeds = ", ".join(str(run.seed) for run in runs)
        chair = cell(with_interval(runs, lambda run: ratio(run.final, "chair_s")), ".3f")
        row = [name, runs[0].facts["supervision"], seeds, chair, *found, *cells, f"{pairs:.0f}"]
        lines.append("| " + " | ".join([*row, f"{own['cpu_seconds'][0]:.0f}"]) + " |")
    return "\n".join(lines)


_CUTS = ("chair_s_cut", "chair_s_cut_at_equal_length", "over_without")


def report(kept: Path = KEPT) -> None:
    """Write the result of all runs that are finished."""
    standings = {name: runs for name in RECIPES if (runs := read(kept, name))}
    if not standings:
        return
    figures, rows = {}, []
    for name, runs in standings.items():
        own = {key: with_interval(runs, figure) for key, figure in FIGURES.items()}
        paired = [run for run in runs if run.without is not None]
        if paired:
            own["over_without"] = with_interval(paired, over_without)
        seconds = [float(run.facts["cpu_seconds"]) for run in runs]
        own["cpu_seconds"] = [sum(seconds) / len(seconds), min(seconds), max(seconds)]
        figures[name] = own
        for key, (value, low, high) in own.items():
            facts = {
                "low": low,
                "high": high,
                "seeds": [run.seed for run in (paired if key == "over_without" else runs)],
                "supervision": runs[0].facts["supervision"],
            }
            unit, better = ("s", "lower") if key == "cpu_seconds" else ("ratio", "higher")
            better = "lower" if key == "length_change" else better
            against = "itself, its own part neutral" if key == "over_without" else "the base model"
            full = f"{name}_{key}"
            rows.append(Row(full, value, unit, better, None, against, facts))  # type: ignore[arg-type]
    made = table(standings, figures)
    print(made)
    write("leaderboard", rows)
    (RESULTS / "leaderboard.md").write_text(made + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = [*RECIPES, *(f"{name}-without" for name in RECIPES if name in WITHOUT)]
    parser.add_argument("--recipes", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/leaderboard")
    parser.add_argument("--against", type=Path, help="repeat this kept run, and fail if it differs")
    parser.add_argument("--report", action="store_true", help="only report what is finished")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.chdir(ROOT)
    wanted = [(name, seed) for seed in options.seeds for name in options.recipes]
    if options.against:
        missing = wanted[:1]
    else:
        missing = [(name, seed) for name, seed in wanted if not (KEPT / f"{name}-{seed}.json").exists()]
    failed = 0
    if missing and not options.report:
        with services(options.runs / "services") as (sampler, scorer):
            for name, seed in missing:
                if not options.against and (KEPT / f"{name}-{seed}.json").exists():
                    continue  # another process ran it meanwhile
                try:
                    made = run_one(name, seed, options.runs, sampler, scorer, again=bool(options.against))
                except SightlineError as error:  # the others continue
                    print(f"{name} seed {seed} failed: {error.message}", flush=True)
                    failed += 1
                    continue
                if options.against:
                    apart = differs(json.loads(options.against.read_text()), made)
                    print(f"{name} seed {seed}: {'differs in ' + ', '.join(apart) if apart else 'the same'}")
                    return 1 if apart else 0
                keep(KEPT / f"{name}-{seed}.json", made)
    report()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
