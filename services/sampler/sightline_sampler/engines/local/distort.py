"""Distorted images, which make a model answer from its prior instead of the picture.

Diffusion noise at step t, of 1000 (the schedule of VCD's published code, used alike by POVID, BPO, CHiP and SENA):

    beta_i = sigmoid(-6 + 12 i / 999) (0.5e-2 - 1e-5) + 1e-5        i = 0 .. 999
    a_t    = prod_{i <= t} (1 - beta_i)
    x_t    = sqrt(a_t) x + sqrt(1 - a_t) e                          e ~ N(0, 1)

At step 500 signal and noise are 0.863 and 0.505, at 900 they are 0.365 and 0.931. There are two ways to apply it, which
differ at the same step:

- `DiffusionNoise`: x are the model's normalised pixels (VCD, BPO, CHiP, SENA). If a model cuts an image into crops,
each crop gets its own noise; frames that repeat one image get the same.
- `PixelNoise`: x are the pixels in [0, 1], before any preprocessing (POVID, llava/train/train_dpo_inherent.py). That
  code does not clamp: values outside [0, 1] pass `mul(255).byte()` and wrap around, so that white turns black.
  `official` does the same; otherwise values are clamped, which is our variant.

`Blank` is all normalised pixels 0 (V-DPO's image-free input; 1e-6: some models take 0 for no image at all). `Crop`
is a random part with the area and shape of torchvision's RandomResizedCrop (mDPO uses 0.01..0.2), stretched to the size
of the whole so that the number of image tokens does not change. All numbers come from NumPy's Philox with the
distortion's seed as key, so requests are reproducible.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from sightline.sampler.types import Blank, Blur, Crop, DiffusionNoise, Distortion, PixelNoise
from sightline_chassis.families.processing import CHANNELS, PixelLayout

STEPS = 1000
Tensors = dict[str, torch.Tensor]


@functools.cache
def signal_and_noise() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """sqrt(a_t) and sqrt(1 - a_t) for t = 0 .. 999."""
    line = np.linspace(-6.0, 6.0, STEPS)
    betas = (0.5e-2 - 1e-5) / (1 + np.exp(-line)) + 1e-5
    kept = np.cumprod(1 - betas)
    return np.sqrt(kept), np.sqrt(1 - kept)


def image_name(digest: str, distortion: Distortion | None) -> str:
    """Name a distorted image among those with the same digest."""
    return digest if distortion is None else f"{digest} {distortion!r}"


def before(image: Image.Image, distortion: Distortion | None) -> Image.Image:
    """The image after distortions that come before the model's preprocessing."""
    match distortion:
        case PixelNoise(step, seed, official):
            return _pixel_noise(image, step, seed, official)
        case Blur(radius):
            return image.filter(ImageFilter.GaussianBlur(radius))
        case Crop(least, most, seed):
            box = crop_box(image.size, least, most, seed)
            return image.crop(box).resize(image.size, Image.Resampling.BICUBIC)
    return image


def after(outputs: Tensors, distortion: Distortion | None, pixels: Mapping[str, PixelLayout]) -> Tensors:
    """A processor's outputs after distortions of normalised pixels.

    Args:
        outputs: by name.
        distortion: what to do.
        pixels: which of them hold pixels, and how.
    """
    match distortion:
        case DiffusionNoise(step, seed):

            def change(values: torch.Tensor, layout: PixelLayout) -> torch.Tensor:
                return diffuse(values, step, seed, layout.frames)

        case Blank():
            # Almost zero: the Idefics3 family marks missing crops by exact zeros.
            def change(values: torch.Tensor, layout: PixelLayout) -> torch.Tensor:
                return torch.full_like(values, 1e-6)

        case _:
            return outputs
    changed = {
        name: torch.where(_real(outputs[name], layout), change(outputs[name], layout), outputs[name])
        for name, layout in pixels.items()
        if name in outputs
    }
    return outputs | changed


def diffuse(pixels: torch.Tensor, step: int, seed: int, frames: int = 1) -> torch.Tensor:
    """x_t of the module's formula.

    Args:
        pixels: x, of any shape.
        step: t, 0..999.
        seed: seed of e.
        frames: above 1 for rows of flattened patches (3 channels, frames, height x width); all get the same noise.
    """
    signal, noise = (float(values[step]) for values in signal_and_noise())
    shape = list(pixels.shape)
    if frames == 1:
        e = normal(shape, seed)
    else:
        one = shape[-1] // (CHANNELS * frames)
        e = normal([*shape[:-1], CHANNELS, 1, one], seed).expand(*shape[:-1], CHANNELS, frames, one).reshape(shape)
    return (signal * pixels.double() + noise * e).to(pixels.dtype)


def normal(shape: list[int], seed: int) -> torch.Tensor:
    """Standard normal numbers, float64: the inverse distribution function of Philox's uniform ones, whose stream NumPy
    promises to keep (that of its own normal numbers it does not)."""
    uniform = np.random.Generator(np.random.Philox(key=seed)).random(math.prod(shape))
    numbers: torch.Tensor = torch.special.ndtri(torch.from_numpy(np.maximum(uniform, 2.0**-54)))
    return numbers.reshape(shape)


def crop_box(size: tuple[int, int], least: float, most: float, seed: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom: a share of the area in least..most, width over height in 3/4..4/3 where it fits."""
    width, height = size
    draws = np.random.Generator(np.random.Philox(key=seed)).random((10, 4))
    for area, shape, x, y in draws.tolist():
        target = width * height * (least + (most - least) * area)
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * shape)
        w, h = max(1, round(math.sqrt(target * aspect))), max(1, round(math.sqrt(target / aspect)))
        if w <= width and h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    share = math.sqrt(most)  # a very elongated image: the middle, with its own shape
    w, h = max(1, round(width * share)), max(1, round(height * share))
    return (width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h


def _pixel_noise(image: Image.Image, step: int, seed: int, official: bool) -> Image.Image:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float64) / 255).permute(2, 0, 1)  # as ToTensor
    noisy = diffuse(pixels, step, seed)
    if official:
        values = (noisy * 255).trunc().to(torch.int64).remainder(256)  # as mul(255).byte()
    else:
        values = (noisy.clamp(0, 1) * 255).round().to(torch.int64)
    return Image.fromarray(values.permute(1, 2, 0).to(torch.uint8).contiguous().numpy())


def _real(tensor: torch.Tensor, layout: PixelLayout) -> torch.Tensor:
    """Where there is an image, and no padding."""
    if layout.padded_to is None:
        return torch.ones((), dtype=torch.bool)
    outer, there = layout.padded_to + 1, tensor != 0
    inner = tensor.dim() - outer
    return (there.flatten(outer).any(dim=-1) if inner else there).reshape(*tensor.shape[:outer], *[1] * inner)
