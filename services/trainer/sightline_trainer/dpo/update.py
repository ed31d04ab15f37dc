"""Update: one iteration's DPO on its pairs, by TRL's DPOTrainer with LoRA or on the language model's own weights.

The reference is the base model in every iteration. Each policy continues from the previous one, while it stays tied to
the base model (`beta`).
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from sightline.errors import InternalError

from sightline_trainer.dpo.callbacks import Begin, FiniteGradient, Progress, StepLog
from sightline_trainer.dpo.checkpoints import Checkpoints, forget, last, name_of
from sightline_trainer.dpo.extrapolate import extrapolated
from sightline_trainer.dpo.loss_names import POVID
from sightline_trainer.dpo.losses import fold_pairs
from sightline_trainer.dpo.movement import Movement
from sightline_trainer.dpo.probing import Probing, UpdateProbe, probe
from sightline_trainer.dpo.release import collect, release
from sightline_trainer.dpo.sampled import LIMITS, SampledLogprobs
from sightline_trainer.dpo.saving import save_optimizer, save_policy
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.dpo.trainer import FastDPOTrainer
from sightline_trainer.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """The result of an update: its metrics (services/trainer/README.md lists them), and probes."""

    metrics: dict[str, float]
    probes: list[UpdateProbe]


def update(
    recipe: Recipe,
    pairs: Dataset,
    *,
    previous: Path | None,
    adapter: Path,
    work: Path,
    seed: int,
    progress: Callable[[int, int], None],
    iteration: int = 1,
    sampled: SampledLogprobs | None = None,
) -> Update:
    """Train on `pairs` and save the policy (an adapter, or with `dpo.train=full` a checkpoint).

    Args:
        previous: directory of the policy to continue from; None starts at the base model.
        adapter: directory for the new policy.
        work: TRL's output directory; the optimiser's state is written there too, if the recipe keeps it.
        progress: called with (finished steps, all steps); the reference pass counts as the first tenth.
        iteration: from 1; the position in a schedule that spans the run.
        sampled: the sampler's log-probs, to compare with the trainer's.

    Raises:
        InternalError: the loss became NaN or infinite, the gradient exactly 0, or the GPU's memory is too small;
            nothing is saved.
        PreconditionFailed: the pairs, losses or previous policy can't be used, the shared prefix fails its check, the
            picture does not matter, log-probs differ from the sampler's, or the weights did not change; nothing is
            saved.
    """
    if set(recipe.dpo.loss) & set(POVID):
        pairs, alone = fold_pairs(pairs)
        if alone:
            logger.warning("%d pairs have no second rejected side for the same chosen side and are left out", alone)
    trainer = make_trainer(recipe, pairs, previous=previous, work=work, seed=seed, iteration=iteration)
    try:
        return _trained(
            recipe, trainer, previous=previous, adapter=adapter, work=work, iteration=iteration, sampled=sampled,
            progress=progress, seed=seed,
        )  # fmt: skip
    finally:
        # An error's traceback must not keep the models alive.
        release(trainer)
        del trainer
        collect()


def _trained(
    recipe: Recipe,
    trainer: FastDPOTrainer,
    *,
    previous: Path | None,
    adapter: Path,
    work: Path,
    iteration: int,
    sampled: SampledLogprobs | None,
    progress: Callable[[int, int], None],
    seed: int,
) -> Update:
    """Train, save, and compute the probes."""
    pairs = len(trainer.train_dataset)
    carried = work / f"optimizer-{iteration - 1:04d}" if recipe.dpo.carry == "optimizer" else None
    further = recipe.publication.extrapolate
    begin = Begin(
        trainer,
        lambda done, total: progress(done, 10 * total),
        optimizer=carried,
        sampled=sampled,
        limit=recipe.dpo.max_sampled_gap or LIMITS[recipe.dpo.dtype],
        at_reference=previous is None,
        extrapolate=further,
    )
    model = trainer.accelerator.unwrap_model(trainer.model)

    def score(some: range) -> list[UpdateProbe]:
        with extrapolated(model, further):  # the sampler uses the published policy
            return probe(trainer, some)

    movement, world = Movement(trainer), trainer.accelerator.num_processes
    wanted, dtype = recipe.publication.probes, recipe.dpo.dtype
    probing = Probing(wanted, pairs, dtype, score, movement.initial if world == 1 else None)
    reported = Progress(lambda done, total: progress(total + 9 * done, 10 * total))
    steps = StepLog(work / f"steps-{iteration:04d}.jsonl")
    name = name_of(recipe, trainer.train_dataset, previous=previous, seed=seed, iteration=iteration, world=world)
    checkpoints = Checkpoints(
        trainer,
        name=name,
        seconds=recipe.dpo.seconds_between_checkpoints,
        ours={
            "begin": (begin.known, begin.recall),
            "probes": (probing.kept, probing.recall),
            "movement": (movement.counted, movement.recall),
            "figures": (lambda: trainer.figures, trainer.figures.extend),
            "doubts": (lambda: list(trainer.doubts.seen) if trainer.doubts else [], trainer.doubted),
        },
        begun=last(work, name),
    )
    for callback in (begin, probing, movement, FiniteGradient(), steps, reported, checkpoints):
        trainer.add_callback(callback)
    checkpoints.restore()
    if checkpoints.begun is not None:
        logger.info("the update continues from %s", checkpoints.begun.name)
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        forget(work, but=checkpoints.begun)
    try:
        with _frozen_garbage():
            trainer.train(resume_from_checkpoint=checkpoints.begun and str(checkpoints.begun))
    except torch.OutOfMemoryError as error:
        raise out_of_memory(recipe, error) from error
    seconds = time.monotonic() - begin.began
    figures = _metrics(trainer, pairs, begin.reference_seconds, seconds)
    figures |= begin.figures | movement.measure()
    if recipe.quantization is not None:
        figures["base_bits"] = 4.0
    with extrapolated(model, further):
        save_policy(trainer, adapter)
    if recipe.dpo.carry == "optimizer":
        save_optimizer(trainer, work / f"optimizer-{iteration:04d}")
    return Update({**figures, "extrapolated": further} if further else figures, probing.after())


def out_of_memory(recipe: Recipe, error: BaseException) -> InternalError:
    """The error for an update that does not fit the GPU, with settings that need less memory."""
    settings = recipe.dpo
    ways = []
    if settings.batch_size > 1:
        half = settings.batch_size // 2
        ways.append(f"dpo.batch_size={half} dpo.accumulate={2 * settings.accumulate} (the same step in smaller passes)")
    if not settings.gradient_checkpointing:
        ways.append("dpo.gradient_checkpointing=true (a third slower, a fraction of the memory)")
    if settings.dtype == "float32":
        ways.append("dpo.dtype=bfloat16")
    advice = f": use {', or '.join(ways)}" if ways else ""
    return InternalError(
        f"the GPU has too little memory for {settings.batch_size} pairs in a pass{advice}. "
        + str(error).partition(". ")[0],
        reason="OUT_OF_MEMORY",
    )


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Exclude existing objects from garbage collections: a full one walks a million objects of torch and transformers,
    and transformers requests one in every training."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _metrics(trainer: FastDPOTrainer, pairs: int, reference_seconds: float, seconds: float) -> dict[str, float]:
    """Means over the last quarter of the steps, under TRL's names and ours."""
    history = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    ours = _tail_means(trainer.figures, [name for name in trainer.figures[-1] if name != "loss"])
    theirs = _tail_means(
        history,
        (
            "loss", "grad_norm", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected",
            "logps/chosen", "logps/rejected",
        ),
    )  # fmt: skip
    steps = float(trainer.state.global_step)
    return {
        **{key.replace("/", "_"): value for key, value in theirs.items()},
        **ours,
        "steps": steps,
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "pairs_per_second": pairs * trainer.args.num_train_epochs / max(seconds, 1e-9),
        "shared_prefix": float(trainer.data_collator.sharing is not None),
    }


def _tail_means(entries: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, float]:
    tail = entries[-max(1, len(entries) // 4) :]
    return {
        name: sum(entry[name] for entry in tail) / len(tail) for name in names if all(name in entry for entry in tail)
    }
