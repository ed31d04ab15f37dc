"""Images: limits before decoding, every format, and the same pixels as open_clip's."""

import contextlib
import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scorer_models
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from scorer_models import bomb, encoded, picture
from sightline.errors import InvalidInput
from sightline_chassis import images
from sightline_scorer.centre import centre
from sightline_scorer.preprocessing import Preprocessor
from sightline_scorer.resizing import Resizing
from sightline_scorer.settings import ModelSettings, ScorerLimits
from sightline_scorer.triton import repository
from sightline_scorer.triton.card import ModelCard

LIMITS = ScorerLimits()


@pytest.fixture(scope="module", params=["tiny", "siglip"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCard]:
    make = {"tiny": scorer_models.tiny, "siglip": scorer_models.siglip}[request.param]
    directory = make(tmp_path_factory.mktemp(request.param))
    return directory, repository.describe("m", ModelSettings(source=str(directory)))


def normalised(pixels: np.ndarray, card: ModelCard) -> np.ndarray:
    """The Triton model's work on pixels, in NumPy."""
    mean, std = (np.array(card.preprocess[key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


@pytest.mark.parametrize("size", [(90, 70), (64, 64), (31, 200), (640, 480), (5, 3), (1, 1)])
def test_pixels_are_open_clips_own(model: tuple[Path, ModelCard], size: tuple[int, int]) -> None:
    directory, card = model
    image = picture(*size)
    expected = scorer_models.Reference(directory).preprocess(image).numpy()
    pixels = Preprocessor(card, LIMITS)(encoded(image))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, card.image_height, card.image_width)
    np.testing.assert_allclose(normalised(pixels, card), expected, atol=1e-6)


RGBA = picture(40, 30)
RGBA.putalpha(Image.linear_gradient("L").resize(RGBA.size))
ON_WHITE = Image.composite(RGBA.convert("RGB"), Image.new("RGB", RGBA.size, "white"), RGBA.getchannel("A"))


def _palette_with_transparency() -> bytes:
    image = picture(40, 30).quantize(16)
    return encoded(image, "PNG", transparency=3)


def _rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(40, 30), "PNG", exif=exif)


def _sixteen_bits() -> tuple[bytes, np.ndarray]:
    values = (np.arange(40 * 30, dtype=np.uint16) * 50).reshape(30, 40)
    return encoded(Image.fromarray(values), "PNG"), (values >> 8).astype(np.uint8)


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(images.decode(content, LIMITS))


def test_alpha_is_laid_on_white() -> None:
    np.testing.assert_allclose(decoded(encoded(RGBA)), np.asarray(ON_WHITE), atol=1)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (decoded(encoded(clear)) == 255).all()
    assert (decoded(encoded(clear, "WEBP", lossless=True, exact=True)) == 255).all()
    assert (decoded(encoded(Image.new("LA", (4, 4), (9, 0)))) == 255).all()


def test_transparent_palette_entry_becomes_white() -> None:
    content = _palette_with_transparency()
    indices = np.asarray(Image.open(io.BytesIO(content)))
    shown = decoded(content)
    assert (shown[indices == 3] == 255).all()
    plain = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(shown[indices != 3], plain[indices != 3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    content = _rotated(orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decoded(content), np.asarray(upright))
    turned = orientation >= 5
    assert decoded(content).shape == ((40, 30, 3) if turned else (30, 40, 3))


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    content, high = _sixteen_bits()
    np.testing.assert_array_equal(decoded(content), np.repeat(high[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGB"])
def test_other_modes_become_rgb(mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    content = encoded(picture(40, 30).convert(mode), form)
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    np.testing.assert_array_equal(decoded(content), np.asarray(expected))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert decoded(content)[5, 5].tolist() == pytest.approx([255, 0, 0], abs=4)


def _cut(form: str, share: float) -> bytes:
    content = encoded(picture(300, 200), form)
    return content[: int(len(content) * share)]


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        (b"", "IMAGE_EMPTY", "0 bytes"),
        (b"GIF89a", "IMAGE_UNREADABLE", "not a JPEG, PNG, WEBP(, AVIF)? or GIF"),
        (b"\x00" * 100, "IMAGE_UNREADABLE", "00 00 00"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "IMAGE_UNREADABLE", "not base64"),
        (encoded(picture(), "BMP"), "IMAGE_UNREADABLE", "not a JPEG"),
        (encoded(picture(), "TIFF"), "IMAGE_UNREADABLE", "not a JPEG"),
        (_cut("JPEG", 0.5), "IMAGE_DAMAGED", "ends early"),
        (_cut("PNG", 0.5), "IMAGE_DAMAGED", "ends early"),
        (_cut("GIF", 0.5), "IMAGE_DAMAGED", "ends early"),
        (bomb(8000, 7000), "IMAGE_TOO_MANY_PIXELS", "8000 x 7000 = 56000000 pixels"),
        (bytes(LIMITS.max_image_bytes + 1), "IMAGE_TOO_LARGE", "over the limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_images_are_refused(content: bytes, reason: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        images.decode(content, LIMITS)
    assert caught.value.reason == reason


def test_a_cut_webp_is_refused() -> None:
    for share in (0.2, 0.5, 0.9):
        with pytest.raises(InvalidInput):
            images.decode(_cut("WEBP", share), LIMITS)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_pixel_limit_holds_before_anything_is_decoded() -> None:
    content = bomb()
    assert len(content) < 200_000
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="13000 x 13000"):
        images.decode(content, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_of_a_strip_that_resizing_would_blow_up_the_centre_is_made(model: tuple[Path, ModelCard]) -> None:
    """open_clip resizes the short side to the model's size: 4 x 2 000 000 pixels would become 64 x 32 000 000."""
    _, card = model
    pixels = Preprocessor(card, LIMITS)(encoded(Image.new("1", (2_000_000, 4), 1)))
    assert pixels.shape == (3, card.image_height, card.image_width)
    assert (pixels == 255).all()


STRIPS = [(7, 2000), (2000, 7), (300, 9), (9, 3001), (1, 400), (40, 45), (64, 2049), (33, 1500), (1600, 41)]


@pytest.mark.field
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
@pytest.mark.parametrize("size", STRIPS)
def test_the_centre_alone_is_that_of_the_whole(size: tuple[int, int], resample: Image.Resampling) -> None:
    """Equal to the bit to torchvision's Resize and CenterCrop, which open_clip's transform uses."""
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    random = np.random.default_rng(sum(size))
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    wanted = CenterCrop(64)(Resize(64, InterpolationMode[resample.name])(image))
    np.testing.assert_array_equal(centre(image, 64, resample), np.asarray(wanted))


@pytest.mark.parametrize("size", [(1, 400), (7, 2000), (3000, 9), (50, 60)])
def test_a_strips_pixels_are_open_clips(model: tuple[Path, ModelCard], size: tuple[int, int]) -> None:
    _, card = model
    random = np.random.default_rng(sum(size))
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    preprocess = Preprocessor(card, LIMITS)
    wanted: Any = image
    for step in image_transform_v2(PreprocessCfg(**card.preprocess), is_train=False).transforms[:-2]:
        wanted = step(wanted)
    np.testing.assert_array_equal(preprocess(encoded(image)), np.asarray(wanted).transpose(2, 0, 1))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_damage_anywhere_is_refused_or_decoded_but_never_another_error(form: str) -> None:
    content = bytearray(encoded(picture(60, 40), form))
    random = np.random.default_rng(0)
    for _ in range(150):
        hurt = content.copy()
        for place in random.integers(0, len(hurt), 3):
            hurt[place] = random.integers(0, 256)
        with contextlib.suppress(InvalidInput):
            images.decode(bytes(hurt[: random.integers(1, len(hurt) + 1)]), LIMITS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_matter() -> None:
    content = encoded(picture(40, 30), "JPEG", exif=b"Exif\x00\x00MM\x00*garbage")
    assert decoded(content).shape == (30, 40, 3)


def test_limits_are_inclusive() -> None:
    content = encoded(picture(10, 10))
    exact: dict[str, Any] = {"max_image_bytes": len(content), "max_image_pixels": 100}
    images.decode(content, ScorerLimits(**exact))
    for name in exact:
        with pytest.raises(InvalidInput):
            images.decode(content, ScorerLimits(**{**exact, name: exact[name] - 1}))


SIZES = [(1, 1), (2, 3), (7, 500), (31, 200), (63, 64), (64, 64), (65, 64), (640, 480), (1000, 333), (333, 1001)]


@pytest.mark.parametrize("size", [64, (64, 64), (48, 80), (80, 48)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_resizing_is_open_clips_to_the_bit(size: int | tuple[int, int], mode: str, interpolation: str) -> None:
    preprocess = {"size": size, "resize_mode": mode, "interpolation": interpolation, "fill_color": 17}
    theirs = image_transform_v2(PreprocessCfg(**preprocess), is_train=False).transforms[:-2]
    ours = Resizing.of(preprocess)
    for seed, sides in enumerate(SIZES):
        image = expected = picture(*sides, seed=seed)
        for step in theirs:
            expected = step(expected)
        np.testing.assert_array_equal(np.asarray(ours(image)), np.asarray(expected), str(sides))
