"""The last layer of a prompt's pass on a CPU: only the last tokens' queries, attention, projection and MLP.

Of a prompt, the first token of the response needs the keys and values of every token in each layer, and after the last
layer nothing but the last token's state. Four tokens give the same bits as all (see `attention.py`); the self-check
compares them on the loaded model. Products of other shapes round differently on a GPU and in half precision, so there
the layer stays whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.stems import MIN_ROWS

_DENSE = ("gate_proj", "up_proj", "down_proj")


class NarrowLayer:
    """A decoder's last layer, changed in place; it is narrow only inside `narrow`.

    Args:
        layer: with `self_attn` and `mlp`.
    """

    def __init__(self, layer: Any) -> None:
        self._attention = layer.self_attn
        self._attention.last_tokens = None  # attention.py reads it
        for module in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp):
            self._wrap(module)

    @staticmethod
    def of(base: BaseModel) -> NarrowLayer | None:
        """The model's; None if it may not be narrow, or has other parts."""
        if base.device.type != "cpu" or base.dtype != torch.float32 or not base.keeps_logits:
            return None
        layer = (getattr(base.model.get_decoder(), "layers", None) or [None])[-1]
        projects = [getattr(getattr(layer, "self_attn", None), name, None) for name in ("q_proj", "o_proj")]
        dense = all(hasattr(getattr(layer, "mlp", None), name) for name in _DENSE)
        return NarrowLayer(layer) if dense and None not in projects else None

    @contextmanager
    def narrow(self) -> Iterator[None]:
        """Inside, states of tokens before the last four are wrong after this layer."""
        self._attention.last_tokens = MIN_ROWS
        try:
            yield
        finally:
            self._attention.last_tokens = None

    def _wrap(self, module: Any) -> None:
        plain = module.forward

        @functools.wraps(plain)
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            count = self._attention.last_tokens
            if count is None:
                return plain(x, *args, **kwargs)  # type: ignore[no-any-return]
            found: torch.Tensor = plain(x[:, -count:], *args, **kwargs)
            return zeros_before(found, x.shape[1])

        module.forward = forward


def zeros_before(last: torch.Tensor, length: int) -> torch.Tensor:
    """(batch, length, width) of the last tokens' (batch, count, width)."""
    whole = last.new_zeros(last.shape[0], length, last.shape[2])
    whole[:, -last.shape[1] :] = last
    return whole
