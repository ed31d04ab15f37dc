"""Guidance and repetition penalty: numbers derived by hand."""

import math

import pytest
import torch
from sightline.sampler.types import Contrast, DiffusionNoise, ImageFree, Prompted
from sightline_sampler.engines.local.guidance import guide, penalise, weights

NONE = torch.empty(0, dtype=torch.long)
INF = math.inf


def guided(clean: list[float], reference: list[float], weight: float, beta: float = 0.0, never: tuple[int, ...] = ()):
    out = guide(
        torch.tensor([clean]), torch.tensor([reference]), torch.tensor([weight]).double(),
        torch.tensor([beta]).double(), torch.tensor(never, dtype=torch.long),
    )  # fmt: skip
    return out[0].tolist()


def test_contrastive_decoding_pushes_away_from_the_distorted_image() -> None:
    # alpha = 1: 2 c - r.
    weight, beta = weights(Contrast(DiffusionNoise(500), alpha=1.0, beta=0.1))
    assert (weight, beta) == (2.0, 0.1)
    assert guided([1.0, 2.0, 0.0], [0.5, 3.0, 0.0], weight) == [1.5, 1.0, 0.0]
    # alpha = 0.5: 1.5 c - 0.5 r; alpha = 0 is the clean row.
    assert guided([1.0, 2.0, 0.0], [0.5, 3.0, 0.0], weights(Contrast(alpha=0.5))[0]) == [1.25, 1.5, 0.0]
    assert guided([1.0, 2.0, 0.0], [0.5, 3.0, 0.0], weights(Contrast(alpha=0.0))[0]) == [1.0, 2.0, 0.0]


def test_the_plausibility_cut_off_is_by_clean_probability() -> None:
    # Probabilities 0.5, 0.3, 0.15, 0.05: of 0.5, a share of 0.25 keeps what has at least 0.125, whatever the reference
    # says of the others.
    clean = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    out = guided(clean, [0.0, 0.0, 0.0, -50.0], 2.0, beta=0.25)
    assert [x > -INF for x in out] == [True, True, True, False]
    assert out[1] == pytest.approx(2 * math.log(0.3), abs=1e-6)
    assert [x > -INF for x in guided(clean, [0.0] * 4, 2.0, beta=1.0)] == [True, False, False, False]
    assert all(x > -INF for x in guided(clean, [0.0] * 4, 2.0, beta=0.0))
    # The likeliest id that may be drawn counts: without id 0, a share of 0.25 of 0.3.
    assert [x > -INF for x in guided(clean, [0.0] * 4, 2.0, 0.25, never=(0,))] == [True, True, True, False]
    assert [x > -INF for x in guided(clean, [0.0] * 4, 2.0, 0.9, never=(0,))] == [True, True, False, False]


def test_image_free_guidance_follows_the_image() -> None:
    # gamma (c - r) + r with gamma = 0.7: 0.7 c + 0.3 r; 1 is c, 0 is r, 2 goes beyond.
    assert weights(ImageFree(0.7)) == (0.7, 0.0)
    assert weights(ImageFree(0.7, None, 0.2)) == (0.7, 0.2)
    assert weights(Prompted("x", 0.25)) == (0.75, 0.0)  # 0.25 (r - c) + c
    assert guided([1.0, -1.0], [0.0, 2.0], 0.7) == pytest.approx([0.7, -0.1])
    assert guided([1.0, -1.0], [0.0, 2.0], 1.0) == [1.0, -1.0]
    assert guided([1.0, -1.0], [0.0, 2.0], 0.0) == [0.0, 2.0]
    assert guided([1.0, -1.0], [0.0, 2.0], 2.0) == [2.0, -4.0]


def test_the_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    logits = torch.tensor([[3.0, -3.0, 3.0, -3.0], [3.0, -3.0, 0.0, 1.0]])
    seen = torch.tensor([[True, True, False, False], [True, False, True, True]])
    out = penalise(logits, seen, torch.tensor([1.5, 0.5]))
    assert out.tolist() == [[2.0, -4.5, 3.0, -3.0], [6.0, -3.0, 0.0, 2.0]]


def test_the_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 50, generator=generator)
    said = torch.randint(0, 50, (4, 20), generator=generator)
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, said, True)
    wanted = RepetitionPenaltyLogitsProcessor(1.3)(said, logits.clone())
    torch.testing.assert_close(penalise(logits, seen, torch.full((4,), 1.3)), wanted)
