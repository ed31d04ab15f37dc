"""Scores by numbers worked out by hand."""

import math

import numpy as np
import pytest
from sightline_scorer.scoring import clip_scores, cosines, logits


def test_cosine_of_one_part_each() -> None:
    image = np.array([0.6, 0.8], np.float32)
    texts = np.array([[1, 0], [0, 1], [0.6, 0.8], [-0.6, -0.8], [0.8, -0.6]], np.float32)
    np.testing.assert_allclose(cosines(image, texts, np.ones(5, np.int32)), [0.6, 0.8, 1, -1, 0], atol=1e-7)


def test_a_long_text_has_the_mean_of_its_sentences() -> None:
    image = np.array([1, 0], np.float32)
    half = math.sqrt(0.75)
    texts = np.array([[0.5, half], [1, 0], [0, 1], [-1, 0], [0.5, -half]], np.float32)
    # parts: [0.5], [1, 0, -1], [0.5]
    np.testing.assert_allclose(cosines(image, texts, np.array([1, 3, 1], np.int32)), [0.5, 0, 0.5], atol=1e-7)
    # parts: [0.5, 1], [0, -1, 0.5]: 0.75 and -1/6
    np.testing.assert_allclose(cosines(image, texts, np.array([2, 3], np.int32)), [0.75, -1 / 6], atol=1e-7)


def test_cosines_stay_within_one_in_spite_of_rounding() -> None:
    image = np.array([1.0000001, 0], np.float32)
    assert cosines(image, image[None], np.ones(1, np.int32)).tolist() == [1.0]
    assert cosines(image, -image[None], np.ones(1, np.int32)).tolist() == [-1.0]


def test_clip_score_is_a_hundred_times_the_positive_cosine() -> None:
    """Hessel et al. 2021, equation 1, with w = 100."""
    cosine = np.array([0.31, 0, -0.2, 1], np.float32)
    np.testing.assert_allclose(clip_scores(cosine), [31, 0, 0, 100], atol=1e-5)


@pytest.mark.parametrize(("scale", "bias", "expected"), [(100.0, 0.0, 25.0), (117.33, -12.93, 16.4025)])
def test_logit(scale: float, bias: float, expected: float) -> None:
    """CLIP: 100 * 0.25. SigLIP (B-16's scale and bias): 117.33 * 0.25 - 12.93."""
    assert logits(np.array([0.25], np.float32), scale, bias)[0] == pytest.approx(expected, abs=1e-4)
