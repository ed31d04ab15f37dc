"""The verdict of the arrival gate, on numbers written by hand."""

import numpy as np
import pytest
from sightline.sampler.types import Arrival
from sightline_sampler.policies.gate import judge
from sightline_sampler.settings import GateSettings

TOKENS = 400


def verdict(
    *,
    update: float = 0.05,
    noise: float = 0.0,
    seed: int = 0,
    arrived: float = 1.0,
    tokens: int = TOKENS,
    **changes: object,
) -> Arrival:
    """The verdict on an engine whose scores are the trainer's plus noise; it has the share `arrived` of the update."""
    random = np.random.default_rng(seed)
    before = -random.exponential(1.0, tokens)
    step = update * random.standard_normal(tokens)

    def hear(values: np.ndarray) -> np.ndarray:
        return values + noise * random.standard_normal(tokens)

    values = {
        "new": hear(before + arrived * step),
        "previous": hear(before),
        "trainer": before + step,
        "trainer_previous": before,
        **changes,
    }
    return judge(GateSettings(), engine="e", previous_version=3, probes=8, **values)  # type: ignore[arg-type]


def test_numbers_of_the_report() -> None:
    report = judge(
        GateSettings(min_correlation=0.5, significance=1.0),
        engine="e 1",
        previous_version=6,
        probes=2,
        new=np.array([-1.0, -2.0, -3.0, -4.0]),
        previous=np.array([-1.0, -2.2, -3.2, -4.4]),
        trainer=np.array([-1.1, -2.0, -3.0, -4.1]),
        trainer_previous=np.array([-1.1, -2.2, -3.1, -4.4]),
        sampled=[(np.array([-1.0, -1.0]), np.array([-1.0, -1.2]))],
    )
    assert report.changed == 0.75
    assert report.gap == pytest.approx(0.05)
    assert report.previous_gap == pytest.approx(0.05)
    assert report.moved == pytest.approx(0.2)
    assert report.trainer_moved == pytest.approx(0.15)
    assert report.required_correlation == 0.5  # and not 1 / sqrt(4), which is the same
    # Changes: engine 0, .2, .2, .4; trainer 0, .2, .1, .3. About the means: products .06, squares .08, .05.
    assert report.correlation == pytest.approx(0.06 / np.sqrt(0.08 * 0.05))
    assert report.sampled_gap == pytest.approx(0.1)
    assert (report.passed, report.reason, report.engine, report.probes, report.tokens) == (True, "", "e 1", 2, 4)


@pytest.mark.parametrize(("update", "noise"), [(0.5, 0.0), (1e-4, 0.0), (0.05, 0.05), (0.02, 0.02), (0.3, 0.05)])
def test_an_update_that_arrived_passes_also_through_bfloat16_noise(update: float, noise: float) -> None:
    reports = [verdict(update=update, noise=noise, seed=seed) for seed in range(50)]
    assert all(report.passed for report in reports), [r.reason for r in reports if not r.passed][:1]
    expected = update / np.sqrt(update**2 + 2 * noise**2)
    assert np.mean([report.correlation for report in reports]) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("update", [0.02, 0.05, 0.3])
def test_an_update_that_did_not_arrive_is_seen(update: float, noise: float) -> None:
    for seed in range(50):
        report = verdict(update=update, noise=noise, arrived=0.0, seed=seed)
        assert not report.passed
        assert ("to the last bit" in report.reason) == (noise == 0)


def test_the_update_of_another_run_is_seen() -> None:
    random = np.random.default_rng(9)
    before = -random.exponential(1.0, TOKENS)
    mine, other, heard, noise = (values * random.standard_normal(TOKENS) for values in (0.05, 0.05, 0.04, 0.04))
    report = verdict(
        new=before + other + heard, previous=before + noise, trainer_previous=before, trainer=before + mine
    )
    assert not report.passed
    assert "the engine answers with other weights" in report.reason


@pytest.mark.parametrize(("update", "tokens", "more"), [(1e-3, TOKENS, 0), (0.015, 50, 30)])
def test_an_update_that_is_too_small_to_be_proved_says_what_to_set(update: float, tokens: int, more: int) -> None:
    """The update arrived, but noise hides it, as in a first trial of few steps at a small rate in bfloat16."""
    reports = [verdict(update=update, noise=0.02, tokens=tokens, seed=seed) for seed in range(50)]
    reasons = [report.reason for report in reports if not report.passed]
    assert len(reasons) > 30
    assert all("the update is too small to be proved" in reason for reason in reasons)
    assert all("raise dpo.learning_rate" in reason for reason in reasons)
    assert sum("probe tokens (publication.probes)" in reason for reason in reasons) >= more


def test_what_may_be_the_trainers_own_rounding_is_no_sign_of_other_weights() -> None:
    """Both scores of the trainer are rounded, so they seem to change more than the engine's, whose weights arrived."""
    random = np.random.default_rng(4)
    before, heard = -random.exponential(1.0, TOKENS), 0.004 * random.standard_normal(TOKENS)
    engine, rounding = 1e-4 * random.standard_normal(TOKENS), 1.2e-3 * random.standard_normal(TOKENS)
    report = verdict(
        trainer_previous=before,
        trainer=before + engine + rounding,
        previous=before + heard,
        new=before + heard + engine,
    )
    assert "the update is too small to be proved" in report.reason


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_policy_that_is_left_out_is_seen_though_its_absence_correlates(noise: float) -> None:
    """The base model answers instead of version 2: its change is minus version 1, a part of the trainer's change."""
    random = np.random.default_rng(5)
    base = -random.exponential(1.0, TOKENS)
    one, two = (base + 0.1 * random.standard_normal(TOKENS) for _ in range(2))
    heard = [values + noise * random.standard_normal(TOKENS) for values in (base, one)]
    report = verdict(new=heard[0], previous=heard[1], trainer=two, trainer_previous=one)
    assert report.correlation is not None
    assert report.correlation > 0.6
    assert "differ from the trainer's by" in report.reason


def test_half_an_update_is_seen() -> None:
    assert "differ from the trainer's by" in verdict(update=0.05, arrived=0.5).reason


def test_an_update_backwards_is_seen() -> None:
    assert not verdict(arrived=-1.0).passed


def test_another_base_model_is_named() -> None:
    report = verdict(previous=-np.full(TOKENS, 3.0), new=-np.full(TOKENS, 3.1))
    assert "already under version 3" in report.reason
    assert "another base model" in report.reason


def test_a_gap_is_told_in_nats() -> None:
    report = verdict(update=2.0, arrived=0.5)
    assert "differ from the trainer's by" in report.reason
    assert report.correlation == pytest.approx(1.0)


def test_sampling_that_is_not_what_is_scored_is_seen() -> None:
    report = verdict(sampled=[(np.array([-1.0, -2.0]), np.array([-1.5, -2.5]))])
    assert "cache" in report.reason
    assert report.sampled_gap == pytest.approx(0.5)


def test_without_the_trainers_old_scores_the_change_alone_counts() -> None:
    report = verdict(trainer_previous=None)
    assert report.passed
    assert (report.correlation, report.previous_gap, report.trainer_moved) == (None, None, None)
    assert not verdict(trainer_previous=None, arrived=0.0).passed


def test_probes_that_did_not_move_prove_nothing() -> None:
    report = verdict(update=0.0, noise=0.001)
    assert "prove nothing" in report.reason


def test_scores_that_are_no_numbers_are_refused() -> None:
    report = verdict(new=np.full(TOKENS, np.nan))
    assert "not finite" in report.reason


def test_few_tokens_need_a_higher_correlation() -> None:
    assert verdict(tokens=16).required_correlation == pytest.approx(0.9)
    assert verdict(tokens=100).required_correlation == pytest.approx(0.4)
    assert verdict(tokens=10_000).required_correlation == pytest.approx(0.2)
