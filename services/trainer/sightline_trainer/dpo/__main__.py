"""One update from files: `python -m sightline_trainer.dpo`, or under `accelerate launch` or `torchrun`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sightline_trainer.dpo", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="recipe file; its dpo section is used")
    parser.add_argument("--pairs", type=Path, required=True, help="pairs.parquet of an iteration")
    parser.add_argument("--policy", type=Path, required=True, help="directory for the new policy")
    parser.add_argument("--work", type=Path, required=True, help="TRL's output, update.json, the optimiser's state")
    parser.add_argument(
        "--previous", type=Path, help="directory of the policy to continue from; default: the base model"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of batches and of a new adapter")
    parser.add_argument("--iteration", type=int, default=1, help="iteration, from 1; for a schedule over the whole run")
    parser.add_argument("--candidates", type=Path, help="candidates/ of the iteration, to compare log-probs")
    parser.add_argument("--version", type=int, default=0, help="version of the policy to continue from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the recipe")
    return parser.parse_args()


def main() -> int:
    """Run the update; the first process writes the result to WORK/update.json."""
    arguments = _arguments()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from sightline.errors import SightlineError

    from sightline_trainer.dpo.device import peak_memory_mib
    from sightline_trainer.dpo.kept_pairs import kept_pairs
    from sightline_trainer.dpo.launch import write_outcome
    from sightline_trainer.dpo.sampled import SampledLogprobs
    from sightline_trainer.dpo.update import Update, update
    from sightline_trainer.recipe import load_recipe
    from sightline_trainer.row_gate import RowGate

    first = int(os.environ.get("RANK", "0")) == 0

    def progress(done: int, total: int) -> None:
        if first:
            print(json.dumps({"done": done, "total": total}), flush=True)

    arguments.work.mkdir(parents=True, exist_ok=True)
    outcome: Update | SightlineError
    try:
        recipe = load_recipe(arguments.recipe, arguments.set, environment=False)
        pairs, left_out = kept_pairs(arguments.pairs, RowGate(recipe.processor))
        done = update(
            recipe,
            pairs,
            previous=arguments.previous,
            adapter=arguments.policy,
            work=arguments.work,
            seed=arguments.seed,
            iteration=arguments.iteration,
            progress=progress,
            sampled=SampledLogprobs.read(arguments.candidates, arguments.version) if arguments.candidates else None,
        )
        outcome = replace(done, metrics={**done.metrics, **left_out})
    except SightlineError as error:
        outcome = error
    if isinstance(outcome, Update):
        outcome.metrics["peak_memory_mib"] = peak_memory_mib()
    if first:
        write_outcome(arguments.work / "update.json", outcome)
        if isinstance(outcome, Update):
            print(json.dumps(outcome.metrics), flush=True)
    if isinstance(outcome, SightlineError):
        print(f"error: {outcome}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
