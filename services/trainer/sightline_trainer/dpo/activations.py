"""Activations: a forward pass without gradients keeps them, even with `dpo.gradient_checkpointing`.

This does the same as TRL's `disable_gradient_checkpointing`, with the names of the current transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def kept(model: Any, settings: dict[str, Any] | None) -> Iterator[None]:
    """Inside the block, no activation of the model is recomputed.

    Args:
        settings: of the recomputation afterwards, if it was on before.
    """
    if not model.is_activation_checkpointing:
        yield
        return
    model.activation_checkpointing_disable()
    try:
        yield
    finally:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
