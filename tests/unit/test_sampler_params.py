"""Sampling parameters over the wire and back, and their bounds."""

import math
from typing import Any

import pytest
from sightline.convert import to_message
from sightline.errors import InvalidInput
from sightline.sampler import Beams, Blank, Blur, Contrast, Crop, DiffusionNoise, ImageFree, PixelNoise, Prompted
from sightline.sampler.params import SamplingParams
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline_sampler.params import read_params


def there_and_back(count: int = 4, with_image: bool = True, **options: Any) -> SamplingParams:
    message = pb.SamplingParams.FromString(to_message(SamplingParams(**options), pb.SamplingParams).SerializeToString())
    return read_params(message, count, max_tokens=100, with_image=with_image)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5, "top_p": 0.25, "top_k": 3, "max_tokens": 7, "min_p": 0.125, "repetition_penalty": 1.5},
        {"stop": (".", "\n\n")},
        {"beams": Beams(2, 3.0, 0.5)},
        {"beams": Beams(1, 0.0, 0.0)},
        {"distortion": DiffusionNoise(500, 7)},
        {"distortion": PixelNoise(0, 2**64 - 1, official=True)},
        {"distortion": Blur(2.5)},
        {"distortion": Crop(0.25, 0.5, 3)},
        {"distortion": Blank()},
        {"guidance": Contrast(DiffusionNoise(900), 0.5, 0.25)},
        {"guidance": Contrast(Blank(), 0.0, 0.0)},
        {"guidance": ImageFree(0.0)},
        {"guidance": ImageFree(2.0, None, 0.25)},
        {"guidance": Prompted("there is a cat .", 0.5)},
        {"continue_from": (5, 0, 7)},
        {"guidance": ImageFree(2.0, Blur(4.0)), "distortion": Crop(0.5, 0.5)},
    ],
)
def test_what_is_sent_is_what_arrives(options: dict[str, Any]) -> None:
    assert there_and_back(**options) == SamplingParams(**options)
    assert there_and_back(**options).options() >= set(options) - {"temperature", "top_p", "max_tokens"}


def test_what_is_not_said_has_the_documented_value() -> None:
    def read(message: pb.SamplingParams) -> SamplingParams:
        return read_params(message, 4, max_tokens=100, with_image=True)

    assert read(pb.SamplingParams()) == SamplingParams()
    assert SamplingParams().options() == frozenset()
    contrast = read(pb.SamplingParams(guidance=pb.Guidance(contrastive=pb.ContrastiveDecoding())))
    assert contrast.guidance == Contrast(DiffusionNoise(500, 0), 1.0, 0.1)
    free = read(pb.SamplingParams(guidance=pb.Guidance(image_free=pb.ImageFreeGuidance())))
    assert free.guidance == ImageFree(1.5, None)
    assert read(pb.SamplingParams(beams=pb.DiverseBeams(groups=4))).beams == Beams(4, 1.0, 1.0)
    crop = read(pb.SamplingParams(distortion=pb.Distortion(crop=pb.Crop(min_area=0.5))))
    assert crop.distortion == Crop(0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_p": 1.0}, "BAD_MIN_P"),
        ({"min_p": -0.1}, "BAD_MIN_P"),
        ({"min_p": math.nan}, "BAD_MIN_P"),
        ({"repetition_penalty": 0.0}, "BAD_REPETITION_PENALTY"),
        ({"repetition_penalty": math.inf}, "BAD_REPETITION_PENALTY"),
        ({"stop": ("",)}, "BAD_STOP"),
        ({"stop": ("x" * 257,)}, "BAD_STOP"),
        ({"stop": tuple("abcdefghijklmnopq")}, "BAD_STOP"),
        ({"beams": Beams(0)}, "BAD_BEAMS"),
        ({"beams": Beams(3)}, "BAD_BEAMS"),
        ({"beams": Beams(2, -1.0)}, "BAD_BEAMS"),
        ({"beams": Beams(2, 1.0, math.nan)}, "BAD_BEAMS"),
        ({"beams": Beams(2), "temperature": 0.5}, "BAD_BEAMS"),
        ({"beams": Beams(2), "top_p": 0.5}, "BAD_BEAMS"),
        ({"distortion": DiffusionNoise(1000)}, "BAD_DISTORTION"),
        ({"distortion": PixelNoise(1000)}, "BAD_DISTORTION"),
        ({"distortion": Blur(0.0)}, "BAD_DISTORTION"),
        ({"distortion": Crop(0.0, 0.5)}, "BAD_DISTORTION"),
        ({"distortion": Crop(0.5, 0.25)}, "BAD_DISTORTION"),
        ({"distortion": Crop(0.5, 1.5)}, "BAD_DISTORTION"),
        ({"distortion": Blank(), "with_image": False}, "BAD_DISTORTION"),
        ({"guidance": ImageFree(math.nan)}, "BAD_GUIDANCE"),
        ({"guidance": ImageFree(beta=1.5)}, "BAD_GUIDANCE"),
        ({"guidance": Prompted(" ")}, "BAD_GUIDANCE"),
        ({"guidance": Prompted("x", math.inf)}, "BAD_GUIDANCE"),
        ({"continue_from": (1,) * 100}, "BAD_CONTINUE_FROM"),
        ({"guidance": ImageFree(), "with_image": False}, "BAD_GUIDANCE"),
        ({"guidance": Contrast(alpha=-1.0)}, "BAD_GUIDANCE"),
        ({"guidance": Contrast(beta=1.5)}, "BAD_GUIDANCE"),
        ({"guidance": Contrast(DiffusionNoise(1000))}, "BAD_DISTORTION"),
    ],
)
def test_what_is_out_of_bounds_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        there_and_back(**options)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.SamplingParams(distortion=pb.Distortion()), "BAD_DISTORTION"),
        (pb.SamplingParams(guidance=pb.Guidance()), "BAD_GUIDANCE"),
    ],
)
def test_a_choice_that_is_not_made_is_refused(message: pb.SamplingParams, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_params(message, 4, max_tokens=100, with_image=True)
    assert caught.value.reason == reason


def test_one_string_is_not_a_list_of_stops() -> None:
    with pytest.raises(TypeError, match="not one string"):
        to_message(SamplingParams(stop="abc"), pb.SamplingParams)  # type: ignore[arg-type]
