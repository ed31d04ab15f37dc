"""Coverage-guided fuzzing of the scorer's image decoding.

    python tests/fuzz/images.py CORPUS_DIRECTORY -runs=100000

Each input ends in pixels within the limits or in InvalidInput; anything else is a crash, which atheris writes down.
"""

import sys

import atheris

with atheris.instrument_imports(include=["sightline_scorer", "PIL"]):
    from sightline.errors import InvalidInput
    from sightline_chassis import images
    from sightline_scorer.settings import ScorerLimits

LIMITS = ScorerLimits(max_image_bytes=200_000, max_image_pixels=1_000_000)


def one(data: bytes) -> None:
    """Try one input."""
    try:
        image = images.decode(data, LIMITS)
    except InvalidInput:
        return
    if image.mode != "RGB" or image.width * image.height > LIMITS.max_image_pixels:
        raise AssertionError(f"{image.mode}, {image.size}")


if __name__ == "__main__":
    images.lift_pillow_limit()
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
