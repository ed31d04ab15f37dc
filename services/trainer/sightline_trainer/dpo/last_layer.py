"""The last layer of a decoder: over a pack, it computes only the tokens that predict a response's token.

The head reads no other token's final state. A prefix's keys and values are needed, but its queries, attention, output
projection and MLP are not, which for an image of 576 tokens are nearly all of the layer. States of the other tokens are
not those of the model afterwards; nothing may read them.

The adapter's gradients in this layer are then sums of fewer terms, so they round differently. Short prompts leave
little to leave out, and go through the layer whole.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from sightline_trainer.dpo.packing import Pack

LEAST_PREFIX = 256
"""Tokens of a pack's prompts, on average, from which the layer is narrow."""


class LastLayer:
    """A decoder's last layer, changed in place. Without a pack of long prompts it computes every token.

    Args:
        layer: has `self_attn` with `q_proj` and `o_proj`, and `mlp` after it; each of these maps tokens one by one.
    """

    def __init__(self, layer: Any) -> None:
        self._pack: Pack | None = None
        attention = layer.self_attn
        for module in (attention.q_proj, attention.o_proj, layer.mlp):
            self._narrow(module)
        plain = attention.forward

        # Not around the layer: with gradient checkpointing, transformers runs the layer's own forward again.
        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            pack: Pack | None = kwargs.get("shared_prefix")
            self._pack = pack if pack is not None and pack.prefix >= LEAST_PREFIX else None
            attention.only_scored = self._pack is not None  # attention.py reads it
            return plain(*args, **kwargs)

        attention.forward = forward

    def _narrow(self, module: Any) -> None:
        """Make a module of [1, T, W] compute the scored tokens; the others become zero."""
        plain = module.forward

        @functools.wraps(plain)
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self._pack is None:
                return plain(x, *args, **kwargs)  # type: ignore[no-any-return]
            scored = self._pack.tiling(x.device).scored
            found: Tensor = plain(scored.pick(x[0])[None], *args, **kwargs)
            return scored.put(found[0], x.shape[1])[None]

        module.forward = forward
