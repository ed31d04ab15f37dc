"""`noised_image`: the policy's answer under a distorted image, as the rejected side (POVID, BPO).

POVID uses noise step 500, BPO 900 (of 1000). BPO's released script samples with visual contrastive decoding, which
reduces hallucinations; this source samples plainly under the distorted image, as its paper says. The text is trained as
an answer to the clean image, or with `conditioned` to the noised image, as in the loss of POVID's paper
(`povid_paper`).
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from sightline.pictures import write_png
from sightline.sampler import DiffusionNoise, PixelNoise
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

from sightline_trainer.candidates.source import CandidatePart, Source, SourceContext, SourceRequest
from sightline_trainer.policy_candidates import PolicyCandidates
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.seen_less import noisy


class NoisedImage(CandidatePart):
    """The policy's samples under a distorted image."""

    writes: ClassVar[tuple[str, ...]] = ("noised_image",)

    count: int = Field(1, ge=1, le=64, description="Number of candidates per prompt.")
    step: int = Field(500, ge=0, le=999, description="Diffusion step of the noise (POVID 500, BPO 900).")
    pixels: Literal["normalised", "unit"] = Field(
        "normalised",
        description="Noise on normalised pixels (VCD, BPO), or on pixels in [0, 1] and clamped (POVID's code wraps).",
    )
    conditioned: bool = Field(
        False, description="Train it as an answer to the noised image (POVID's paper); needs pixels: unit."
    )
    temperature: float | None = Field(None, ge=0.0, le=5.0, description="Null: sampling.temperature.")

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        if self.conditioned and self.pixels != "unit":
            raise ValueError("conditioned needs pixels: unit, because only that noise gives a picture")
        return self

    def open(self, context: SourceContext) -> Source:
        return NoisedImageSource(self, context)


class NoisedImageSource:
    """Asks the policy with noise on the image; each iteration draws new noise."""

    def __init__(self, settings: NoisedImage, context: SourceContext) -> None:
        self.settings = settings
        self.seed = context.seed
        self.sample = PolicyCandidates(context.sampler, context.sampling, seed=context.seed)

    async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
        settings, seed = self.settings, prompt.seed(self.seed, ask.iteration, -2)
        noise = DiffusionNoise if settings.pixels == "normalised" else PixelNoise
        return await self.sample(
            prompt,
            settings.count,
            iteration=ask.iteration,
            version=ask.version,
            temperature=settings.temperature,
            text=ask.made[0].prompt if ask.made else None,
            first=len(ask.made),
            source="noised_image",
            # Noise that the update must see too is drawn here; otherwise the sampler distorts.
            images=self._noised(prompt, seed) if settings.conditioned else (),
            distortion=None if settings.conditioned else noise(settings.step, seed),
        )

    def _noised(self, prompt: Prompt, seed: int) -> list[bytes]:
        """Each image with its own noise."""
        return [noised(image.read_bytes(), self.settings.step, seed + at) for at, image in enumerate(prompt.images)]


def noised(image: bytes, step: int, seed: int) -> bytes:
    """The picture after `step` of 1000 steps (`seen_less.noisy`), on pixels in [0, 1], clamped; a PNG."""
    picture = noisy(decode(image, ImageLimits()), step, np.random.default_rng(seed))
    return write_png(np.asarray(picture))
