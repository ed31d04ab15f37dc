"""The report, from the field: a true KL, a meaning beside every curve, and flags on what is wrong."""

import html
import math
import re
from pathlib import Path

import numpy as np
import pytest
from sightline_trainer.evaluation.divergence import k3
from sightline_trainer.report.history import History
from sightline_trainer.report.meanings import MEANINGS
from sightline_trainer.report.page import page
from sightline_trainer.runs import RunDirectory

pytestmark = pytest.mark.field

RECIPE = {"name": "clip_dpo", "model": "llava", "seed": 0}


def history(root: Path, **update: float) -> History:
    rows = [
        {
            "iteration": float(number), "policy_version": float(number), "pairs": 1.0, "seconds": 1.0,
            "chair_s": 0.5, "greedy_chair_s": 0.4, "chair_i": 0.2, "cover": 0.8, "clip_score": 60.0 + number,
            "mean_tokens": 20.0, "pope_f1": 0.8, "kl_to_base": 3.5 * number,
        }
        for number in (0, 1)
    ]  # fmt: skip
    base = {"chosen_logp": -20.0, "rejected_logp": -25.0, "margin": 0.2, "accuracy": 0.7, "logratio_to_reference": -2.6}
    counts = {1: {"pairs": 5, "prompt_gap": 2}}
    return History(RunDirectory(root), RECIPE, {}, rows, {1: base | update}, counts, {1: {"sample": 2.0}})


def test_k3_is_the_kl_on_the_policys_own_samples_and_never_negative() -> None:
    """Exact, over all tokens of a vocabulary weighted by probability: sum p (r - 1 - log r) = KL(p || q)."""
    rng = np.random.default_rng(0)
    policy, base = rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(20))
    expected = float((policy * np.log(policy / base)).sum())
    terms = [k3([math.log(p)], [math.log(q)]) for p, q in zip(policy, base, strict=True)]
    assert min(terms) >= 0
    assert float(policy @ np.array(terms)) == pytest.approx(expected, rel=1e-9)
    # A mean log-ratio over texts of another policy, which was shown as the KL, is negative here.
    assert float(base @ np.log(policy / base)) < 0
    # Texts are sums over their tokens; a token that one side rules out gives a number.
    assert k3([-1.0, -2.0], [-1.5, -0.5]) == pytest.approx(k3([-1.0], [-1.5]) + k3([-2.0], [-0.5]))
    assert math.isfinite(k3([-1.0, -1e9], [-math.inf, -1.0]))


def test_every_curve_says_what_it_means_and_when_to_worry(tmp_path: Path) -> None:
    found = page([history(tmp_path)], pictures=0)
    figures = re.findall(r"<figure.*?</figure>", html.unescape(found), re.DOTALL)
    assert len(figures) == len(MEANINGS) == 12
    for figure in figures:
        assert any(meaning in figure for meaning in MEANINGS.values()), figure[:120]
    for meaning in MEANINGS.values():
        assert "orry" in meaning or "should" in meaning
        assert meaning.endswith(".")
    assert "KL from the base model" in found
    assert "to the reference" not in found
    both = page([history(tmp_path / "a"), history(tmp_path / "b")], pictures=0)
    for figure in re.findall(r"<figure.*?</figure>", html.unescape(both), re.DOTALL):
        assert any(meaning in figure for meaning in MEANINGS.values())


@pytest.mark.parametrize(
    ("update", "flag"),
    [
        ({"margin": -0.03}, "margin is below 0, so the rejected texts gained more: -0.03 in iteration 1"),
        ({"accuracy": 0.46}, "accuracy is below 0.5, worse than chance: 0.46 in iteration 1"),
    ],
)
def test_a_margin_below_0_and_an_accuracy_below_a_coin_are_flagged(
    tmp_path: Path, update: dict[str, float], flag: str
) -> None:
    found = page([history(tmp_path, **update)], pictures=0)
    assert found.count(f">{flag}<") == 2, "at the top and at the curve"
    assert "data-worry" not in page([history(tmp_path)], pictures=0)
    beside = page([history(tmp_path / "good"), history(tmp_path / "bad", **update)], pictures=0)
    assert beside.count("data-worry") == 1


def test_hacked_rewards_and_a_far_policy_are_flagged(tmp_path: Path) -> None:
    run = history(tmp_path)
    run.rows[1] |= {"chair_s_change_low": 0.01, "kl_to_base": 80.0}
    found = page([run], pictures=0)
    assert "so is CHAIR_s: reward hacking" in found
    assert "kl_to_base is above 50: 80 in iteration 1" in found
