"""Trial: one prompt sampled, scored and paired, and one update step on it whose log-probs must be the sampler's.

The update runs in a process of its own with the recipe's true settings, as a run's does, on files in a scratch
directory; nothing is published. Where its launcher works on another machine (`sightline_trainer.job`), the trial is a
run's first stage in place of a check's last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError

from sightline_trainer.embeddings import embeddings
from sightline_trainer.pairs.build import PairBuilder, write_pairs
from sightline_trainer.pairs.guarded import filters_of, rules_of
from sightline_trainer.preflight.finding import Finding, found_by
from sightline_trainer.preflight.provable import trial_rate
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.rollout import Rollout
from sightline_trainer.session import Session

TRIES = 4
"""Prompts that are asked until one gives a pair."""
_TIMED = 8  # prompts that are sampled together for a better idea of the time
_PATIENT = 10.0  # seconds; where one prompt takes longer, it has to do
_WITH_REFERENCE = 4 / 3  # a step is a forward and a backward pass of two forwards' work; the reference one forward more


@dataclass
class Trial:
    """What came of it.

    Attributes:
        findings: what went wrong.
        prompt_seconds: of sampling and scoring one prompt, of `timed` together.
        timed: how many prompts that is.
        pairs: of that prompt.
        pair_seconds: of training on one pair, alone.
        metrics: of the update, with `sampled_gap_max` in nats a token and `peak_memory_mib`.
        changes: of the log-prob of each probe token by the update's step, in nats.
    """

    findings: list[Finding] = field(default_factory=list)
    prompt_seconds: float | None = None
    timed: int = 0
    pairs: int = 0
    pair_seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)
    directory: Path | None = None


def elsewhere(recipe: Recipe) -> bool:
    """Whether the update runs on another machine, which does not see this one's scratch files."""
    return "sightline_trainer.job" in recipe.dpo.launch


async def ask(session: Session, prompts: Sequence[Prompt], scratch: Path) -> Trial:
    """Ask for candidates of a prompt and make its pairs; of the next one, if there is none. `train_on` continues."""
    trial, counts = Trial(), list[str]()
    try:
        for number, prompt in enumerate(prompts[:TRIES]):
            rollout = Rollout(scratch / str(number))
            trial.prompt_seconds, trial.timed = await _collect(session, rollout, [prompt]), 1
            known = await embeddings(session, [prompt]) if "rpo" in session.recipe.dpo.loss else {}
            rows, why = _paired(session.recipe, prompt, rollout, known)
            if rows:
                trial.pairs, trial.directory = len(rows), rollout.directory
                write_pairs(rollout.directory / "pairs.parquet", rows[: session.recipe.dpo.batch_size])
                if trial.prompt_seconds < _PATIENT and (others := prompts[number + 1 :][:_TIMED]):
                    seconds = await _collect(session, Rollout(scratch / "timed"), others)
                    trial.prompt_seconds, trial.timed = seconds / len(others), len(others)
                return trial
            refused = rollout.dropped()
            counts.append(refused[0]["message"] if refused else why)
    except SightlineError as error:
        trial.findings.append(_not_served(error) if error.reason == "POLICY_NOT_SERVED" else found_by(error))
        return trial
    trial.findings.append(
        Finding(
            "NO_PAIRS",
            f"{len(counts)} sampled prompts gave no pair to learn from ({'; '.join(dict.fromkeys(counts))})",
            "sample more candidates, let them differ (sampling.temperature), or look at the prompts and the pair rules",
            "warning",
        )
    )
    return trial


async def _collect(session: Session, rollout: Rollout, prompts: Sequence[Prompt]) -> float:
    """Have prompts answered and scored together, by the base model; the seconds that it took."""
    began = time.monotonic()
    await rollout.collect(
        prompts,
        session.sources(),
        session.judge(),
        session.gate,
        iteration=1,
        version=0,
        in_flight=session.recipe.sampling.max_in_flight,
        progress=lambda done, total: None,
    )
    return time.monotonic() - began


def train_on(trial: Trial, recipe: Recipe, *, halt: Callable[[], None] = lambda: None) -> None:
    """One update step on what was asked for; fills in `findings`, `metrics` and `pair_seconds`."""
    from sightline_trainer.dpo.launch import run_update

    assert trial.directory is not None
    work, policy = trial.directory / "work", trial.directory / "policy"
    policy.mkdir()
    try:
        done = run_update(
            _alone(recipe),
            trial.directory / "pairs.parquet",
            previous=None,
            policy=policy,
            work=work,
            seed=recipe.seed + 1,
            iteration=1,
            progress=lambda done, total: None,
            halt=halt,
            candidates=trial.directory / "candidates",
        )
    except SightlineError as error:
        trial.findings.append(_of_update(error))
        return
    trial.metrics = done.metrics
    step = done.metrics["seconds"] - done.metrics["reference_seconds"]
    trial.pair_seconds = _WITH_REFERENCE * step / max(1, min(trial.pairs, recipe.dpo.batch_size))
    trial.changes = [
        new - old
        for each in done.probes
        for new, old in zip(each.logprobs, each.previous_logprobs, strict=bool(each.previous_logprobs))
    ]
    if not done.metrics.get("sampled_sides"):
        trial.findings.append(
            Finding(
                "LOGPROBS_NOT_COMPARED",
                "the sampler's log-probs could not be compared with the update's: it reports none, or the pair's "
                "sides were not sampled on the clean picture",
                "rely on the proof of each published policy, or use an engine that reports log-probs",
                "warning",
            )
        )


def _paired(
    recipe: Recipe, prompt: Prompt, rollout: Rollout, known: Mapping[str, Sequence[float]]
) -> tuple[list[dict[str, Any]], str]:
    """Rows of pairs.parquet by the recipe's rules; where its filters leave none, without them. Else why."""
    counts: dict[str, int] = {}
    for filters in (filters_of(recipe.filters), {}):
        own = "optimism" in recipe.dpo.loss
        builder = PairBuilder(filters, rules_of(recipe.pairing), iteration=1, own=own, embeddings=known)
        rows = list(builder.build({prompt.id: prompt}, rollout.read()))
        counts = dict(builder.counts)
        if rows:
            break
    return rows, ", ".join(f"{name} {count}" for name, count in counts.items() if name != "pairs")


def _alone(recipe: Recipe) -> Recipe:
    """The recipe with an update that runs in a process of its own, and neither tracks nor keeps anything."""
    launch = recipe.dpo.launch or [sys.executable]
    only = {
        "launch": launch, "report_to": [], "carry": "none", "epochs": 1.0, "learning_rate": trial_rate(recipe),
    }  # fmt: skip
    return recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update=only)})


def _of_update(error: SightlineError) -> Finding:
    if error.reason == "UPDATE_PROCESS_FAILED":
        lines = [line.strip() for line in error.message.splitlines() if line.strip()]
        return Finding(error.reason, f"the trial update failed: {lines[-1]}", "run it with --debug for its whole log")
    finding = found_by(error)
    return Finding(finding.code, f"the trial update: {finding.message}", finding.fix)


def _not_served(error: SightlineError) -> Finding:
    return Finding(
        error.reason,
        f"the sampler does not serve the base model now, so nothing was sampled: {error.message}",
        "check while no run uses the sampler; a run gives it what it needs",
        "warning",
    )
