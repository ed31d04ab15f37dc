"""One rule to read a picture: every path through the system gives the same pixels."""

import contextlib
import io
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import odd_pictures
import pytest
import torch
from odd_pictures import ODD, chunk, encoded, exif, noise, on_white, photo, png
from PIL import Image, ImageOps
from sightline.errors import InvalidInput
from sightline.integrations.columns import image_of
from sightline.picture_rule import rgb
from sightline.pictures import image_bytes, write_png
from sightline_chassis import images
from sightline_chassis.sections import ImageLimits
from sightline_scorer.preprocessing import Preprocessor
from sightline_scorer.settings import ModelSettings, ScorerLimits
from sightline_scorer.triton import repository
from sightline_trainer.candidates.noised_image import noised
from sightline_trainer.dpo.collator import decoded as decoded_by_collator

LIMITS = ImageLimits()
NAMES = pytest.mark.parametrize("name", list(ODD))
PILLOW_REFUSES = [name for name in ODD if "bomb" in name or "packed" in name]
# Pillow drops these when it loads a picture, which is then sent as Pillow shows it.
LOST_WHEN_LOADED = ["PNG grey 2 tRNS", "PNG grey 4 tRNS", "PNG RGB 16 tRNS near", "PNG RGB 16 tRNS small"]
LOST_WHEN_LOADED += [name for name in ODD if name.startswith("APNG default")]


def decoded(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(images.decode(content, LIMITS))


def test_there_are_enough_odd_pictures() -> None:
    assert len(ODD) > 100


@NAMES
def test_every_file_shows_its_pixels(name: str) -> None:
    content, shown = ODD[name]
    np.testing.assert_array_equal(decoded(content), shown)


@NAMES
def test_the_update_and_the_distortion_see_the_same(name: str) -> None:
    content, shown = ODD[name]
    np.testing.assert_array_equal(np.asarray(decoded_by_collator({"bytes": content, "path": None})), shown)
    assert noised(content, 100, 1) == noised(write_png(shown), 100, 1)


@pytest.fixture(scope="module")
def preprocess(tmp_path_factory: pytest.TempPathFactory) -> Preprocessor:
    import scorer_models

    directory = scorer_models.tiny(tmp_path_factory.mktemp("tiny"))
    return Preprocessor(repository.describe("m", ModelSettings(source=str(directory))), ScorerLimits())


@NAMES
def test_the_scorer_sees_the_same(name: str, preprocess: Preprocessor) -> None:
    content, shown = ODD[name]
    np.testing.assert_array_equal(preprocess(content), preprocess(write_png(shown)))


@NAMES
def test_engines_behind_http_are_sent_what_a_plain_decoder_reads_so(name: str) -> None:
    content, shown = ODD[name]
    sent, kind = images.plain_file(content, LIMITS)
    plain = Image.open(io.BytesIO(sent))
    assert kind == ("image/jpeg" if plain.format == "MPO" else f"image/{str(plain.format).lower()}")
    np.testing.assert_array_equal(np.asarray(plain.convert("RGB")), shown)
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(plain).convert("RGB")), shown)


def test_plain_files_are_sent_as_they_are() -> None:
    for content in (encoded(photo(), "JPEG"), encoded(photo(), "PNG"), encoded(photo(), "WEBP"),
                    encoded(photo().convert("L"), "JPEG"), encoded(photo(), "JPEG", exif=exif(1))):  # fmt: skip
        assert images.plain_file(content, LIMITS)[0] == content


@NAMES
def test_the_sdk_sends_files_as_they_are(name: str, tmp_path: Path) -> None:
    content, _ = ODD[name]
    path = tmp_path / "picture"
    path.write_bytes(content)
    written = io.BytesIO()
    written.write(content)  # it stands at its end
    with path.open("rb") as file:
        for given in (content, bytearray(content), memoryview(content), path, str(path), written, file):
            assert image_bytes(given) == content


@NAMES
def test_the_sdk_sends_pixels_without_loss(name: str) -> None:
    _, shown = ODD[name]
    for given in (
        shown,
        torch.from_numpy(shown.copy()).permute(2, 0, 1),
        shown[::-1][::-1],
        Image.fromarray(shown),
    ):
        assert image_of(given) is given
        np.testing.assert_array_equal(decoded(image_bytes(given)), shown)


@pytest.mark.parametrize("name", [name for name in ODD if name not in PILLOW_REFUSES])
def test_the_sdk_sends_a_picture_of_pillow_as_its_file_is_read(name: str) -> None:
    content, shown = ODD[name]
    fresh = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(decoded(image_bytes(fresh)), shown)
    if name in LOST_WHEN_LOADED:
        return
    loaded = Image.open(io.BytesIO(content))
    loaded.load()
    for picture in (loaded, loaded.copy(), fresh):
        before = (picture.mode, picture.size, dict(picture.info))
        np.testing.assert_array_equal(decoded(image_bytes(picture)), shown)
        assert (picture.mode, picture.size, dict(picture.info)) == before


def test_a_picture_of_pillow_that_was_changed_is_sent_as_it_is_now() -> None:
    content = encoded(photo(200, 100), "JPEG", exif=exif(6))
    smaller = Image.open(io.BytesIO(content))
    smaller.draft("RGB", (50, 25))
    assert decoded(image_bytes(smaller)).shape == (50, 25, 3)
    second = Image.open(io.BytesIO(ODD["GIF animated"][0]))
    second.seek(1)
    np.testing.assert_allclose(decoded(image_bytes(second))[5, 5], [255, 0, 0], atol=8)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decoded(image_bytes(upright)), decoded(content))


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La",
     "I;16", "I;16L", "I;16B", "I;16N"],
)  # fmt: skip
def test_the_sdk_takes_every_mode_of_pillow(mode: str) -> None:
    grey = np.arange(30 * 40).reshape(30, 40)
    if mode.startswith("I;16"):
        picture = Image.fromarray((grey * 50).astype(">u2" if mode == "I;16B" else "<u2"))
        if mode in ("I;16L", "I;16N"):
            picture = Image.frombytes(mode, (40, 30), (grey * 50).astype("<u2").tobytes())
        shown = odd_pictures.three(grey * 50 >> 8)
    elif mode == "I":
        picture, shown = Image.fromarray((grey * 50).astype(np.int32)), odd_pictures.three(grey * 50 >> 8)
    elif mode == "F":
        picture, shown = Image.fromarray((grey % 256).astype(np.float32)), odd_pictures.three(grey % 256)
    else:
        alpha = photo(40, 30)
        alpha.putalpha(128)
        through = {"RGBa": "RGBA", "La": "LA", "LAB": "RGB"}.get(mode)
        first = alpha if mode in ("RGBA", "LA", "PA", "RGBa", "La") else photo(40, 30)
        if mode == "LAB":
            from PIL import ImageCms

            turn = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
            picture = ImageCms.applyTransform(first, turn)
        elif mode == "PA":
            picture = photo(40, 30).quantize(16).convert("PA")
        else:
            picture = (first.convert(through) if through else first).convert(mode)
        assert picture.mode == mode
        if mode in ("RGBA", "LA", "RGBa", "La"):
            both = np.asarray((picture.convert("LA") if mode == "La" else picture).convert("RGBA"))
            shown = on_white(both[:, :, :3], both[:, :, 3])
        else:
            shown = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(decoded(image_bytes(picture)), shown)
    np.testing.assert_array_equal(np.asarray(rgb(picture)), shown)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros((4, 5), np.uint8), r"an array \[H, W, 3\], RGB, not \[4, 5\]"),
        (np.zeros((3, 4, 5), np.uint8), r"not \[3, 4, 5\]"),
        (np.zeros((4, 5, 4), np.uint8), r"not \[4, 5, 4\]"),
        (np.zeros((4, 5, 3)), "uint8, 0 to 255, not float64"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"a tensor \[3, H, W\], RGB, not \[4, 5, 3\]"),
        (torch.zeros(3, 4, 5), "not torch.float32"),
        (np.zeros((0, 5, 3), np.uint8), r"not \[0, 5, 3\]"),
        (io.StringIO("text"), 'open it with mode "rb"'),
        (17, "not int"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_is(given: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        image_bytes(given)


def test_a_closed_picture_is_refused() -> None:
    picture = Image.open(io.BytesIO(encoded(photo(), "PNG")))
    picture.close()
    with pytest.raises(InvalidInput, match="cannot be read"):
        image_bytes(picture)


@pytest.mark.parametrize("name", PILLOW_REFUSES)
def test_what_a_png_says_beside_its_picture_is_never_inflated(name: str) -> None:
    content, _ = ODD[name]
    decoded(content)
    tracemalloc.start()
    decoded(content)
    assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + 2**20
    tracemalloc.stop()


def test_more_chunks_than_any_picture_has_are_refused() -> None:
    content = png(noise(4, 4, 3), 8, odd_pictures.RGB, chunk(b"tEXt", b"") * 70_000)
    with pytest.raises(InvalidInput, match="over 65536 chunks") as caught:
        decoded(content)
    assert caught.value.reason == "IMAGE_DAMAGED"


def test_bounds_hold_for_frames_and_canvas_too() -> None:
    for name in ("APNG default outside", "APNG default outside, first frame small"):
        with pytest.raises(InvalidInput, match="23 x 14 = 322 pixels") as caught:
            images.decode(ODD[name][0], ImageLimits(max_image_pixels=321))
        assert caught.value.reason == "IMAGE_TOO_MANY_PIXELS"


def test_damaged_animations_are_refused_or_decoded_but_never_another_error() -> None:
    random = np.random.default_rng(1)
    for name in ("APNG", "APNG default outside, first frame small", "PNG other chunks", "PNG RGB 16 tRNS"):
        content = bytearray(ODD[name][0])
        for _ in range(200):
            hurt = content.copy()
            for place in random.integers(8, len(hurt), 3):
                hurt[place] = random.integers(0, 256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(InvalidInput):
                    decoded(bytes(hurt[: random.integers(1, len(hurt) + 1)]))
