"""Sharded: which layers FSDP keeps in units of their own, where a launcher asks for it, what it leaves whole, and
how weights come together again."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

_ASKED, _UNITS = "ACCELERATE_USE_FSDP", "FSDP_TRANSFORMER_CLS_TO_WRAP"


def make_ready(model: Any) -> None:
    """Before a transformers model with TRL's fused head is sharded, if a launcher asks for that.

    Accelerate is told the layers of this model, unless the launcher's configuration names some: its own default is
    transformers' list, which holds what any model of a family may have, such as CLIP's text embeddings in LLaVA's;
    with one that this model has not, accelerate refuses to shard it.

    The head comes whole in time. It is a unit that nobody calls, since TRL reads its weight: FSDP would never gather
    it, and what TRL gathers instead gets the gradient of one process, each part that of another.
    """
    if os.environ.get(_ASKED, "").lower() != "true":
        return
    if not os.environ.get(_UNITS):
        os.environ[_UNITS] = ",".join(units(model))
    model.base_model.register_forward_hook(lambda *_: _gather(model.get_output_embeddings()))


def _gather(head: Any) -> None:
    if isinstance(head, FSDPModule):
        head.unshard()  # until its gradient is summed, or `reshard`


def units(model: Any) -> list[str]:
    """Classes of those layers of a transformers model that are not to be split, and are in it."""
    there = {type(part).__name__ for part in model.modules()}
    return sorted(there & set(model._no_split_modules or ()))


def reshard(model: Any) -> None:
    """Have every process hold its own part of each tensor again. After a forward without a backward, FSDP2 leaves some
    units whole: their tensors are others than those that the optimiser has."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gathered(trainer: Any) -> dict[str, Tensor]:
    """All weights, whole, in main memory; empty but on the first process. Every process calls."""
    second = isinstance(trainer.model, FSDPModule)
    if not second:
        found: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model)
        return found
    reshard(trainer.model)
    whole = {}
    for name, tensor in trainer.model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if trainer.accelerator.is_main_process:
            # A copy waits for what is on its way, and does not keep the parts.
            whole[name] = full.detach().to("cpu", copy=True)
    return whole
