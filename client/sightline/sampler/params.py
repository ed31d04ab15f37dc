"""Sampling parameters: how tokens are drawn, as a type and as a message."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sightline.sampler import types
from sightline.sampler.types import Beams, Distortion, Guidance
from sightline.sampler.v1 import sampler_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn.

    In this order: guidance, repetition penalty, suppression of what must not be drawn, temperature, top-k, top-p,
    min-p; the order of transformers' `generate`.

    Attributes:
        temperature: softmax temperature; 0 is greedy.
        top_p: nucleus in (0, 1]; 1 keeps all.
        top_k: keep the k likeliest tokens; 0 keeps all.
        max_tokens: most tokens of a candidate, the end token included; None means as many as the engine allows.
        min_p: keep tokens with at least this share of the likeliest token's probability; 0 keeps all.
        repetition_penalty: logits of tokens of the prompt and of the candidate so far are divided by this where they
            are positive, else multiplied (Keskar et al., arXiv 1909.05858, as transformers does it); 1 is none.
        stop: a candidate ends where its text holds one of these.
        beams: diverse group beam search in place of sampling.
        distortion: what is done to the image.
        guidance: a second forward that changes the logits.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    beams: Beams | None = None
    distortion: Distortion | None = None
    guidance: Guidance | None = None

    def options(self) -> frozenset[str]:
        """Which of the options that an engine may lack are asked for, by their field's name."""
        plain = SamplingParams()
        return frozenset(name for name in OPTIONS if getattr(self, name) != getattr(plain, name))


OPTIONS = frozenset({"top_k", "min_p", "repetition_penalty", "stop", "beams", "distortion", "guidance"})
"""Fields of `SamplingParams` that an engine may lack; it names those that it takes in its capabilities."""


def params_message(
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int | None,
    min_p: float,
    repetition_penalty: float,
    stop: Sequence[str],
    beams: types.Beams | None,
    distortion: types.Distortion | None,
    guidance: types.Guidance | None,
) -> pb.SamplingParams:
    """The message of a call's options. Raises ValueError or TypeError for what does not fit its fields."""
    if isinstance(stop, str):
        raise TypeError("stop is a sequence of strings, not one string")
    return pb.SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        beams=None
        if beams is None
        else pb.DiverseBeams(
            groups=beams.groups, diversity_penalty=beams.diversity_penalty, length_penalty=beams.length_penalty
        ),
        distortion=distortion_message(distortion),
        guidance=_guidance_message(guidance),
    )


def distortion_message(distortion: types.Distortion | None) -> pb.Distortion | None:
    """A distortion for the wire."""
    match distortion:
        case None:
            return None
        case types.DiffusionNoise(step, seed):
            return pb.Distortion(diffusion_noise=pb.DiffusionNoise(step=step, seed=seed))
        case types.PixelNoise(step, seed, official):
            return pb.Distortion(pixel_noise=pb.PixelNoise(step=step, seed=seed, official=official))
        case types.Blur(radius):
            return pb.Distortion(blur=pb.Blur(radius=radius))
        case types.Crop(least, most, seed):
            return pb.Distortion(crop=pb.Crop(min_area=least, max_area=most, seed=seed))
        case types.Blank():
            return pb.Distortion(blank=pb.Blank())
    raise TypeError(f"{distortion!r} is no distortion")


def _guidance_message(guidance: types.Guidance | None) -> pb.Guidance | None:
    match guidance:
        case None:
            return None
        case types.Contrast(distortion, alpha, beta):
            shown = distortion_message(distortion)
            return pb.Guidance(contrastive=pb.ContrastiveDecoding(alpha=alpha, beta=beta, distortion=shown))
        case types.ImageFree(gamma, reference):
            shown = distortion_message(reference)
            return pb.Guidance(image_free=pb.ImageFreeGuidance(gamma=gamma, distortion=shown))
    raise TypeError(f"{guidance!r} is no guidance")
