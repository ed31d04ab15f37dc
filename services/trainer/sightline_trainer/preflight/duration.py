"""Duration: a rough estimate of how long a run will take, and its basis. Batches make everything faster."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from sightline_trainer.files import read_json
from sightline_trainer.preflight.trial import Trial
from sightline_trainer.recipe import Recipe


@dataclass(frozen=True)
class Duration:
    """In seconds; None if unknown.

    Attributes:
        iteration: seconds of one iteration.
        run: seconds of all remaining iterations, with the first evaluation.
        rests_on: the basis of the estimate.
    """

    iteration: float | None
    run: float | None
    rests_on: str

    def tree(self) -> dict[str, float | str | None]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.iteration is None or self.run is None:
            return f"not known: {self.rests_on}"
        return f"about {_told(self.iteration)} an iteration, {_told(self.run)} in all ({self.rests_on})"


def by_trial(recipe: Recipe, trial: Trial, *, prompts: int, held_out: int) -> Duration:
    """Estimate it from a few prompts together, and one pair alone.

    Args:
        prompts: prompts of one iteration.
        held_out: number of an evaluation's requests, each counted as a candidate.
    """
    if trial.prompt_seconds is None:
        return Duration(None, None, "no prompt was sampled")
    evaluation = held_out * trial.prompt_seconds / max(1, recipe.sampling.candidates)
    sampling = prompts * trial.prompt_seconds
    update, prompted = 0.0, f"{trial.timed} prompt{'s' if trial.timed > 1 else ''}"
    if trial.pair_seconds is None:
        rests = f"from {prompted}; without the update, which was not tried"
    else:
        update = prompts * trial.pairs * trial.pair_seconds * recipe.dpo.epochs
        rests = f"at most, from {prompted} and one step on one pair: full batches are faster"
    iteration = sampling + update + evaluation
    return Duration(iteration, recipe.iterations * iteration + evaluation, rests)


def by_run(recipe: Recipe, root: Path) -> Duration | None:
    """Estimate it from a run's finished iterations; None if there are none."""
    rows = read_json(root / "metrics.json") or []
    seconds = [float(row["seconds"]) for row in rows if row.get("iteration")]
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    left = max(0, recipe.iterations - len(seconds))
    return Duration(mean, left * mean, f"from {len(seconds)} iterations of this run, {left} are left")


def _told(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
