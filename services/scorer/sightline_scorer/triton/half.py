"""Half precision on a GPU: open_clip's layers without detours through float32 or slow kernels.

- open_clip's `LayerNormFp32` writes its input in float32, normalises it, and writes the result in half precision. The
  GPU's own kernel also sums in float32, but reads and writes half precision: a fifth of the memory traffic.
- A patch embedding is a convolution whose strides equal its kernel, so it is one matrix product. Rows of 3 x 14 x 14
  values are not aligned to 16 bytes, which rules out the fast kernels; columns of zeros align them.
- `QuickGELU`, x sigmoid(1.702 x), takes three kernels. If the layer before it is scaled by 1.702 and the one after it
  by the inverse, it becomes SiLU, which takes one.

All of these change an embedding only by rounding. docs/performance.md has measurements on a GPU. Copied beside model.py
into Triton's repository; it imports only torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_ALIGNED = 8  # values of two bytes in 16 bytes
_QUICK = 1.702


class PatchProduct(nn.Module):
    """A patch embedding without bias as one matrix product.

    Args:
        convolution: strides equal to its kernel, no padding, no bias.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight = convolution.weight.detach().flatten(1)
        self.patch = convolution.kernel_size
        self.values = weight.shape[1]
        self.weight = nn.Parameter(functional.pad(weight, (0, -self.values % _ALIGNED)), requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, width, H / p, W / p] of pixels [B, 3, H, W]."""
        batch, channels, height, width = pixels.shape
        down, right = height // self.patch[0], width // self.patch[1]
        patches = pixels.view(batch, channels, down, self.patch[0], right, self.patch[1]).permute(0, 2, 4, 1, 3, 5)
        rows = pixels.new_zeros(batch * down * right, self.weight.shape[1])
        rows[:, : self.values].view(batch, down, right, channels, *self.patch).copy_(patches)
        return functional.linear(rows, self.weight).view(batch, down, right, -1).permute(0, 3, 1, 2)


def quicken(model: nn.Module) -> None:
    """Change an open_clip model in half precision in place; unknown layers stay unchanged."""
    for module in model.modules():
        if type(module).__name__ == "LayerNormFp32":
            _normalise_in_half(module)
        if _is_foldable(module):
            _fold(module)
    visual: Any = getattr(model, "visual", None)
    convolution = getattr(visual, "conv1", None)
    if isinstance(convolution, nn.Conv2d) and _is_product(convolution, visual):
        visual.conv1 = PatchProduct(convolution)


def _normalise_in_half(norm: Any) -> None:
    weights: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def forward(x: Tensor) -> Tensor:
        if x.dtype not in weights:
            weights[x.dtype] = norm.weight.detach().to(x.dtype), norm.bias.detach().to(x.dtype)
        return functional.layer_norm(x, norm.normalized_shape, *weights[x.dtype], norm.eps)

    norm.forward = forward


def _is_foldable(mlp: nn.Module) -> bool:
    """Whether c_proj directly follows QuickGELU: with a norm between them, the scale would not be reversed."""
    layers = [(name, layer) for name, layer in mlp.named_children() if not isinstance(layer, nn.Identity)]
    return [name for name, _ in layers] == ["c_fc", "gelu", "c_proj"] and type(layers[1][1]).__name__ == "QuickGELU"


def _fold(mlp: Any) -> None:
    """Replace QuickGELU by SiLU in open_clip's c_fc, gelu, c_proj."""
    with torch.no_grad():
        for values in (mlp.c_fc.weight, mlp.c_fc.bias):
            values.copy_(values.float() * _QUICK)
        mlp.c_proj.weight.copy_(mlp.c_proj.weight.float() / _QUICK)
    mlp.gelu = nn.SiLU()


def _is_product(convolution: nn.Conv2d, visual: Any) -> bool:
    size = visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    patch = convolution.kernel_size
    return (
        convolution.stride == patch
        and convolution.padding == (0, 0)
        and convolution.groups == 1
        and convolution.bias is None
        and height % patch[0] == 0
        and width % patch[1] == 0
    )
