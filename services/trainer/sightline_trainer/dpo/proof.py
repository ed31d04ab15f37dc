"""Proves that the update's rows give the log-probs of a plain forward pass on one processor call, for every family.

Rows are batched, padded and packed, and their images are encoded together and cached. If any of this differs from plain
use of the model, the update would train another policy, and its losses would look normal. So before the first step a
few pairs, with images as different in size as possible, are computed both ways.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
import torch
from accelerate.utils import gather_object
from sightline.errors import PreconditionFailed
from torch import Tensor

from sightline_trainer.dpo.collator import SIDES, PairCollator, decoded, first_pair
from sightline_trainer.dpo.family import parameters
from sightline_trainer.dpo.reference_logprobs import in_order, token_logprobs
from sightline_trainer.dpo.sampled import LIMITS
from sightline_trainer.dpo.support import base_of
from sightline_trainer.dpo.trainer import FastDPOTrainer

logger = logging.getLogger(__name__)

_LOOKED_AT = 64
"""Number of prompts from which the sample is chosen."""


def rows_are_plain(trainer: FastDPOTrainer) -> dict[str, float]:
    """`rows_gap`: the largest mean |difference| a token of a side, in nats, between the collator's rows and a plain
    forward pass, for up to five pairs. Every process calls it.

    In bfloat16 a deep model may round by more than that, whatever its rows are. So a gap over 0.05 is compared with the
    difference between two of transformers' own attention implementations in a plain forward pass, and may be twice as
    large.

    Raises:
        PreconditionFailed: ROWS_DIFFER, with the worst row, if it is over 0.001 in float32, or in bfloat16 over 0.05
            and over twice the model's own rounding.
    """
    rows = sample(trainer)
    collator: PairCollator = trainer.data_collator
    apart: dict[str, float] = {}
    looked: dict[str, tuple[dict[str, Any], str, Tensor]] = {}
    size = trainer.args.per_device_train_batch_size
    with collator.bare():
        rows = [first_pair(row) for row in rows]
        for some, batch in collator.batches(rows, size):
            masks = batch["completion_mask"][:, 1:].bool()
            ours = token_logprobs(trainer, batch).cpu()
            for at, (side, row) in enumerate((side, row) for side in SIDES for row in some):
                plain = _plain(trainer, row, side)
                name = f"{row['prompt_id']} {side}"
                apart[name] = (ours[at][masks[at].cpu()] - plain).abs().mean().item()
                looked[name] = row, side, plain
    short = trainer.accelerator.mixed_precision != "no" or trainer.model.dtype != torch.float32
    limit = LIMITS["bfloat16" if short else "float32"]
    worst = max(apart, key=lambda name: apart[name])
    figures = {"rows_gap": apart[worst]}
    if short and max(gather_object([apart[worst]])) > limit:
        figures["rows_rounding"] = max(gather_object([_rounding(trainer, *looked[worst])]))
        limit = max(limit, 2 * figures["rows_rounding"])
    if not apart[worst] <= limit:
        raise PreconditionFailed(
            f"the update's rows give other log-probs than a plain forward pass of the model, so its family "
            f"{collator.family.name!r} can't be trained: {apart[worst]:.2g} nats a token apart, at most {limit:.2g}, "
            f"in {worst}. Please report it",
            reason="ROWS_DIFFER",
        )
    logger.info("rows: log-probs within %.2g nats a token of plain forwards", apart[worst])
    return figures


def sample(trainer: FastDPOTrainer) -> list[dict[str, Any]]:
    """One pair each with the largest, smallest, widest and tallest image of the first prompts, and one with the most
    images if a prompt has several."""
    firsts: dict[str, dict[str, Any]] = {}
    for index in in_order(trainer):
        row = trainer.train_dataset[index]
        if row["prompt_id"] not in firsts and len(firsts) == _LOOKED_AT:
            break
        firsts.setdefault(row["prompt_id"], row)
    sizes = {name: _size(row["images"]) for name, row in firsts.items()}
    measures: list[dict[str, float]] = [
        {name: w * h for name, (w, h) in sizes.items()},
        {name: -w * h for name, (w, h) in sizes.items()},
        {name: w / h for name, (w, h) in sizes.items()},
        {name: h / w for name, (w, h) in sizes.items()},
    ]
    several = {name: float(len(row["images"])) for name, row in firsts.items() if len(row["images"]) > 1}
    measures += [several] if several else []
    chosen = dict.fromkeys(max(each, key=each.__getitem__) for each in measures)
    return [firsts[name] for name in chosen]


def _size(images: Sequence[Any]) -> tuple[int, int]:
    if not images:
        return 1, 1
    opened = PIL.Image.open(io.BytesIO(images[0]["bytes"])) if isinstance(images[0], Mapping) else images[0]
    size: tuple[int, int] = opened.size
    return size


def _plain(trainer: FastDPOTrainer, row: Mapping[str, Any], side: str) -> Tensor:
    """[response] log-probs of one side: all processor outputs for the prompt, followed by the response, in one row
    without padding."""
    family = trainer.data_collator.family
    shown = row.get(f"{side}_images") or row["images"]
    prompt = family.processing.prompt(row["rendered_prompt"], [decoded(image) for image in shown])
    response = torch.tensor(row[f"{side}_ids"])
    inputs = {**prompt.images, **family.processing.continued(prompt.tokens, len(response))}
    inputs["input_ids"] = torch.cat([prompt.ids, response])[None]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    base = base_of(trainer.accelerator.unwrap_model(trainer.model))
    more = {"logits_to_keep": len(response) + 1} if "logits_to_keep" in parameters(type(base).forward) else {}
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        logits = trainer.model_wrapped(**trainer._prepare_inputs(inputs), use_cache=False, **more).logits
    scores = logits[0, -len(response) - 1 : -1].float().log_softmax(dim=-1).cpu()
    found: Tensor = scores.gather(-1, response[:, None])[:, 0]
    return found


def _rounding(trainer: FastDPOTrainer, row: Mapping[str, Any], side: str, plain: Tensor) -> float:
    """Mean |difference| a token, in nats, between `plain` and a plain forward pass with transformers' unfused
    attention: the same formula with another order of additions. 0 for a decoder without such attention."""
    decoder = base_of(trainer.accelerator.unwrap_model(trainer.model)).get_decoder()
    as_it_is = decoder.config._attn_implementation
    try:
        decoder.set_attn_implementation("eager")
        return (_plain(trainer, row, side) - plain).abs().mean().item()
    except (ValueError, NotImplementedError):
        return 0.0
    finally:
        decoder.set_attn_implementation(as_it_is)
