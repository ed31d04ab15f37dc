"""Activations: kept for a forward pass without gradients, where `dpo.gradient_checkpointing` computes them again.

As TRL's `disable_gradient_checkpointing`, by the names that transformers has now.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def kept(model: Any, settings: dict[str, Any] | None) -> Iterator[None]:
    """Inside, no activation of the model is computed again.

    Args:
        settings: what they are computed again with afterwards, where they were before.
    """
    if not model.is_activation_checkpointing:
        yield
        return
    model.activation_checkpointing_disable()
    try:
        yield
    finally:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
