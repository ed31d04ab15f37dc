"""Views: distorted pictures that replace a row's own.

`pixel` and `crop` change the picture before the processor, `blank` and `diffusion` the processor's output, since noise
on normalised pixels exceeds the range of a picture file. mDPO (Wang et al. 2024, arXiv 2406.11839) crops, CHiP (Fu et
al. 2025, arXiv 2501.16629) diffuses, V-DPO (Xie et al. 2024, arXiv 2411.02712) uses zeros.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from sightline_trainer.dpo.method import View
from sightline_trainer.seen_less import cropped, kept_signal, noisy


class Shown:
    """A view with a seed.

    Attributes:
        view: its settings.
        seed: the update's.
        name: differs if the rows differ.
    """

    def __init__(self, view: View, seed: int) -> None:
        self.view = view
        self.seed = seed
        self.name = f"{view.model_dump_json()}/{seed}"

    def named(self, image: str) -> str:
        """The name of an image under this view."""
        return hashlib.sha256(f"{image}@{self.name}".encode()).hexdigest()

    def picture(self, picture: PIL.Image.Image, image: str) -> PIL.Image.Image:
        """The picture for the processor instead of an RGB picture; it has the same size.

        Args:
            image: the picture's name; another name draws other noise.
        """
        draws = np.random.default_rng(self._seed(image))
        if self.view.kind == "pixel":
            return noisy(picture, self.view.step, draws)
        if self.view.kind == "crop":
            return cropped(picture, self.view.scale, draws)
        return picture

    def inputs(self, inputs: Mapping[str, Tensor], images: str) -> dict[str, Tensor]:
        """The tower's inputs instead of those from the processor; masks and sizes are kept.

        Args:
            images: the joined names of the prompt's pictures.
        """
        if self.view.kind not in ("blank", "diffusion"):
            return dict(inputs)
        generator = torch.Generator().manual_seed(self._seed(images))
        return {
            name: self._shown(value, generator) if value.is_floating_point() and "pixel" in name else value
            for name, value in inputs.items()
        }

    def _shown(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        if self.view.kind == "blank":
            return torch.zeros_like(pixels)
        kept = kept_signal(self.view.step)
        noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32).to(pixels.dtype)
        return math.sqrt(kept) * pixels + math.sqrt(1 - kept) * noise

    def _seed(self, image: str) -> int:
        text = f"{self.view.seed}/{self.seed}/{image}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
