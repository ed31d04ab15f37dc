"""``noised_image``: what the policy says when its image is distorted, as the rejected one (POVID, BPO).

The sampler distorts the image; the text is trained as an answer to the clean one. POVID takes noise step 500, BPO 900
(of 1000). BPO's released script samples with visual contrastive decoding, which reduces hallucinations; this samples
plainly under the distorted image, as its paper says.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from sightline_sampler.client import DiffusionNoise, PixelNoise

from sightline_trainer.candidates.candidate import Candidate
from sightline_trainer.candidates.policy import PolicyCandidates
from sightline_trainer.candidates.source import Ask, CandidatePart, Context, Source
from sightline_trainer.prompts import Prompt


class NoisedImage(CandidatePart):
    """Samples of the policy under a distorted image."""

    count: int = Field(1, ge=1, le=64, description="Candidates of one prompt.")
    step: int = Field(500, ge=0, le=999, description="Diffusion step of the noise (POVID 500, BPO 900).")
    pixels: Literal["normalised", "unit"] = Field(
        "normalised", description="Noise on normalised pixels (VCD, BPO), or on pixels in [0, 1] (POVID's code)."
    )
    temperature: float | None = Field(None, ge=0.0, le=5.0, description="Null: sampling.temperature.")

    def open(self, context: Context) -> Source:
        return NoisedImageSource(self, context)


class NoisedImageSource:
    """Asks the policy, with noise over the image; the noise is drawn anew in each iteration."""

    def __init__(self, settings: NoisedImage, context: Context) -> None:
        recipe = context.recipe
        self.settings = settings
        self.seed = recipe.seed
        self.sample = PolicyCandidates(context.sampler, recipe.sampling, seed=recipe.seed)

    async def __call__(self, prompt: Prompt, ask: Ask) -> list[Candidate]:
        noise = DiffusionNoise if self.settings.pixels == "normalised" else PixelNoise
        first = len(ask.made)
        return await self.sample(
            prompt,
            self.settings.count,
            iteration=ask.iteration,
            version=ask.version,
            temperature=self.settings.temperature,
            text=ask.made[0].prompt if ask.made else None,
            first=first,
            source="noised_image",
            distortion=noise(self.settings.step, prompt.seed(self.seed, ask.iteration, -2)),
        )
