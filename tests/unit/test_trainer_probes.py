"""Probes of an update: their number follows its size."""

import numpy as np
import pytest
from sightline_sampler.policies.gate import judge
from sightline_sampler.settings import GateSettings
from sightline_trainer.dpo.probes import responses_needed, tokens_needed


def responses(change: float, length: int = 20, count: int = 64) -> tuple[list[list[float]], list[list[float]]]:
    random = np.random.default_rng(0)
    before = [(-random.exponential(1, length)).tolist() for _ in range(count)]
    after = [(np.array(each) + random.normal(0, change, length)).tolist() for each in before]
    return before, after


@pytest.mark.parametrize(
    ("change", "dtype", "length", "count"),
    [
        (0.3, "float32", 20, 8),
        (0.3, "bfloat16", 20, 8),
        (0.05, "bfloat16", 20, 10),
        (0.03, "bfloat16", 20, 21),
        (0.001, "bfloat16", 20, None),
        (0.3, "float32", 3, 22),
    ],
)
def test_the_smaller_the_update_the_more(change: float, dtype: str, length: int, count: int | None) -> None:
    needed = responses_needed(*responses(change, length), dtype)
    assert needed is None if count is None else needed == pytest.approx(count, abs=2)


def test_what_is_sent_passes_the_gate_and_old_weights_do_not() -> None:
    """With 0.05 nats of noise, eight short answers prove nothing about a small update; the probes sent do."""
    random = np.random.default_rng(1)
    before, after = responses(0.04, length=6)
    count = responses_needed(before, after, "bfloat16")

    def verdict(number: int, arrived: bool) -> bool:
        old, new = (np.concatenate([np.array(each) for each in side[:number]]) for side in (before, after))
        noisy = [values + random.normal(0, 0.05, len(values)) for values in (old, new if arrived else old)]
        return judge(
            GateSettings(), engine="e", previous_version=0, probes=number, new=noisy[1], previous=noisy[0], trainer=new,
            trainer_previous=old,
        ).passed  # fmt: skip

    assert sum(verdict(8, True) for _ in range(50)) < 40
    assert sum(verdict(count, True) for _ in range(50)) >= 49
    assert not any(verdict(count, False) for _ in range(50))


def test_a_number_is_as_it_is() -> None:
    assert tokens_needed(0.0, "float32") == tokens_needed(1e-9, "bfloat16") == 1600
