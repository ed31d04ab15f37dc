"""FSDP, if a launcher asks for it: which layers are units, what is not sharded, and how weights are gathered again."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

_ASKED, _UNITS = "ACCELERATE_USE_FSDP", "FSDP_TRANSFORMER_CLS_TO_WRAP"


def make_ready(model: Any) -> None:
    """Before a transformers model with TRL's fused head is sharded, if a launcher asks for that.

    Accelerate gets the list of this model's layers, unless the launcher's configuration names some. Its own default is
    transformers' list for the family, which may name layers that this model lacks (such as CLIP's text embeddings for
    LLaVA); then accelerate refuses to shard the model.

    The head is gathered in time. It is a unit that is never called, since TRL reads its weight: FSDP would never gather
    it, and in the weight that TRL gathers instead, each part would get the gradient of a single process.
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
    """Classes of layers in a transformers model that must not be split."""
    there = {type(part).__name__ for part in model.modules()}
    return sorted(there & set(model._no_split_modules or ()))


def reshard(model: Any) -> None:
    """Make every process hold its own part of each tensor again. After a forward pass without a backward pass, FSDP2
    leaves some units gathered: their tensors are not those that the optimiser has."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gathered(trainer: Any) -> dict[str, Tensor]:
    """All gathered weights in main memory; empty except on the first process. Every process calls it."""
    second = isinstance(trainer.model, FSDPModule)
    if not second:
        found: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model)
        return found
    reshard(trainer.model)
    whole = {}
    for name, tensor in trainer.model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if trainer.accelerator.is_main_process:
            # A copy waits for pending transfers, and does not keep the parts alive.
            whole[name] = full.detach().to("cpu", copy=True)
    return whole
