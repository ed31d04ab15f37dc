"""Trial: samples, scores and pairs one prompt, and runs one update step on it whose log-probs must match the sampler's.

The update runs in its own process with the recipe's real settings, as in a run, on files in a scratch directory;
nothing is published. If its launcher works on another machine (`sightline_trainer.job`), the trial is the first stage
of a run instead of the last of a check.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError

from sightline_trainer.embeddings import embeddings
from sightline_trainer.left_out import nothing_scored
from sightline_trainer.pairs.build import PairBuilder, write_pairs
from sightline_trainer.pairs.guarded import filters_of, rules_of
from sightline_trainer.preflight.finding import Finding, found_by
from sightline_trainer.preflight.provable import trial_rate
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.rewards.guarded import COUNT, NO_NUMBER, RAISED
from sightline_trainer.rollout import Rollout
from sightline_trainer.session import Session

TRIES = 4
"""Maximum prompts to try until one gives a pair."""
_TIMED = 8  # prompts sampled together for a better estimate of the time
_PATIENT = 10.0  # seconds; if one prompt takes longer, that one is enough
_WITH_REFERENCE = 4 / 3  # a step costs three forward passes (backward counts two); the reference one more


@dataclass
class Trial:
    """The result of the trial.

    Attributes:
        findings: what went wrong.
        prompt_seconds: seconds to sample and score one prompt, with `timed` together.
        timed: number of these prompts.
        pairs: pairs of the prompt.
        pair_seconds: seconds to train on one pair alone.
        metrics: the update's metrics, with `sampled_gap_max` in nats a token and `peak_memory_mib`.
        changes: the change of each probe token's log-prob by the update's step, in nats.
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
    """Whether the update runs on another machine, which cannot see this one's scratch files."""
    return "sightline_trainer.job" in recipe.dpo.launch


async def ask(session: Session, prompts: Sequence[Prompt], scratch: Path) -> Trial:
    """Sample candidates of a prompt and make its pairs; if there is none, try the next prompt. `train_on` continues."""
    trial, counts, unscored = Trial(), list[str](), list[Counter[str]]()
    try:
        for number, prompt in enumerate(prompts[:TRIES]):
            rollout = Rollout(scratch / str(number))
            trial.prompt_seconds, trial.timed = await _collect(session, rollout, [prompt]), 1
            known = await embeddings(session, [prompt]) if "rpo" in session.recipe.dpo.loss else {}
            rows, why, none = _paired(session.recipe, prompt, rollout, known)
            unscored.append(none)
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
    told = "; ".join(dict.fromkeys(counts))
    if unscored and all(unscored):
        trial.findings.append(_nothing_scored(sum(unscored, Counter())))
        return trial
    trial.findings.append(
        Finding(
            "NO_PAIRS",
            f"{len(counts)} sampled prompts gave no pair to learn from ({told})",
            "sample more candidates, raise sampling.temperature, or check the prompts and the pair rules",
            "warning",
        )
    )
    return trial


async def _collect(session: Session, rollout: Rollout, prompts: Sequence[Prompt]) -> float:
    """Sample and score prompts together with the base model; returns the seconds."""
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
    """Run one update step on the pairs; fills in `findings`, `metrics` and `pair_seconds`."""
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
                "rely on the arrival gate for each policy, or use an engine that reports log-probs",
                "warning",
            )
        )


def _paired(
    recipe: Recipe, prompt: Prompt, rollout: Rollout, known: Mapping[str, Sequence[float]]
) -> tuple[list[dict[str, Any]], str, Counter[str]]:
    """Rows of pairs.parquet by the recipe's rules, without its filters if these leave none; otherwise the reasons, and
    those of the scores if no candidate has a reward."""
    counts: dict[str, int] = {}
    unscored: Counter[str] = Counter()
    for filters in (filters_of(recipe.filters), {}):
        own = "optimism" in recipe.dpo.loss
        builder = PairBuilder(filters, rules_of(recipe.pairing), iteration=1, own=own, embeddings=known)
        rows = list(builder.build({prompt.id: prompt}, rollout.read()))
        counts, unscored = dict(builder.counts), builder.unscored
        if rows:
            break
    return rows, ", ".join(f"{name} {count}" for name, count in counts.items() if name != "pairs"), unscored


def _alone(recipe: Recipe) -> Recipe:
    """The recipe with an update in its own process, without tracking and without saved state."""
    launch = recipe.dpo.launch or [sys.executable]
    only = {
        "launch": launch, "report_to": [], "carry": "none", "epochs": 1.0, "learning_rate": trial_rate(recipe),
    }  # fmt: skip
    return recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update=only)})


def _of_update(error: SightlineError) -> Finding:
    if error.reason == "UPDATE_PROCESS_FAILED":
        lines = [line.strip() for line in error.message.splitlines() if line.strip()]
        return Finding(error.reason, f"the trial update failed: {lines[-1]}", "run it with --debug for the whole log")
    finding = found_by(error)
    return Finding(finding.code, f"the trial update: {finding.message}", finding.fix)


def _nothing_scored(reasons: Counter[str]) -> Finding:
    """An error if a third-party term failed each time; a judge that could not read some texts may read others."""
    failed = set(reasons) <= {RAISED, COUNT, NO_NUMBER}
    message, _, fix = nothing_scored(reasons).rpartition("; ")
    return Finding("NOTHING_SCORED", message, fix, "error" if failed else "warning")


def _not_served(error: SightlineError) -> Finding:
    return Finding(
        error.reason,
        f"the sampler does not serve the base model now, so nothing was sampled: {error.message}",
        "check while no run uses the sampler; a run restores the policy that it needs",
        "warning",
    )
