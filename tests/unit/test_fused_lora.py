"""FusedLora: outputs and gradients equal PEFT's own layer; PEFT's layer stays wherever it is not a plain adapter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sightline_trainer.dpo.fused_lora import FusedLora, fuse
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40, bias=bias), nn.Linear(40, 16, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def pair(bias: bool = True, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Any, Any]:
    """The same adapted model, by PEFT and fused; B is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["first", "second"], **settings)
    theirs = get_peft_model(Net(bias).to(dtype), config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    ours = copy.deepcopy(theirs)
    assert fuse(ours) == 2
    return theirs, ours


def results(model: Any, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_(True)
    out = model(x)
    (out.float() ** 2).sum().backward()
    assert x.grad is not None
    return {"out": out.detach(), "x": x.grad, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24)])
def test_outputs_and_gradients_are_pefts(bias: bool, shape: tuple[int, ...]) -> None:
    theirs, ours = pair(bias)
    x = torch.randn(shape)
    expected, found = results(theirs, x), results(ours, x)
    assert set(expected) == set(found) >= {"out", "x"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=5e-5)


def test_gradients_are_those_of_the_formula() -> None:
    _, ours = pair()
    double = ours.double()
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(double, (x,))


def test_in_bfloat16_it_is_nearer_to_the_exact_sum() -> None:
    theirs, ours = pair(dtype=torch.bfloat16)
    x = torch.randn(64, 24, dtype=torch.bfloat16)
    exact = copy.deepcopy(theirs).float()(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        apart = [(model(x).float() - exact).abs().mean().item() for model in (theirs, ours)]
        grads = results(ours, x)
    assert apart[1] <= apart[0]
    assert grads["base_model.model.first.lora_A.default.weight"].dtype == torch.float32


def test_without_the_adapter_it_is_the_layer_itself() -> None:
    theirs, ours = pair()
    x = torch.randn(7, 24)
    base = ours.get_base_model()
    with theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(theirs(x), ours(x))
    nn.init.zeros_(base.first.lora_B.default.weight), nn.init.zeros_(base.second.lora_B.default.weight)
    with_zeros = ours(x)
    with ours.disable_adapter():
        assert torch.equal(ours(x), with_zeros)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_no_plain_adapter_is_left_to_peft(settings: dict[str, Any]) -> None:
    theirs, ours = pair(**settings)
    x = torch.randn(7, 24)
    for model in (theirs, ours):
        torch.manual_seed(3)
        model.out = model.train()(x)
    assert torch.equal(theirs.out, ours.out)
    if "lora_dropout" in settings:  # at evaluation there is none
        torch.testing.assert_close(theirs.eval()(x), ours.eval()(x))


def test_a_scaled_adapter_and_a_merged_one() -> None:
    theirs, ours = pair()
    x = torch.randn(7, 24)
    for model in (theirs, ours):
        model.get_base_model().first.scaling["default"] *= 1.5
    torch.testing.assert_close(theirs(x), ours(x))
    merged = ours.merge_and_unload()
    assert not any(isinstance(module, FusedLora) for module in merged.modules())
    torch.testing.assert_close(theirs(x), merged(x))
