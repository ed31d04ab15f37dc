"""Distorted images: the schedule's published numbers, and their effect on pixels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sightline.sampler.types import Blank, Blur, Crop, DiffusionNoise, PixelNoise
from sightline_chassis.families.processing import PixelLayout
from sightline_sampler.engines.local import distort

PLAIN = {"pixel_values": PixelLayout()}


@pytest.mark.parametrize(
    ("step", "signal", "noise"),
    [(100, 0.998, 0.058), (300, 0.981, 0.194), (500, 0.863, 0.505), (600, 0.734, 0.679), (900, 0.365, 0.931),
     (999, 0.285, 0.959)],
)  # fmt: skip
def test_signal_and_noise_are_those_of_the_published_schedule(step: int, signal: float, noise: float) -> None:
    signals, noises = distort.signal_and_noise()
    assert signals[step] == pytest.approx(signal, abs=6e-4)
    assert noises[step] == pytest.approx(noise, abs=6e-4)


def test_the_schedule_is_that_of_the_published_code() -> None:
    """Computed by torch in float32, as in the code of VCD, POVID and BPO."""
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5
    kept = torch.cumprod(1 - betas, dim=0)
    signals, noises = distort.signal_and_noise()
    np.testing.assert_allclose(signals, torch.sqrt(kept), atol=1e-5)
    np.testing.assert_allclose(noises, torch.sqrt(1 - kept), atol=2e-5)
    # By hand: the first step keeps 1 - 1e-5 - 4.99e-3 / (1 + e^6).
    assert signals[0] == pytest.approx(math.sqrt(1 - 1e-5 - 4.99e-3 / (1 + math.exp(6))), abs=1e-12)
    np.testing.assert_allclose(signals**2 + noises**2, 1)


def test_noise_is_normal_and_stands_for_its_seed() -> None:
    numbers = distort.normal([200_000], 7)
    assert numbers.mean().item() == pytest.approx(0, abs=0.012)
    assert numbers.std().item() == pytest.approx(1, abs=0.01)
    assert (numbers.abs() < 1.959964).double().mean().item() == pytest.approx(0.95, abs=0.003)
    assert torch.equal(distort.normal([3], 7), numbers[:3])
    assert not torch.equal(distort.normal([3], 8), numbers[:3])
    # The median of the uniform numbers is 0: x with u = 0.5 is 0, and 0.975 is 1.96.
    assert torch.special.ndtri(torch.tensor(0.975, dtype=torch.float64)).item() == pytest.approx(1.959964, abs=1e-6)


def test_diffusion_takes_signal_and_adds_noise() -> None:
    pixels = torch.full((1, 3, 4, 4), 2.0)
    noisy = distort.diffuse(pixels, 500, 3)
    signals, noises = distort.signal_and_noise()
    wanted = signals[500] * 2 + noises[500] * distort.normal([1, 3, 4, 4], 3)
    torch.testing.assert_close(noisy, wanted.float())
    assert noisy.dtype == pixels.dtype


def test_only_normalised_pixels_are_touched() -> None:
    inputs = {"pixel_values": torch.ones(1, 3, 2, 2), "image_sizes": torch.tensor([[40, 50]])}
    blank = distort.after(inputs, Blank(), PLAIN)
    assert 0 < blank["pixel_values"].abs().max() < 1e-5
    assert blank["image_sizes"] is inputs["image_sizes"]
    noisy = distort.after(inputs, DiffusionNoise(900, 1), PLAIN)
    assert not torch.equal(noisy["pixel_values"], inputs["pixel_values"])
    assert noisy["image_sizes"] is inputs["image_sizes"]
    assert distort.after(inputs, Blur(2), PLAIN) is inputs


def test_crops_that_are_not_there_stay_so() -> None:
    """The Idefics3 family pads with crops of exact zeros, and ignores them."""
    pixels = torch.cat([torch.ones(1, 2, 3, 4, 4), torch.zeros(1, 1, 3, 4, 4)], dim=1)
    for distortion in (Blank(), DiffusionNoise(900)):
        out = distort.after({"pixel_values": pixels}, distortion, {"pixel_values": PixelLayout(1)})["pixel_values"]
        assert not out[:, 2].any()
        assert out[:, :2].all()


def test_frames_that_repeat_an_image_get_the_same_noise() -> None:
    """Rows of (channel, frame, pixel), as the Qwen2-VL family flattens patches."""
    inputs = {"pixel_values": torch.zeros(5, 3 * 2 * 4), "image_grid_thw": torch.tensor([[1, 1, 5]])}
    layouts = {"pixel_values": PixelLayout(frames=2)}
    noisy = distort.after(inputs, DiffusionNoise(500), layouts)["pixel_values"].reshape(5, 3, 2, 4)
    assert torch.equal(noisy[:, :, 0], noisy[:, :, 1])
    assert noisy[:, :, 0].unique().numel() == 5 * 3 * 4


def test_noise_on_raw_pixels_is_clamped_or_wraps_as_published() -> None:
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    signals, noises = distort.signal_and_noise()
    noisy = signals[500] + noises[500] * distort.normal([3, 32, 32], 4).permute(1, 2, 0).numpy()
    clamped = np.asarray(distort.before(white, PixelNoise(500, 4)), dtype=int)
    np.testing.assert_array_equal(clamped, np.round(np.clip(noisy, 0, 1) * 255).astype(int))
    wrapped = np.asarray(distort.before(white, PixelNoise(500, 4, official=True)), dtype=int)
    np.testing.assert_array_equal(wrapped, np.trunc(noisy * 255).astype(int) % 256)
    over = noisy * 255 >= 256
    assert over.mean() > 0.2
    assert (clamped[over] == 255).all()
    assert wrapped[over].mean() < 128, "what is brighter than white turns dark"
    # As torchvision does it on this platform, for what is not negative.
    positive = noisy >= 0
    byte = torch.from_numpy(noisy[positive]).float().mul(255).byte().numpy()
    assert (byte == wrapped[positive]).mean() > 0.999


def test_blur_keeps_the_mean_and_takes_the_detail() -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    before, after = np.asarray(noise, float), np.asarray(distort.before(noise, Blur(4)), float)
    assert after.mean() == pytest.approx(before.mean(), abs=4)
    assert after.std() < before.std() / 4


def test_crops_are_as_large_as_asked_and_stay_inside() -> None:
    sizes = set()
    for seed in range(200):
        left, top, right, bottom = distort.crop_box((120, 80), 0.1, 0.3, seed)
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 80
        area, aspect = (right - left) * (bottom - top) / (120 * 80), (right - left) / (bottom - top)
        assert 0.09 <= area <= 0.32
        assert 0.7 <= aspect <= 1.43
        sizes.add((right - left, bottom - top))
    assert len(sizes) > 50
    # No piece of shape 3/4..4/3 with that area fits, so the crop is the middle, in the image's shape.
    assert distort.crop_box((400, 4), 0.25, 0.25, 0) == (100, 1, 300, 3)


def test_a_crop_is_stretched_to_the_size_of_the_whole() -> None:
    image = Image.new("RGB", (60, 40), (0, 0, 0))
    image.paste((255, 0, 0), (30, 0, 60, 40))
    out = distort.before(image, Crop(0.9, 1.0, seed=1))
    assert out.size == (60, 40)
    again = distort.before(image, Crop(0.9, 1.0, seed=1))
    assert out.tobytes() == again.tobytes()


def test_a_distorted_image_has_a_name_of_its_own() -> None:
    names = {
        distort.image_name("d", one)
        for one in (None, Blank(), Blur(1), DiffusionNoise(5), DiffusionNoise(5, 1), PixelNoise(5))
    }
    assert len(names) == 6
