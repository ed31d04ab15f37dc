"""Scores, with numbers computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sightline.errors import InternalError, InvalidInput, PreconditionFailed
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_scorer import calibration
from sightline_scorer.formulas import (
    Scale,
    aggregate,
    check_finite,
    clip_scores,
    cosines,
    group_means,
    logits,
    probabilities,
)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_cosine() -> None:
    image = f32(0.6, 0.8)
    texts = np.array([[1, 0], [0, 1], [0.6, 0.8], [-0.6, -0.8], [0.8, -0.6]], np.float32)
    np.testing.assert_allclose(cosines(image, texts), [0.6, 0.8, 1, -1, 0], atol=1e-7)


def test_cosines_stay_within_one_in_spite_of_rounding() -> None:
    image = f32(1.0000001, 0)
    assert cosines(image, image[None]).tolist() == [1.0]
    assert cosines(image, -image[None]).tolist() == [-1.0]


def test_groups_and_texts() -> None:
    """Rows 1 2 3 4 5 in groups of 1, 2 and 2: the first text has the first group, the second the other two."""
    groups = group_means(f32(1, 2, 3, 4, 6), i32(1, 2, 2))
    np.testing.assert_allclose(groups, [1, 2.5, 5])
    np.testing.assert_allclose(aggregate(groups, i32(1, 2), pb.AGGREGATION_MEAN), [1, 3.75])
    np.testing.assert_allclose(aggregate(groups, i32(1, 2), pb.AGGREGATION_UNSPECIFIED), [1, 3.75])
    np.testing.assert_allclose(aggregate(groups, i32(1, 2), pb.AGGREGATION_MIN), [1, 2.5])
    np.testing.assert_allclose(aggregate(groups, i32(1, 2), pb.AGGREGATION_SUM), [1, 7.5])
    assert aggregate(groups, i32(2, 1), pb.AGGREGATION_MEAN).dtype == np.float32


def test_clip_score_is_a_hundred_times_the_positive_cosine() -> None:
    """Hessel et al. 2021, equation 1, with w = 100."""
    np.testing.assert_allclose(clip_scores(f32(0.31, 0, -0.2, 1)), [31, 0, 0, 100], atol=1e-5)


@pytest.mark.parametrize(("scale", "bias", "expected"), [(100.0, 0.0, 25.0), (117.33, -12.93, 16.4025)])
def test_logit(scale: float, bias: float, expected: float) -> None:
    """CLIP: 100 * 0.25. SigLIP (B-16's scale and bias): 117.33 * 0.25 - 12.93."""
    assert logits(f32(0.25), scale, bias)[0] == pytest.approx(expected, abs=1e-4)


def test_probability_is_the_sigmoid_of_the_logit() -> None:
    expected = [1 / (1 + math.exp(-x)) for x in (0, 2, -2, -20)]
    np.testing.assert_allclose(probabilities(f32(0, 2, -2, -20)), expected, rtol=1e-5)
    assert probabilities(f32(-500, 500)).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_an_error_that_names_the_text(bad: float) -> None:
    with pytest.raises(InternalError, match="not finite") as caught:
        check_finite("m", f32(1, 2), f32(1, bad))
    assert caught.value.reason == "NONFINITE_SCORE"
    assert caught.value.metadata == {"model": "m", "text_index": "1"}


CLIP = Scale("clip", 100, 0, sigmoid=False, calibration=None)
SIGLIP = Scale("siglip", 117, -12.9, sigmoid=True, calibration=None)


def test_kinds_that_a_model_does_not_give() -> None:
    with pytest.raises(PreconditionFailed, match="not probabilities") as caught:
        CLIP.check(pb.SCORE_KIND_PROBABILITY)
    assert caught.value.reason == "NO_PROBABILITY"
    with pytest.raises(PreconditionFailed, match="sightline scorer calibrate --model siglip") as caught:
        SIGLIP.check(pb.SCORE_KIND_PERCENTILE)
    assert caught.value.reason == "NOT_CALIBRATED"
    with pytest.raises(InvalidInput, match="kind 9"):
        CLIP.check(9)  # type: ignore[arg-type]
    assert pb.SCORE_KIND_PROBABILITY in SIGLIP.kinds
    assert pb.SCORE_KIND_PROBABILITY not in CLIP.kinds


def test_a_percentile_is_the_share_of_pairs_that_score_lower() -> None:
    fitted = calibration.fit(np.arange(1, 101) / 1000, "w", "p")  # 0.001 ... 0.1
    assert fitted.pairs == 100
    np.testing.assert_allclose(fitted.percentiles(f32(0.001, 0.0505, 0.1)), [0, 50, 100], atol=1e-4)
    assert fitted.percentiles(f32(-1, 1)).tolist() == [0, 100]
    scale = Scale("m", 1, 0, sigmoid=False, calibration=fitted)
    assert scale.apply(pb.SCORE_KIND_PERCENTILE, f32(0.0505))[0] == pytest.approx(50, abs=1e-3)


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=20, max_size=200).filter(lambda v: max(v) - min(v) > 1e-3),
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=50),
)
@settings(deadline=None, max_examples=60)
def test_percentiles_rise_with_the_cosine(reference: list[float], asked: list[float]) -> None:
    fitted = calibration.fit(reference, "w", "p")
    found = fitted.percentiles(np.sort(f32(*asked)))
    assert (np.diff(found) >= 0).all()
    assert found.min() >= 0
    assert found.max() <= 100


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    fitted = calibration.fit(np.random.default_rng(0).normal(0.25, 0.05, 3000), "weights", "preprocessing")
    path = tmp_path / calibration.FILE_NAME
    path.write_text(fitted.to_json())
    again = calibration.read(path)
    assert (again.weights_digest, again.preprocessing_digest, again.pairs) == ("weights", "preprocessing", 3000)
    assert len(again.digest) == 64
    grid = np.linspace(-1, 1, 200)
    np.testing.assert_allclose(again.percentiles(grid), fitted.percentiles(grid), atol=0.02)


@pytest.mark.parametrize(
    ("cosines_given", "says"),
    [([0.1] * 19, "too few"), ([0.1] * 30, "the same cosine"), ([0.1, math.nan] * 20, "not all finite")],
)
def test_a_reference_set_that_will_not_do(cosines_given: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        calibration.fit(cosines_given, "w", "p")


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"format": 2}',
        '{"format": 1, "weights_digest": "", "preprocessing_digest": "", "pairs": 9, "cosines": [1, 0], '
        '"percentiles": [0, 100]}',
        '{"format": 1, "weights_digest": "", "preprocessing_digest": "", "pairs": 9, "cosines": [0, 1], '
        '"percentiles": [50, 10]}',
    ],
)
def test_a_broken_calibration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a calibration"):
        calibration.read(path)
