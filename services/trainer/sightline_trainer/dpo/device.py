"""Where an update runs and how much memory it needs there, computed before sampling."""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass
from typing import Any

from sightline.errors import PreconditionFailed

from sightline_trainer.dpo.decoder import freeze
from sightline_trainer.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """Bytes of a full update, without activations.

    Attributes:
        masters: float32 weights, trained and not.
        gradients: float32.
        optimizer: AdamW's two float32 moments.
        compute: bfloat16 copies of the trained weights, if the update computes in bfloat16.
        reference: the reference's float32 weights; freed before gradients and moments are allocated.
        before: the copy in main memory with which the update is compared.
    """

    masters: int
    gradients: int
    optimizer: int
    compute: int
    reference: int
    before: int

    @property
    def peak(self) -> int:
        """The peak."""
        return self.masters + max(self.reference, self.gradients + self.optimizer + self.compute)

    def __str__(self) -> str:
        parts = (
            (self.masters, "float32 weights"),
            (self.gradients, "gradients"),
            (self.optimizer, "AdamW"),
            (self.compute, "bfloat16 copies"),
        )
        listed = ", ".join(f"{value / 2**30:.2f} {name}" for value, name in parts if value)
        return (
            f"{self.peak / 2**30:.2f} GiB without activations ({listed}; before the first step the reference's "
            f"{self.reference / 2**30:.2f}), and {self.before / 2**30:.2f} GiB of main memory"
        )


def full_memory(recipe: Recipe) -> Memory:
    """What `dpo.train=full` needs, from the model's configuration; no weight is loaded."""
    import torch
    from accelerate import init_empty_weights
    from sightline_chassis.families.auto import AutoConfig, AutoModelForImageTextToText

    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(recipe.base_model), dtype=torch.float32
        )
    every = sum(parameter.numel() for parameter in model.parameters())
    freeze(model, vision=recipe.dpo.train_vision)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    compute = 2 * trained if recipe.dpo.dtype == "bfloat16" else 0
    return Memory(4 * every, 4 * trained, 8 * trained, compute, 4 * every, 4 * trained)


def check_device(recipe: Recipe) -> str:
    """In words, where this process's update will run and what it needs there; empty if a launcher decides.

    One process trains on one device, the first that it sees. Use `CUDA_VISIBLE_DEVICES` to choose another.

    Raises:
        PreconditionFailed: UPDATE_NEEDS_MEMORY if a full update can't fit the device, BFLOAT16_UNSUPPORTED if the
            device lacks that number type.
    """
    if recipe.dpo.launch:
        return ""
    import torch

    cuda = torch.cuda.is_available()
    words = "the update runs on the CPU"
    if cuda:
        words = f"the update runs on {torch.cuda.get_device_name(0)}"
        if torch.cuda.device_count() > 1:
            words += f", the first of {torch.cuda.device_count()}; dpo.launch uses more"
        if recipe.dpo.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
            raise PreconditionFailed(f"{words}, which has no bfloat16: set dpo.dtype", reason="BFLOAT16_UNSUPPORTED")
    if recipe.dpo.train == "full":
        needed = full_memory(recipe)
        words += f"; it needs {needed}"
        if cuda and needed.peak > (room := torch.cuda.get_device_properties(0).total_memory):
            raise PreconditionFailed(
                f"{words}, and the device has {room / 2**30:.2f} GiB. Train a LoRA (dpo.train=lora), or shard "
                "the model over several devices by dpo.launch",
                reason="UPDATE_NEEDS_MEMORY",
            )
    logger.info("%s", words)
    return words


def peak_memory_mib() -> float:
    """Peak memory of this process: of its GPU if there is one, otherwise main memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pin(arguments: Any) -> None:
    """Make one process train on one device. Otherwise transformers spreads batches over all visible devices
    (DataParallel), which TRL refuses after everything is loaded."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
