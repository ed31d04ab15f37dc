"""SharedPrefix: a model whose fused forward takes packs, and what a collator needs to make them.

TRL's DPOTrainer calls `model(**batch, labels=..., fused_lm_head=True)` and expects per-token results for its 2 B
rows. `share` wraps that forward: a batch with a pack runs packed, and its results are spread to TRL's layout. TRL's
loss code sees no difference, so all its losses work.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, fields
from typing import Any

import torch
from sightline_chassis.feature_cache import FeatureCache
from torch import Tensor

from sightline_trainer.dpo.attention import NAME
from sightline_trainer.dpo.head import can_score, scored
from sightline_trainer.dpo.last_layer import LastLayer
from sightline_trainer.dpo.packing import Pack, PromptTokens
from sightline_trainer.dpo.support import base_of, obstacle, window_of
from sightline_trainer.dpo.vision import ImageEncoder, Names, frozen

logger = logging.getLogger(__name__)


@dataclass
class SharedPrefix:
    """A model made ready to share prefixes.

    Attributes:
        tower: encodes the images.
        window: how many tokens back sliding attention sees; a batch with a longer row uses plain rows.
    """

    tower: ImageEncoder
    window: int | None = None

    @property
    def cache(self) -> FeatureCache[Names, Tensor] | None:
        """Features of images seen before; None if the tower is trained, so that they change."""
        return self.tower.cache

    def positions(self, prompt: PromptTokens, response: int) -> Tensor:
        """[D, P + response] position ids of a prompt and `response` text tokens after it, by the model's own rule."""
        after = prompt.follows + torch.arange(response).expand(len(prompt.positions), -1)
        return torch.cat([prompt.positions, after], dim=1)

    def fits(self, longest: int) -> bool:
        """Whether a row of this many tokens attends to all of itself."""
        return self.window is None or longest <= self.window


def share(model: Any, *, cache_bytes: int, extra_models: tuple[Any, ...] = ()) -> SharedPrefix | None:
    """Make `model`, which has TRL's fused LM head, accept packs.

    Args:
        model: a transformers model or a PEFT model.
        cache_bytes: maximum bytes of cached image features.
        extra_models: other models that get the same batches, such as a reference.

    Returns:
        None if the model can't; a log line says why, and plain rows are used.
    """
    reason = obstacle(model)
    if reason is not None:
        logger.warning("no shared prefix; the update uses plain rows: %s", reason)
        return None
    base = base_of(model)
    still = frozen(base.base_model, base.get_decoder())
    if not still:
        logger.warning(
            "image features are not cached because the tower or projector is trained or has an adapter; each image "
            "is encoded once per step"
        )
    tower = ImageEncoder(FeatureCache[Names, Tensor](cache_bytes) if still else None)
    for each in (model, *extra_models):
        _prepare(base_of(each), tower, keep=each is model)
    return SharedPrefix(tower, window_of(base.config.get_text_config()))


def _prepare(base: Any, tower: ImageEncoder, *, keep: bool) -> None:
    base.get_decoder().set_attn_implementation(NAME)
    LastLayer(base.get_decoder().layers[-1])
    base.base_model.register_forward_hook(_keep_scored, with_kwargs=True)
    fused = base.forward

    @functools.wraps(fused)
    def forward(*args: Any, shared_prefix: Pack | None = None, **kwargs: Any) -> Any:
        if shared_prefix is None:
            return fused(*args, **kwargs)
        pack = shared_prefix.to(base.device)
        inputs = {
            "input_ids": pack.input_ids,
            "position_ids": pack.position_ids,
            # Treated as a finished mask; attention.py decides what tokens see.
            "attention_mask": torch.empty(1, 1, 0, 0, dtype=torch.bool, device=base.device),
            "mm_encoder_outputs": (
                {"image": tower.encode(base.base_model, pack.pictures, keep=keep)} if pack.pictures else {}
            ),
            "use_cache": False,
            "shared_prefix": pack,
        }
        if can_score(base):
            states = base.base_model(**inputs).last_hidden_state
            output = scored(states, base.get_output_embeddings(), pack.labels)
        else:
            output = fused(**inputs, shift_labels=pack.labels, fused_lm_head=True)
        for field in fields(output):
            value = getattr(output, field.name)
            if isinstance(value, Tensor) and value.shape == pack.labels.shape:
                setattr(output, field.name, pack.spread(value))
        return output

    base.forward = forward


def _keep_scored(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """Only positions that predict a response token go to the LM head."""
    pack = kwargs.get("shared_prefix")
    if pack is not None:
        output.last_hidden_state = output.last_hidden_state[:, pack.kept]
    return output
