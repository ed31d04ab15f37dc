"""A recipe's decoding settings besides temperature and top_p."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator
from sightline.sampler import Beams, Blank, Blur, Contrast, Crop, DiffusionNoise, ImageFree, PixelNoise
from sightline.sampler.types import Distortion
from sightline_chassis.settings import Section, Table

from sightline_trainer.speaker.template import check_template
from sightline_trainer.web_service import Url


class OneOf(Table):
    """A table with exactly one entry."""

    what: ClassVar[str]

    @model_validator(mode="after")
    def _one(self) -> Self:
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"{self.what} is one of {known}; given are {named or 'none'}")
        return self


class NoiseStep(Section):
    """Noise of a diffusion."""

    step: int = Field(500, ge=0, le=999, description="Step of the schedule, of 1000.")


class Blurring(Section):
    """Gaussian blur."""

    radius: float = Field(gt=0.0, le=1000.0, description="Standard deviation in pixels.")


class Cropping(Section):
    """A random part of the image, enlarged to the whole's size."""

    min_area: float = Field(0.01, gt=0.0, le=1.0, description="Minimum share of the area.")
    max_area: float = Field(0.2, gt=0.0, le=1.0, description="Maximum share of the area.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area:g} is above max_area {self.max_area:g}")
        return self


class Distorting(OneOf):
    """How the image is distorted; exactly one of these."""

    what: ClassVar[str] = "a distortion"

    diffusion_noise: NoiseStep | None = Field(None, description="Noise on normalised pixels (VCD, BPO).")
    pixel_noise: NoiseStep | None = Field(None, description="The same on pixels in [0, 1], clamped.")
    blur: Blurring | None = Field(None, description="Gaussian blur.")
    crop: Cropping | None = Field(None, description="A random part.")
    blank: Section | None = Field(None, description="An empty picture; write {} to use it.")

    def of(self, seed: int) -> Distortion:
        """The distortion for the sampler; noise and crops with a seed."""
        if self.diffusion_noise is not None:
            return DiffusionNoise(self.diffusion_noise.step, seed)
        if self.pixel_noise is not None:
            return PixelNoise(self.pixel_noise.step, seed)
        if self.blur is not None:
            return Blur(self.blur.radius)
        return Crop(self.crop.min_area, self.crop.max_area, seed) if self.crop is not None else Blank()


def _noise() -> Distorting:
    return Distorting(diffusion_noise=NoiseStep(step=500))


class Contrasting(Section):
    """VCD: (1 + alpha) * clean - alpha * distorted."""

    alpha: float = Field(
        1.0, ge=0.0, le=1000.0, description="Strength of the push away from the distorted image's logits."
    )
    beta: float = Field(
        0.1, ge=0.0, le=1.0, description="Minimum share of the most likely token's clean probability; 0 keeps all."
    )
    distortion: Distorting = Field(default_factory=_noise, description="The distorted image (VCD: noise step 500).")


class ImageFreeing(Section):
    """gamma * (clean - reference) + reference; the reference has no image, or a distorted one."""

    gamma: float = Field(
        1.5, ge=-1000.0, le=1000.0, description="1: none; larger values follow the image more closely."
    )
    beta: float = Field(
        0.0, ge=0.0, le=1.0, description="Minimum share of the most likely token's clean probability; 0 keeps all."
    )
    distortion: Distorting | None = Field(None, description="What the reference sees; null: no image.")


class Prompting(Section):
    """MARINE: gamma * (prompted - clean) + clean; the other prompt names the objects that a detector finds."""

    gamma: float = Field(0.7, ge=-1000.0, le=1000.0, description="0: none; 1: only the other prompt's logits.")
    template: str = Field(description="The other prompt: {question}, and {objects} found in the picture.")
    object_template: str = Field("a photo of a {object}.", description="What the scorer compares with the picture.")
    there: float = Field(0.0, description="Minimum score of a present object: CLIPScore, or the detector's 0 to 1.")
    url: Url | None = Field(None, description="A detector over HTTP (see reward.terms.detected); null: the scorer.")
    timeout_seconds: float = Field(60.0, gt=0.0, description="Deadline of one picture at the detector.")

    @model_validator(mode="after")
    def _fillable(self) -> Self:
        check_template(self.template, ["question", "objects"])
        check_template(self.object_template, ["object"])
        return self


class Guiding(OneOf):
    """A second forward pass that changes the logits; exactly one of these."""

    what: ClassVar[str] = "guidance"

    contrast: Contrasting | None = Field(None, description="Away from what a distorted image suggests.")
    image_free: ImageFreeing | None = Field(None, description="Towards what the image adds.")
    prompted: Prompting | None = Field(None, description="Towards the answer to a prompt that names detected objects.")

    def fixed(self, seed: int) -> Contrast | ImageFree | None:
        """The guidance for the sampler; None if it depends on the objects in the picture."""
        if self.contrast is not None:
            return Contrast(self.contrast.distortion.of(seed), self.contrast.alpha, self.contrast.beta)
        if self.image_free is not None:
            shown = self.image_free.distortion
            return ImageFree(self.image_free.gamma, shown.of(seed) if shown else None, self.image_free.beta)
        return None


class Beaming(Section):
    """Diverse group beam search: the K candidates are the beams."""

    groups: int = Field(1, ge=1, le=256, description="Groups that avoid each other's tokens; K is a multiple.")
    diversity_penalty: float = Field(1.0, ge=0.0, le=1000.0, description="Cost of a token that an earlier group chose.")
    length_penalty: float = Field(1.0, ge=-10.0, le=10.0, description="Scores are divided by length to this power.")

    def of(self) -> Beams:
        """The beams for the sampler."""
        return Beams(self.groups, self.diversity_penalty, self.length_penalty)


class Decoding(Section):
    """How tokens are sampled, besides temperature and top_p."""

    top_k: int = Field(0, ge=0, description="Keep the k most likely tokens; 0: all.")
    min_p: float = Field(0.0, ge=0.0, lt=1.0, description="Minimum share of the top token's probability; 0: all.")
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100.0, description="Repetition penalty for tokens of prompt and text; 1: none."
    )
    beams: Beaming | None = Field(None, description="Beam search instead of sampling.")
    distortion: Distorting | None = Field(None, description="How the image is distorted.")
    guidance: Guiding | None = Field(None, description="A second forward pass that changes the logits.")

    @property
    def plain(self) -> bool:
        """Whether all values are the defaults."""
        return self == Decoding()
