"""ExPO: published weights are extrapolated beyond the trained ones (Zheng et al., arXiv 2404.16792).

    theta = theta_aligned + alpha (theta_aligned - theta_ref)

theta_ref is the base model, so for a LoRA this is a factor 1 + alpha on the adapter's scale: `lora_alpha` in the
published files. Their tensors are the trained ones, and the next update continues from these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer


@contextmanager
def extrapolated(model: Any, alpha: float) -> Iterator[None]:
    """The model with its adapter scaled by 1 + `alpha`, for its outputs and for saving.

    Args:
        model: a PEFT model with a LoRA; any model if `alpha` is 0.
    """
    if alpha:
        _scale(model, 1.0 + alpha)
    try:
        yield
    finally:
        if alpha:
            _scale(model, 1.0 / (1.0 + alpha))


def _scale(model: Any, factor: float) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.scaling:
                module.scaling[name] *= factor
    for config in model.peft_config.values():
        alpha = round(config.lora_alpha * factor, 9)
        config.lora_alpha = int(alpha) if alpha == int(alpha) else alpha
