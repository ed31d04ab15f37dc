"""Release: free the models of a finished update, and a reference that is no longer needed, at once.

A transformers model whose forward was replaced holds itself; trainer, callbacks and accelerator hold one another. Left
to the collector, the models of several updates, and a reference for as long as the trainer, would stand in memory.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from sightline_trainer.dpo.trainer import FastDPOTrainer


def release_reference(trainer: FastDPOTrainer) -> None:
    """Let go of a full update's reference; its log-probs are known."""
    model, trainer.ref_model = trainer.ref_model, None
    trainer.token_kl = None
    if model is None:
        return
    held = trainer.accelerator._models
    held[:] = [each for each in held if each is not model]
    _empty(trainer.accelerator.unwrap_model(model))


def release(trainer: FastDPOTrainer) -> None:
    """Let go of all that an update held: its trainer is of no use afterwards."""
    release_reference(trainer)
    model = trainer.accelerator.unwrap_model(trainer.model)
    trainer.accelerator.free_memory()
    trainer.callback_handler.callbacks.clear()
    for holder in (trainer, trainer.callback_handler):
        for name in ("model", "model_wrapped", "optimizer", "lr_scheduler", "train_dataloader", "data_collator"):
            if hasattr(holder, name):
                setattr(holder, name, None)
    _empty(model)


def _empty(model: Any) -> None:
    """Make a model drop its references to itself: forwards set on the instance hold it and its storage."""
    for module in model.modules():
        for name in ("forward", "_original_forward"):
            module.__dict__.pop(name, None)
    del module, model


def collect() -> None:
    """Free what was released, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
