"""The changes to open_clip's layers for half precision on a GPU, tested on a CPU: embeddings stay the same."""

import copy
from collections import OrderedDict

import open_clip
import pytest
import torch
from open_clip.factory import convert_weights_to_lp
from sightline_scorer.triton import half


def clip(*, quick: bool) -> torch.nn.Module:
    vision = {"layers": 2, "width": 64, "image_size": 56, "patch_size": 14, "head_width": 32}
    text = {"layers": 2, "width": 64, "heads": 2, "vocab_size": 500, "context_length": 16}
    torch.manual_seed(0)
    model = open_clip.CLIP(32, vision, text, quick_gelu=quick, cast_dtype=torch.bfloat16).eval()
    for name, weight in model.named_parameters():  # a fresh norm multiplies by one, so it would show nothing
        if "ln_" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    convert_weights_to_lp(model, dtype=torch.bfloat16)
    return model


@pytest.mark.parametrize("quick", [False, True])
@torch.inference_mode()
def test_quickened_layers_give_the_same_embeddings(quick: bool) -> None:
    model = clip(quick=quick)
    pixels = torch.randn(3, 3, 56, 56).bfloat16()
    ids = torch.randint(1, 499, (3, 16))

    def embeddings(of: torch.nn.Module) -> torch.Tensor:
        found = [of.encode_image(pixels), of.encode_text(ids)]
        return torch.nn.functional.normalize(torch.cat(found).float(), dim=-1)

    before = embeddings(model)
    changed = copy.deepcopy(model)
    half.quicken(changed)
    after = embeddings(changed)
    assert float((before * after).sum(-1).min()) > 0.9995
    kinds = {type(module).__name__ for module in changed.modules()}
    assert "PatchProduct" in kinds
    assert "QuickGELU" not in kinds


@torch.inference_mode()
def test_quick_gelu_before_a_norm_stays() -> None:
    """As in open_clip's CustomResidualAttentionBlock with scale_fc."""
    model = clip(quick=True)
    block = model.visual.transformer.resblocks[0]
    fc, gelu, out = block.mlp
    block.mlp = torch.nn.Sequential(OrderedDict(c_fc=fc, gelu=gelu, ln=torch.nn.LayerNorm(256), c_proj=out))
    half.quicken(model)
    assert block.mlp.gelu is gelu
    assert isinstance(model.visual.transformer.resblocks[1].mlp.gelu, torch.nn.SiLU)


@torch.inference_mode()
def test_a_patch_product_is_the_convolution() -> None:
    convolution = torch.nn.Conv2d(3, 8, 14, stride=14, bias=False)
    pixels = torch.randn(2, 3, 28, 42)
    product = half.PatchProduct(convolution)
    assert product.weight.shape == (8, 592)
    torch.testing.assert_close(product(pixels), convolution(pixels), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_patch_that_is_no_product_stays() -> None:
    model = clip(quick=False)
    model.visual.conv1 = torch.nn.Conv2d(3, 64, 14, stride=14, padding=1, bias=False)
    half.quicken(model)
    assert isinstance(model.visual.conv1, torch.nn.Conv2d)
