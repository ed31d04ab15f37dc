"""Release: free the models of a finished update, and a reference that is no longer needed, at once.

A transformers model whose forward was replaced references itself; trainer, callbacks and accelerator reference each
other. If left to the garbage collector, the models of several updates would stay in memory, and a reference as long as
its trainer.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from sightline_trainer.dpo.trainer import FastDPOTrainer


def release_reference(trainer: FastDPOTrainer) -> None:
    """Release a full update's reference; its log-probs are known."""
    model, trainer.ref_model = trainer.ref_model, None
    trainer.token_kl = None
    if model is None:
        return
    held = trainer.accelerator._models
    held[:] = [each for each in held if each is not model]
    _empty(trainer.accelerator.unwrap_model(model))


def release(trainer: FastDPOTrainer) -> None:
    """Release everything that an update held: its trainer cannot be used afterwards."""
    release_reference(trainer)
    model = trainer.accelerator.unwrap_model(trainer.model)
    accelerator = trainer.accelerator  # its free_memory collects garbage before it clears these
    for held in (accelerator._models, accelerator._optimizers, accelerator._schedulers, accelerator._dataloaders):
        held.clear()
    trainer.callback_handler.callbacks.clear()
    for holder in (trainer, trainer.callback_handler):
        for name in ("model", "model_wrapped", "optimizer", "lr_scheduler", "train_dataloader", "data_collator"):
            if hasattr(holder, name):
                setattr(holder, name, None)
    _empty(model)


def _empty(model: Any) -> None:
    """Make a model drop references to itself: a forward set on the instance keeps it and its storage alive."""
    for module in model.modules():
        for name in ("forward", "_original_forward"):
            module.__dict__.pop(name, None)
    del module, model


def collect() -> None:
    """Free the released memory, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
