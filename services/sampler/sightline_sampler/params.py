"""The sampling parameters of a request: read from its message, with their bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sightline.errors import InvalidInput
from sightline.sampler import types
from sightline.sampler.params import SamplingParams
from sightline.sampler.v1 import sampler_pb2 as pb

MAX_STOPS, MAX_STOP_BYTES = 16, 256
_LARGEST = 1000.0  # maximum of radii, penalties and weights: larger ones only overflow


def read_params(message: pb.SamplingParams, count: int, *, max_tokens: int, with_image: bool) -> SamplingParams:
    """The parameters of a request for `count` candidates.

    Raises:
        InvalidInput: one is out of its bounds, or two cannot be combined.
    """
    temperature = message.temperature if message.HasField("temperature") else 1.0
    if not (math.isfinite(temperature) and (temperature == 0 or 0.01 <= temperature <= 100)):
        raise InvalidInput(
            f"temperature is {temperature}; it must be 0 (greedy) or between 0.01 and 100", reason="BAD_TEMPERATURE"
        )
    top_p = message.top_p if message.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        raise InvalidInput(f"top_p is {top_p}; it must be in (0, 1]", reason="BAD_TOP_P")
    if not 0 <= message.min_p < 1:
        raise InvalidInput(f"min_p is {message.min_p}; it must be in [0, 1)", reason="BAD_MIN_P")
    penalty = message.repetition_penalty if message.HasField("repetition_penalty") else 1.0
    if not 0.01 <= penalty <= 100:
        raise InvalidInput(f"repetition_penalty is {penalty}; it must be in 0.01..100", reason="BAD_REPETITION_PENALTY")
    limit = message.max_tokens if message.HasField("max_tokens") else None
    if limit is not None and not 1 <= limit <= max_tokens:
        raise InvalidInput(
            f"max_tokens is {limit}; it must be in 1..{max_tokens}",
            reason="BAD_MAX_TOKENS",
            metadata={"limit": str(max_tokens)},
        )
    distortion = read_distortion(message.distortion) if message.HasField("distortion") else None
    guidance = _guidance(message.guidance) if message.HasField("guidance") else None
    if not with_image and (distortion is not None or guidance is not None):
        what = "distortion" if distortion is not None else "guidance"
        raise InvalidInput(
            f"{what} needs an image, but the request has none: send one, or leave {what} out",
            reason=f"BAD_{what.upper()}",
        )
    if len(message.continue_from) >= max_tokens:
        raise InvalidInput(
            f"continue_from has {len(message.continue_from)} tokens; it must be below {max_tokens}",
            reason="BAD_CONTINUE_FROM",
            metadata={"limit": str(max_tokens)},
        )
    beams = _beams(message.beams, count) if message.HasField("beams") else None
    if beams is not None and (temperature != 1 or top_p != 1 or message.top_k or message.min_p):
        raise InvalidInput("beams are not sampled: leave out temperature, top_p, top_k and min_p", reason="BAD_BEAMS")
    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=message.top_k,
        max_tokens=limit,
        min_p=message.min_p,
        repetition_penalty=penalty,
        stop=_stop(message.stop),
        beams=beams,
        distortion=distortion,
        guidance=guidance,
        continue_from=tuple(message.continue_from),
    )


def _stop(strings: Sequence[str]) -> tuple[str, ...]:
    if len(strings) > MAX_STOPS:
        raise InvalidInput(f"{len(strings)} stop strings; at most {MAX_STOPS} are allowed", reason="BAD_STOP")
    for text in strings:
        if not 1 <= len(text.encode()) <= MAX_STOP_BYTES:
            raise InvalidInput(
                f"a stop string has {len(text.encode())} bytes; it must have 1..{MAX_STOP_BYTES}", reason="BAD_STOP"
            )
    return tuple(dict.fromkeys(strings))


def _beams(message: pb.DiverseBeams, count: int) -> types.Beams:
    if message.groups < 1 or count % message.groups:
        raise InvalidInput(
            f"{count} candidates cannot form {message.groups} groups of equal size: ask for a multiple",
            reason="BAD_BEAMS",
        )
    diversity = message.diversity_penalty if message.HasField("diversity_penalty") else 1.0
    length = message.length_penalty if message.HasField("length_penalty") else 1.0
    _within("diversity_penalty", diversity, 0, _LARGEST, "BAD_BEAMS")
    _within("length_penalty", length, -10, 10, "BAD_BEAMS")
    return types.Beams(message.groups, diversity, length)


def read_distortion(message: pb.Distortion) -> types.Distortion:
    reason = "BAD_DISTORTION"
    match message.WhichOneof("kind"):
        case "diffusion_noise":
            noise = message.diffusion_noise
            _within("distortion.step", noise.step, 0, 999, reason)
            return types.DiffusionNoise(noise.step, noise.seed)
        case "pixel_noise":
            pixel = message.pixel_noise
            _within("distortion.step", pixel.step, 0, 999, reason)
            return types.PixelNoise(pixel.step, pixel.seed, pixel.official)
        case "blur":
            _within("distortion.radius", message.blur.radius, 1e-3, _LARGEST, reason)
            return types.Blur(message.blur.radius)
        case "crop":
            crop, plain = message.crop, types.Crop()
            least = crop.min_area if crop.HasField("min_area") else plain.min_area
            most = crop.max_area if crop.HasField("max_area") else max(plain.max_area, least)
            _within("distortion.min_area", least, 1e-6, 1, reason)
            _within("distortion.max_area", most, least, 1, reason)
            return types.Crop(least, most, crop.seed)
        case "blank":
            return types.Blank()
        case _:
            raise InvalidInput("the distortion has no kind: set one of its fields", reason=reason)


def _guidance(message: pb.Guidance) -> types.Guidance:
    reason = "BAD_GUIDANCE"
    match message.WhichOneof("method"):
        case "contrastive":
            wanted, plain = message.contrastive, types.Contrast()
            alpha = wanted.alpha if wanted.HasField("alpha") else plain.alpha
            beta = wanted.beta if wanted.HasField("beta") else plain.beta
            _within("guidance.alpha", alpha, 0, _LARGEST, reason)
            _within("guidance.beta", beta, 0, 1, reason)
            shown = read_distortion(wanted.distortion) if wanted.HasField("distortion") else plain.distortion
            return types.Contrast(shown, alpha, beta)
        case "image_free":
            free = message.image_free
            gamma = free.gamma if free.HasField("gamma") else types.ImageFree().gamma
            _within("guidance.gamma", gamma, -_LARGEST, _LARGEST, reason)
            _within("guidance.beta", free.beta, 0, 1, reason)
            other = read_distortion(free.distortion) if free.HasField("distortion") else None
            return types.ImageFree(gamma, other, free.beta)
        case "prompted":
            prompted = message.prompted
            if not prompted.prompt.strip():
                raise InvalidInput("the guidance's prompt is empty", reason=reason)
            gamma = prompted.gamma if prompted.HasField("gamma") else types.Prompted("").gamma
            _within("guidance.gamma", gamma, -_LARGEST, _LARGEST, reason)
            return types.Prompted(prompted.prompt, gamma)
        case _:
            raise InvalidInput("the guidance has no method: set one of its fields", reason=reason)


def _within(name: str, value: float, least: float, most: float, reason: str) -> None:
    if not least <= value <= most:  # also false for NaN
        raise InvalidInput(f"{name} is {value:g}; it must be in {least:g}..{most:g}", reason=reason)
