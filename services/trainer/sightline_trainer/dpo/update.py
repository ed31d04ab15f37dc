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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sightline.errors import InternalError
from transformers import TrainerCallback

from sightline_trainer.dpo.callbacks import Begin, FiniteGradient, Progress, StepLog
from sightline_trainer.dpo.checkpoints import Checkpoints, forget, last, name_of
from sightline_trainer.dpo.collator import first_pair
from sightline_trainer.dpo.extrapolate import extrapolated
from sightline_trainer.dpo.loss_names import POVID
from sightline_trainer.dpo.losses import fold_pairs
from sightline_trainer.dpo.movement import Movement
from sightline_trainer.dpo.probes import pairs_asked, responses_needed
from sightline_trainer.dpo.reference_logprobs import token_logprobs
from sightline_trainer.dpo.release import collect, release
from sightline_trainer.dpo.sampled import LIMITS, SampledLogprobs
from sightline_trainer.dpo.saving import save_optimizer, save_policy
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.dpo.trainer import FastDPOTrainer
from sightline_trainer.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpdateProbe:
    """A response with the trainer's own log-probs of its tokens under the new policy, in nats. This is not the clients'
    `Probe`: it is stored as JSON in the iteration's files, and names its picture by the prompt's id."""

    prompt_id: str
    token_ids: list[int]
    logprobs: list[float]
    prompt: str = ""
    """The user's text, if it is not the dataset's."""
    previous_logprobs: list[float] = field(default_factory=list)
    """The same tokens under the policy that the update started from; empty if not computed."""


@dataclass(frozen=True)
class Update:
    """The result of an update: its metrics (services/trainer/README.md lists them), and probes."""

    metrics: dict[str, float]
    probes: list[UpdateProbe]


def probe(trainer: FastDPOTrainer, count: int) -> list[UpdateProbe]:
    """The trainer's log-probs for the responses of the first `count` pairs under the current policy: each pair's chosen
    side, and its rejected side if it has the same pictures; each response once.

    They use TRL's rows, not the pack, so that the sampler's arrival check also checks the pack.
    """
    count = min(count, len(trainer.train_dataset))
    rows = [first_pair(trainer.train_dataset[index]) for index in range(count)]
    collate, size = trainer.data_collator.plain(), trainer.args.per_device_train_batch_size
    found: dict[tuple[str, tuple[int, ...]], UpdateProbe] = {}
    for some, batch in collate.batches(rows, size):
        masks, values = batch["completion_mask"][:, 1:].bool(), token_logprobs(trainer, batch).cpu()
        for at, row in enumerate(some):
            for side, place in (("chosen", at), ("rejected", len(some) + at)):  # all chosen sides come first
                if side == "chosen" or not row.get("rejected_images"):
                    scores = values[place][masks[place].cpu()].tolist()
                    name, ids, asked = row["prompt_id"], list(row[f"{side}_ids"]), row["prompt"][-1]["content"]
                    found.setdefault((name, tuple(ids)), UpdateProbe(name, ids, scores, asked))
    return list(found.values())


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

    def probes() -> list[UpdateProbe]:
        with extrapolated(model, further):  # the sampler uses the published policy
            return probe(trainer, pairs_asked(recipe.publication.probes))

    before, movement = _Before(probes), Movement(trainer)
    reported = Progress(lambda done, total: progress(total + 9 * done, 10 * total))
    steps = StepLog(work / f"steps-{iteration:04d}.jsonl")
    world = trainer.accelerator.num_processes
    name = name_of(recipe, trainer.train_dataset, previous=previous, seed=seed, iteration=iteration, world=world)
    checkpoints = Checkpoints(
        trainer,
        name=name,
        seconds=recipe.dpo.seconds_between_checkpoints,
        ours={
            "begin": (begin.known, begin.recall),
            "probes": (lambda: [asdict(each) for each in before.probes], before.recall),
            "movement": (movement.counted, movement.recall),
            "figures": (lambda: trainer.figures, trainer.figures.extend),
            "doubts": (lambda: list(trainer.doubts.seen) if trainer.doubts else [], trainer.doubted),
        },
        begun=last(work, name),
    )
    for callback in (begin, before, movement, FiniteGradient(), steps, reported, checkpoints):
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
    after = [replace(new, previous_logprobs=old.logprobs) for new, old in zip(probes(), before.probes, strict=True)]
    if recipe.publication.probes == "auto":
        scores = [each.previous_logprobs for each in after], [each.logprobs for each in after]
        after = after[: responses_needed(*scores, recipe.dpo.dtype)]
    return Update({**figures, "extrapolated": further} if further else figures, after)


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


class _Before(TrainerCallback):
    """Computes the probes as training begins, for the previous policy, with the model on training's device."""

    def __init__(self, ask: Callable[[], list[UpdateProbe]]) -> None:
        self._ask = ask
        self.probes: list[UpdateProbe] = []

    def recall(self, probes: list[dict[str, Any]]) -> None:
        """Restore the results from the update's start."""
        self.probes = [UpdateProbe(**each) for each in probes]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.probes = self.probes or self._ask()


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
