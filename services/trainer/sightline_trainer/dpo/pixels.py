"""Proves that the picture changes the log-probs that are trained.

A trainer that loses its pictures would train without pixels, and its losses would look normal. So a sample of rows is
run with its pictures and with blank ones of the same size, and the log-probs must differ.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import Any

import PIL.Image
from sightline.errors import PreconditionFailed

from sightline_trainer.dpo.collator import PairCollator, decoded
from sightline_trainer.dpo.reference_logprobs import in_order, token_logprobs
from sightline_trainer.dpo.trainer import FastDPOTrainer

logger = logging.getLogger(__name__)

ROWS = 4
LEAST = 1e-6
"""Nats a token: below this, a picture made no difference. The same computation on the same pixels differs by exactly
0."""


def image_matters(trainer: FastDPOTrainer) -> dict[str, float]:
    """`image_matters`: mean |difference| a token of the log-probs under the picture and under a blank one, in nats.

    Through the collator that training uses, of the first pairs of some prompts. Every process calls.

    Raises:
        PreconditionFailed: IMAGE_DOES_NOT_MATTER, with the rows, if most are the same without their picture.
    """
    firsts: dict[str, dict[str, Any]] = {}
    for index in in_order(trainer):
        if len(firsts) == ROWS:
            break
        row = trainer.train_dataset[index]
        if row["images"] and row["prompt_id"] not in firsts:
            blank = {**row, "images": [_blank(image) for image in row["images"]]}
            if row.get("rejected_images"):
                blank["rejected_images"] = [_blank(image) for image in row["rejected_images"]]
            firsts[row["prompt_id"]] = {"row": row, "blank": blank}
    if not firsts:
        return {}
    collator: PairCollator = trainer.data_collator
    apart: dict[str, float] = {}
    size = trainer.args.per_device_train_batch_size if collator.budget is None else 1
    with collator.bare():
        names = list(firsts)
        for start in range(0, len(names), size):
            some = names[start : start + size]
            seen = collator([firsts[name]["row"] for name in some])
            masks = seen["completion_mask"][:, 1:].bool()
            with_picture = token_logprobs(trainer, seen).cpu()
            without = token_logprobs(trainer, collator([firsts[name]["blank"] for name in some])).cpu()
            for at, name in enumerate(some):
                apart[name] = (with_picture[at] - without[at])[masks[at].cpu()].abs().mean().item()
    blind = [name for name, value in apart.items() if not value > LEAST]
    if 2 * len(blind) > len(apart):
        raise PreconditionFailed(
            f"the log-probs of {len(blind)} of {len(apart)} rows are the same with a blank picture "
            f"({', '.join(blind[:5])}): the pictures do not reach the model. Check the images, the chat template's "
            "image placeholder and the processor",
            reason="IMAGE_DOES_NOT_MATTER",
        )
    if blind:
        logger.warning("the picture makes no difference to %s", ", ".join(blind))
    return {"image_matters": sum(apart.values()) / len(apart)}


def _blank(image: Any) -> Any:
    """A grey picture of the same size; a white one if the picture is that grey itself."""
    encoded = isinstance(image, Mapping)
    picture = decoded(image)  # by the one rule: a rotated photo has another size in the file
    grey = PIL.Image.new("RGB", picture.size, (127, 127, 127))
    if grey.tobytes() == picture.tobytes():
        grey = PIL.Image.new("RGB", picture.size, (255, 255, 255))
    if not encoded:
        return grey
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
