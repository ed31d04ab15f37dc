"""Fused layers: a decoder's norms, gated MLPs and rotary embeddings by Liger's kernels, on a GPU.

transformers runs each of them as four to ten kernels, which read and write all hidden states; in an update of a 7 B
model these took a quarter of the GPU's time. Liger (arXiv 2410.10989, the extra `liger`) has one kernel for each.

The model's name does not matter: each layer is tested on random values when the model is loaded, and a kernel is used
only if it gives the layer's own output. Values differ only by rounding.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sightline_chassis.kernels import kernels_unusable
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2**-8, torch.bfloat16: 2**-6}  # of the largest value
_NORMS = ((0.0, "llama"), (1.0, "gemma"), (0.0, "gemma"))  # added to the weight; where the cast is
_ROTATION = "apply_rotary_pos_emb"


@dataclass(frozen=True)
class Kernels:
    """Replacements for a layer's own steps; all are differentiable.

    Attributes:
        rms_norm: of x [..., W], weight [W], epsilon, what is added to the weight, and "llama" or "gemma": whether the
            weight multiplies after or before the cast from float32.
        silu_mul: silu(gate) * up.
        gelu_mul: gelu(gate) * up, gelu by tanh.
        rotate: queries and keys [B, H, T, D] by cosines and sines [B, T, D].
    """

    rms_norm: Callable[[Tensor, Tensor, float, float, str], Tensor]
    silu_mul: Callable[[Tensor, Tensor], Tensor]
    gelu_mul: Callable[[Tensor, Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def liger() -> Kernels | None:
    """Liger's kernels; None if it is not installed, or, with a warning, if they cannot run."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    if why := kernels_unusable():
        logger.warning("the update runs without Liger's kernels: %s", why)
        return None
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return Kernels(
        rms_norm=lambda x, weight, eps, offset, cast: LigerRMSNormFunction.apply(x, weight, eps, offset, cast, False),
        silu_mul=LigerSiLUMulFunction.apply,
        gelu_mul=LigerGELUMulFunction.apply,
        rotate=LigerRopeFunction.apply,
    )


def fuse_layers(decoder: nn.Module, kernels: Kernels) -> Counter[str]:
    """Change a decoder in place; call it when its layers are on their device.

    Returns:
        The numbers of changed norms, MLPs and rotations. All others stay unchanged.
    """
    done: Counter[str] = Counter()
    with torch.no_grad():
        for module in decoder.modules():
            done["norms"] += _fuse_norm(module, kernels)
            done["mlps"] += _fuse_mlp(module, kernels)
        homes = {type(module).__module__ for module in decoder.modules()}
        done["rotations"] += sum(_fuse_rotation(sys.modules[home], decoder, kernels) for home in homes)
    return done


def _fuse_norm(module: Any, kernels: Kernels) -> bool:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and isinstance(eps, float)):
        return False
    plain = module.forward
    x = torch.randn(8, len(weight), device=weight.device).to(weight.dtype)
    for offset, cast in _NORMS:
        if _same(plain(x), kernels.rms_norm(x, weight, eps, offset, cast)):
            break
    else:
        return False

    def forward(x: Tensor) -> Tensor:
        if x.dtype != module.weight.dtype:  # transformers' own promotes there
            return plain(x)  # type: ignore[no-any-return]
        return kernels.rms_norm(x, module.weight, eps, offset, cast)

    module.forward = forward
    return True


def _fuse_mlp(module: Any, kernels: Kernels) -> bool:
    if not all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    base = getattr(module.gate_proj, "base_layer", module.gate_proj)
    if not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
        return False
    x = torch.randn(8, base.in_features, device=base.weight.device).to(base.weight.dtype)
    plain = module.forward(x)

    for product in (kernels.silu_mul, kernels.gelu_mul):

        def forward(x: Tensor, product: Any = product) -> Tensor:
            return module.down_proj(product(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return]

        if _same(plain, forward(x)):
            module.forward = forward
            return True
    return False


def _fuse_rotation(home: Any, decoder: nn.Module, kernels: Kernels) -> bool:
    """Make the module of a decoder's attention rotate by the kernel, if both do the same."""
    plain = getattr(home, _ROTATION, None)
    plain = getattr(plain, "plain", plain)
    if plain is None or list(inspect.signature(plain).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return False
    weight = next(decoder.parameters())
    device, dtype = weight.device, weight.dtype
    queries, keys, angles = (torch.randn(shape, device=device) for shape in ((1, 4, 6, 16), (1, 2, 6, 16), (1, 6, 8)))
    angles = angles.repeat(1, 1, 2)
    queries, keys, cos, sin = (values.to(dtype) for values in (queries, keys, angles.cos(), angles.sin()))
    wanted = plain(queries, keys, cos, sin)
    found = kernels.rotate(queries.clone(), keys.clone(), cos, sin)
    if not all(_same(one, other) for one, other in zip(wanted, found, strict=True)):
        return False

    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        alike = q.dtype == k.dtype == cos.dtype and q.device.type == device.type
        if args or kwargs or not alike or cos.dim() != 3 or cos.shape[-1] != q.shape[-1]:
            return plain(q, k, cos, sin, *args, **kwargs)  # type: ignore[no-any-return]
        return kernels.rotate(q, k, cos, sin)

    rotated.plain = plain  # type: ignore[attr-defined]
    setattr(home, _ROTATION, rotated)
    return True


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    allowed = _TOLERANCE.get(one.dtype, 0.0) * one.float().abs().max().clamp(min=1e-6)
    return bool((one.float() - other.float()).abs().max() <= allowed)
