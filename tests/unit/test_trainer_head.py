"""The head on a CPU: TRL's values, tile by tile, and autograd's gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_models import make_family
from sightline_trainer.dpo import head
from sightline_trainer.dpo.head import can_score, scored
from torch import nn
from transformers import AutoModelForImageTextToText
from trl.kernels import ChunkedLogProbFunction

VOCABULARY = 50


def layer(*, bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(8, VOCABULARY, bias=bias)
    return made.requires_grad_(False)


@pytest.mark.parametrize("tile", [1, 3 * VOCABULARY, 1 << 20], ids=["one_token", "three_tokens", "all"])
@pytest.mark.parametrize("bias", [False, True])
def test_each_value_and_the_gradient_are_trls(tile: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_TILE", tile)
    linear, states = layer(bias=bias), torch.randn(1, 11, 8, requires_grad=True)
    labels = torch.randint(VOCABULARY, (1, 11))
    with torch.no_grad():
        labels[0, ::3] = linear(states)[0, ::3].argmax(dim=1)  # some are the most likely token
    found = scored(states, linear, labels)
    outputs = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    theirs = ChunkedLogProbFunction.apply(
        states[0], linear.weight, linear.bias, labels[0], 1.0, 7, None, 1.0, outputs
    )  # fmt: skip
    for name, expected in zip(outputs, theirs, strict=True):
        torch.testing.assert_close(getattr(found, name), expected[None], msg=name)
    assert found.is_top1 is not None
    assert 0 < found.is_top1.sum() < 11
    weights = torch.randn(1, 11)
    assert found.log_probs is not None
    (ours,) = torch.autograd.grad((weights * found.log_probs).sum(), states)
    plain = linear(states).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    (expected,) = torch.autograd.grad((weights * plain).sum(), states)
    torch.testing.assert_close(ours, expected)


def test_the_first_of_equal_logits_is_the_top_one() -> None:
    linear = nn.Linear(1, 3, bias=False).requires_grad_(False)
    linear.weight.fill_(1.0)
    found = scored(torch.ones(1, 3, 1), linear, torch.tensor([[0, 1, 2]]))
    assert found.is_top1 is not None
    assert found.is_top1.tolist() == [[True, False, False]]


@pytest.mark.parametrize("change", ["none", "trained", "bfloat16", "scaled", "autocast", "wrapped", "small"])
def test_only_a_large_plain_frozen_head_in_float32_is_used(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "LEAST_VOCABULARY", 1 << 20 if change == "small" else 1)
    model: Any = AutoModelForImageTextToText.from_pretrained(make_family(tmp_path / "model", "llava"))
    model.requires_grad_(change == "trained")
    if change == "bfloat16":
        model.to(torch.bfloat16)
    if change == "scaled":
        model.config.get_text_config().final_logit_softcapping = 30.0
    if change == "wrapped":
        model.set_output_embeddings(nn.utils.skip_init(type("Other", (nn.Linear,), {}), 4, 4))
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        assert can_score(model) == (change == "none")
