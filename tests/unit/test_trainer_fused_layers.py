"""Fused layers: what may replace a decoder's own steps, with kernels written in torch, or Liger's on a GPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sightline_trainer.dpo.fused_layers import Kernels, fuse_layers, liger
from torch import Tensor
from torch.nn import functional
from transformers import Gemma3TextConfig, LlamaConfig, PreTrainedModel, Qwen3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextModel
from transformers.models.llama import modeling_llama
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

SMALL = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: modeling_llama.LlamaModel(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SMALL)),
    "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**SMALL)),
}
NORMS = {"llama": 5, "qwen3": 9, "gemma3": 13}


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, cast: str) -> Tensor:
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if cast == "llama":
        return (offset + weight) * normed.to(x.dtype)
    return (normed * (offset + weight.float())).to(x.dtype)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def turned(x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat((-other, one), -1) * sin[:, None]

    return turned(q), turned(k)


PLAIN = Kernels(
    rms_norm=rms_norm,
    silu_mul=lambda gate, up: functional.silu(gate) * up,
    gelu_mul=lambda gate, up: functional.gelu(gate, approximate="tanh") * up,
    rotate=rotate,
)


@pytest.fixture(autouse=True)
def _own_rotations() -> object:
    """Undo changes in transformers' modules."""
    import sys

    homes = [sys.modules[make().layers[0].self_attn.__module__] for make in DECODERS.values()]
    kept = [home.apply_rotary_pos_emb for home in homes]
    yield
    for home, function in zip(homes, kept, strict=True):
        home.apply_rotary_pos_emb = function


def decoder(kind: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(1)
    made = DECODERS[kind]().to(device, dtype)
    for name, weight in made.named_parameters():
        if "norm" in name:  # a fresh one is all ones or all zeros, which shows two kinds of norms but no weights
            torch.nn.init.uniform_(weight, -0.5, 1.5)
    return made


def outcome(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states and gradients."""
    ids = torch.arange(2, 26, device=model.device).view(2, 12)
    model.zero_grad()
    states = model(input_ids=ids).last_hidden_state
    (states.float() * torch.linspace(-1, 1, states.shape[-1], device=model.device)).sum().backward()
    return states.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_unchanged(kind: str, kernels: Kernels, device: str) -> None:
    model = decoder(kind, device)
    before = outcome(model)
    assert fuse_layers(model, kernels) == {"norms": NORMS[kind], "mlps": 2, "rotations": 1}
    after = outcome(model)
    torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-4)
    assert after[1].keys() == before[1].keys()
    for name, gradient in before[1].items():
        torch.testing.assert_close(after[1][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("kind", DECODERS)
def test_fused_layers_give_the_same_states_and_gradients(kind: str) -> None:
    assert_unchanged(kind, PLAIN, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", DECODERS)
def test_ligers_kernels_give_the_same_states_and_gradients(kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    kernels = liger()
    assert kernels is not None, "pip install 'sightline[liger]'"
    assert_unchanged(kind, kernels, "cuda")


def test_a_kernel_that_answers_otherwise_is_not_used() -> None:
    model = decoder("llama")
    states, _ = outcome(model)
    wrong = replace(
        PLAIN, rms_norm=lambda *given: 1.01 * rms_norm(*given), silu_mul=lambda gate, up: gate * up,
        gelu_mul=lambda gate, up: gate * up, rotate=lambda q, k, cos, sin: rotate(q, k, cos, -sin),
    )  # fmt: skip
    assert not any(fuse_layers(model, wrong).values())
    torch.testing.assert_close(outcome(model)[0], states)


def test_hidden_states_in_another_type_than_the_weights_go_the_layers_own_way() -> None:
    """Full updates keep float32 weights and multiply in bfloat16; transformers' promotion still applies."""
    model = decoder("qwen3")
    x = torch.randn(1, 3, 32).bfloat16()
    plain = model.norm(x)
    fuse_layers(model, PLAIN)
    assert model.norm(x).dtype == plain.dtype == torch.float32
    torch.testing.assert_close(model.norm(x), plain)


def test_a_second_model_is_not_rotated_through_two_wrappers() -> None:
    fuse_layers(decoder("llama"), PLAIN)
    first = modeling_llama.apply_rotary_pos_emb
    fuse_layers(decoder("llama"), PLAIN)
    assert modeling_llama.apply_rotary_pos_emb.plain is first.plain
