"""Unread layers: a vision tower's last layers, whose output no one reads, are skipped.

LLaVA takes its image features before the tower's last layer (`vision_feature_layer` -2), and transformers computes that
layer as well. Features stay the same to the bit, and so do the names of all weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def skip_unread_layers(model: Any) -> int:
    """Change a model in place.

    Args:
        model: a transformers model with images.

    Returns:
        The number of skipped layers; 0 for a model whose config does not say which layers are read.
    """
    config = model.config
    read = getattr(config, "vision_feature_layer", None)
    count = getattr(getattr(config, "vision_config", None), "num_hidden_layers", None)
    tower = getattr(model.base_model, "vision_tower", None)
    if read is None or count is None or tower is None:
        return 0
    stacks = [part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if len(stacks) != 1:
        return 0
    # State 0 is the input of the first layer, and state `count` the output of the last.
    states = [place if place >= 0 else count + 1 + place for place in ([read] if isinstance(read, int) else read)]
    unread = stacks[0][max(states) :]
    for layer in unread:
        layer.forward = _passed
    return len(unread)


def _passed(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return states
