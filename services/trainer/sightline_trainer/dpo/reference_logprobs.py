"""Before the first step: proves that the shared prefix changes nothing, computes the reference's log-probs once per
pair, and compares the starting policy's with the sampler's.

This runs when the trainer has prepared the model, so it works the same in one process, under DDP and under FSDP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from sightline.errors import PreconditionFailed
from torch import Tensor

from sightline_trainer.dpo import activations
from sightline_trainer.dpo.collator import PairCollator, Reference
from sightline_trainer.dpo.extrapolate import extrapolated
from sightline_trainer.dpo.method import References
from sightline_trainer.dpo.parts import in_step
from sightline_trainer.dpo.references import combined, shown_as
from sightline_trainer.dpo.release import release_reference
from sightline_trainer.dpo.sampled import LIMITS, SampledLogprobs, gaps
from sightline_trainer.dpo.support import base_of
from sightline_trainer.dpo.trainer import OURS, FastDPOTrainer, Recorder

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
_CHECKED = 16
"""One prompt of so many is computed where the sampler's log-probs stand for the reference's."""
_LEAST_CHECKED = 4
"""Prompts that are computed at least."""


def token_logprobs(trainer: FastDPOTrainer, batch: dict[str, Any]) -> Tensor:
    """[R, L - 1] log-probs of the response tokens of all rows under the policy, zero elsewhere. Every process calls
    it."""
    rest = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps", *OURS)
    batch = trainer._prepare_inputs(batch)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {key: value for key, value in batch.items() if key not in rest}
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        if labels.device.type == "cpu" and "shared_prefix" not in inputs:
            return _of_responses(trainer, inputs, labels[:, 1:])
        output = trainer.model_wrapped(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
    log_probs: Tensor = output.log_probs.float()
    return log_probs


def _of_responses(trainer: FastDPOTrainer, inputs: dict[str, Any], targets: Tensor) -> Tensor:
    """As `token_logprobs`, with logits at response tokens only.

    TRL does this on a GPU. On a CPU it computes logits at every position, which costs more than the decoder if an image
    has 576 tokens and the vocabulary is large.
    """
    scored = targets != -100

    def keep(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][scored][None]
        return output

    base = base_of(trainer.accelerator.unwrap_model(trainer.model))
    hook = base.base_model.register_forward_hook(keep)
    try:
        output = trainer.model_wrapped(
            **inputs, shift_labels=targets[scored][None], use_cache=False, fused_lm_head=True
        )
    finally:
        hook.remove()
    log_probs = torch.zeros(scored.shape)
    log_probs[scored] = output.log_probs[0].float()
    return log_probs


def in_order(trainer: FastDPOTrainer) -> list[int]:
    """Rows of the dataset, with those of one prompt next to each other so that they share a prefix."""
    prompts = list(trainer.train_dataset["prompt_id"])
    first: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        first.setdefault(prompt, index)
    return sorted(range(len(prompts)), key=lambda index: (first[prompts[index]], index))


def self_check(trainer: FastDPOTrainer, pairs: int = 2) -> float:
    """Send a few pairs through TRL's rows and through the pack.

    Returns:
        The gap of the log-probs: in float32 the largest relative one; in shorter number types, whose rounding alone
        exceeds 1e-4, the mean.

    Raises:
        PreconditionFailed: the gap is above 1e-4 (float32) or twice the number type's own rounding.
    """
    collator: PairCollator = trainer.data_collator
    rows = [trainer.train_dataset[index] for index in in_order(trainer)[:pairs]]
    alone = PairCollator(collator.family, extras=collator.extras)
    both = [
        (token_logprobs(trainer, alone(some)), token_logprobs(trainer, batch))
        for some, batch in collator.batches(rows, len(rows))
    ]
    plain, packed = (torch.cat([values.flatten() for values in side]) for side in zip(*both, strict=True))
    apart = (plain - packed).abs()
    dtype = trainer.model.dtype if trainer.accelerator.mixed_precision == "no" else torch.bfloat16
    if dtype == torch.float32:
        gap, limit = (apart / plain.abs().clamp(min=1.0)).max().item(), TOLERANCE
    else:
        gap, limit = (apart.sum() / plain.abs().sum().clamp(min=1.0)).item(), 2 * torch.finfo(dtype).eps
    if not gap <= limit:
        raise PreconditionFailed(
            f"the shared prefix gives other log-probs than TRL's rows for the first pairs: {gap:.2g} apart, at most "
            f"{limit:.2g} is rounding. Set dpo.shared_prefix=false for this model, and please report it",
            reason="SHARED_PREFIX_DIFFERS",
        )
    logger.info("shared prefix: log-probs within %.2g of TRL's rows", gap)
    return gap


def add_reference(
    trainer: FastDPOTrainer,
    report: Callable[[int, int], None],
    *,
    sampled: SampledLogprobs | None = None,
    at_reference: bool = False,
    extrapolate: float = 0.0,
) -> dict[str, float]:
    """Compute `ref_*_logps` of every pair and its extra rows (summed log-probs in nats under the reference), and store
    them by the pair's id.

    The processes share the work. `trainer.references` defines the reference, by default the base model: the adapter
    off, or `trainer.ref_model`, which is released afterwards. With `from_sampler`, pairs whose log-probs the sampler
    told need no pass, but for those that are checked.

    Args:
        sampled: the sampler's log-probs of the sides; None compares nothing.
        at_reference: the policy is still the reference, so that one pass gives the log-probs of both.
        extrapolate: the extrapolation with which the sampling policy was published.

    Returns:
        The gaps of all computed sides that can be compared (`sampled.gaps`).
    """
    collator: PairCollator = trainer.data_collator
    accelerator = trainer.accelerator
    columns, collator.columns = collator.columns, ()
    trainer.model.eval()
    apart: dict[str, float] = {}
    settings = References() if at_reference or trainer.previous is None else trainer.references
    before = {name for name in settings.of if at_reference or (name == "previous" and not extrapolate)}
    passes = len(settings.of) + (sampled is not None and not before)
    sums: dict[int, dict[str, Tensor]] = {}

    def compute(name: str, place: int, rows: Sequence[int]) -> None:
        with shown_as(trainer, name, trainer.previous, settings.decay) as asked:
            for number, count, some, batch in _batches(trainer, rows):
                model, values = _summed(trainer, asked, batch)
                parts = values.split(len(some), dim=1)  # two with a second rejected side
                for at, row in enumerate(some):
                    sums.setdefault(row["pair_id"], {})[name] = torch.stack([part[:, at] for part in parts], dim=1)
                if sampled is not None and name in before:
                    masks = batch["completion_mask"][: model.rows, 1:].bool()
                    apart.update(gaps(sampled, some, model.output.log_probs[: model.rows].float().cpu(), masks.cpu()))
                del model
                report(place * count + number, passes * count)

    rows = in_order(trainer)
    told = _told(trainer, sampled, rows) if before and trainer.references.from_sampler else {}
    for place, name in enumerate(settings.of):
        compute(name, place, [row for row in rows if name not in before or row not in told])
        if name not in before or not told:
            continue
        if _differ(apart):
            logger.warning("the sampler's log-probs are not the trainer's; the reference's are computed for all pairs")
            compute(name, place, list(told))
            told = {}
        for pair, each in told.values():
            sums.setdefault(pair, {})[name] = each
        trainer.from_sampler = len(told) / len(rows)
    found: list[tuple[int, Reference]] = [
        (pair, tuple(map(tuple, combined(torch.stack(list(each.values())), settings).T.tolist())))
        for pair, each in sums.items()
    ]
    if trainer.token_kl is None:  # token_kl runs the reference in each step
        release_reference(trainer)
    if sampled is not None and not before:
        with extrapolated(accelerator.unwrap_model(trainer.model), extrapolate), collator.bare():
            for number, count, some, batch in _batches(trainer, rows):
                masks, logprobs = batch["completion_mask"][:, 1:].bool(), token_logprobs(trainer, batch)
                apart |= gaps(sampled, some, logprobs.cpu(), masks.cpu())
                report((passes - 1) * count + number, passes * count)
    collator.columns = columns
    if accelerator.num_processes > 1:
        found, apart = gather_object(found), dict(gather_object(list(apart.items())))
    collator.reference = dict(found)
    trainer.precompute_ref_logps = True
    return apart


def _told(
    trainer: FastDPOTrainer, sampled: SampledLogprobs | None, rows: Sequence[int]
) -> dict[int, tuple[int, Tensor]]:
    """(pair_id, [2, P] sums) by row of the data, for pairs that need no pass: the sampler told the log-probs of all
    sides, and the prompt is not among those that are checked."""
    if sampled is None or trainer.extras:
        return {}
    data = trainer.train_dataset
    pairs = data.select_columns([name for name in data.column_names if name != "images"])
    known = {row: (pair, sums) for row in rows if (sums := sampled.sums(pair := pairs[row])) is not None}
    prompts = list(dict.fromkeys(pair["prompt_id"] for pair, _ in known.values()))
    checked = set(prompts[:: max(1, min(_CHECKED, len(prompts) // _LEAST_CHECKED))])
    return {
        row: (pair["pair_id"], torch.tensor(sums))
        for row, (pair, sums) in known.items()
        if pair["prompt_id"] not in checked
    }


def _differ(apart: Mapping[str, float]) -> bool:
    """Whether a checked side differs on any process."""
    return any(not gap <= LIMITS["float32"] for gap in gather_object([max(apart.values(), default=0.0)]))


def _summed(trainer: FastDPOTrainer, asked: Any, batch: dict[str, Any]) -> tuple[Recorder, Tensor]:
    """[2 + E, flat pairs] summed log-probs under `asked`, which is ready: TRL's sums for both sides, then ours."""
    recorder, first, _ = trainer.recorded(asked, trainer._prepare_inputs(batch))
    with (
        torch.no_grad(),
        activations.kept(trainer.model, trainer.args.activation_checkpointing_kwargs),
        trainer.accelerator.autocast(),
    ):
        recorder()
    sides = trainer.compute_ref_log_probs(recorder, first)  # the forward pass is done: this only sums
    extras = recorder.log_probs[recorder.rows :].float().sum(dim=1)
    return recorder, torch.cat([*(side.float() for side in sides), extras]).view(2 + len(trainer.extras), -1).cpu()


def _batches(
    trainer: FastDPOTrainer, order: Sequence[int]
) -> Iterator[tuple[int, int, list[dict[str, Any]], dict[str, Any]]]:
    """(number from 1, total, pairs, collated) of this process' share of some rows; several with one number if tokens
    are bounded."""
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    share = -(-len(order) // world)
    mine = list(order[rank * share : (rank + 1) * share])
    mine += order[-1:] * (share - len(mine))  # every process takes part in every forward pass
    size = 2 * trainer.args.per_device_train_batch_size
    for number, start in enumerate(range(0, share, size), 1):
        some = [trainer.train_dataset[index] for index in mine[start : start + size]]
        batches = list(trainer.data_collator.batches(some, size))
        for rows, batch in batches if trainer.data_collator.budget is None else in_step(batches, trainer.accelerator):
            yield number, -(-share // size), rows, batch
