"""Skipped layers of a vision tower: features stay the same to the bit."""

from typing import Any

import pytest
import torch
from family_makers import TOWER, internvl, llava, llava_next, llava_onevision, mobilevlm, qwen2_vl
from sightline_chassis.families.unread_layers import skip_unread_layers
from torch import Tensor, nn

MAKERS = {"llava": llava, "llava_next": llava_next, "mobilevlm": mobilevlm}


def tower_of(model: Any) -> nn.ModuleList:
    found: nn.ModuleList = next(
        part for part in model.base_model.vision_tower.modules() if isinstance(part, nn.ModuleList)
    )
    return found


def features(model: Any) -> list[Tensor]:
    torch.manual_seed(1)
    side = model.config.vision_config.image_size
    with torch.no_grad():
        if model.config.model_type == "llava_next":
            pixels, sizes = torch.randn(1, 3, 3, side, side), torch.tensor([[side, 2 * side]])
            output = model.get_image_features(pixel_values=pixels, image_sizes=sizes, return_dict=True)
        else:
            output = model.get_image_features(pixel_values=torch.randn(1, 3, side, side), return_dict=True)
    return list(output.pooler_output)


@pytest.mark.parametrize("name", MAKERS)
def test_features_are_the_same_to_the_bit_and_the_layer_does_not_run(name: str) -> None:
    model = MAKERS[name]()[0].eval()
    expected, names, last = features(model), list(model.state_dict()), tower_of(model)[-1]
    assert skip_unread_layers(model) == 1
    for parameter in last.parameters():
        nn.init.constant_(parameter, torch.nan)
    found = features(model)
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    states = torch.randn(1, 2, TOWER["hidden_size"])
    assert last(states, None) is states
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(("read", "unread"), [(-1, 0), (-2, 1), (-3, 2), (0, 2), (1, 1), (2, 0), ([-3, 1], 1)])
def test_the_deepest_layer_that_is_read_decides(read: Any, unread: int) -> None:
    model = llava()[0]
    model.config.vision_feature_layer = read
    assert skip_unread_layers(model) == unread


@pytest.mark.parametrize("make", [llava_onevision, qwen2_vl, internvl])
def test_a_tower_that_is_read_whole_stays(make: Any) -> None:
    assert skip_unread_layers(make()[0]) == 0
