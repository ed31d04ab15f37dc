"""The sampler's log-probs in place of the reference's forward pass."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from dpo_models import dpo_recipe, make_family, random_pairs, shake
from pydantic import ValidationError
from sightline_trainer.dpo.losses import fold_pairs
from sightline_trainer.dpo.reference_logprobs import add_reference, token_logprobs
from sightline_trainer.dpo.sampled import SampledLogprobs
from sightline_trainer.dpo.saving import save_policy
from sightline_trainer.dpo.setup import make_trainer

LAYOUT = [(prompt, 1, 2) for prompt in range(8)] + [(3, 1, 4), (5, 0, 2)]
CHECKED = {"p0", "p2", "p4", "p6"}
"""Every second of eight prompts: four at least."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("from-sampler") / "llava", "llava")


@pytest.fixture(scope="module")
def pairs(model: Path) -> Dataset:
    return random_pairs(model, LAYOUT)


def made(model: Path, pairs: Dataset, work: Path, previous: Path | None = None, **reference: Any) -> Any:
    recipe = dpo_recipe(model, reference={"from_sampler": True, **reference})
    return make_trainer(recipe, pairs, previous=previous, work=work, seed=0)


def told(trainer: Any, version: int = 0) -> SampledLogprobs:
    """All sides, as the trainer's own model scores them."""
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    values, masks = token_logprobs(trainer, batch), batch["completion_mask"][:, 1:].bool()
    sides = [(side, row) for side in ("chosen", "rejected") for row in rows]
    return SampledLogprobs(
        version,
        {
            (f"{row['prompt_id']}\n{row['prompt'][0]['content']}", tuple(row[f"{side}_ids"])): values[at][
                masks[at]
            ].tolist()
            for at, (side, row) in enumerate(sides)
        },
    )


def changed(sampled: SampledLogprobs, by: float, prompts: set[str]) -> SampledLogprobs:
    """The same with other log-probs for some prompts."""
    return SampledLogprobs(
        sampled.version,
        {
            (name, ids): [each + by * (name.partition("\n")[0] in prompts) for each in values]
            for (name, ids), values in sampled.logprobs.items()
        },
    )


def known(trainer: Any) -> torch.Tensor:
    """[2, B] sums of the reference's log-probs."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    return torch.stack([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])


def rows_computed(trainer: Any, sampled: SampledLogprobs | None, **how: Any) -> tuple[int, dict[str, float]]:
    """How many pairs went through the model, and the gaps."""
    seen = 0
    batches = trainer.data_collator.batches

    def counted(rows: list[Any], size: int) -> Any:
        nonlocal seen
        seen += len(rows)
        return batches(rows, size)

    trainer.data_collator.batches = counted
    found = add_reference(trainer, lambda done, total: None, sampled=sampled, **how)
    trainer.data_collator.batches = batches
    return seen, found


def test_the_samplers_sums_are_the_references(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    plain = make_trainer(dpo_recipe(model), pairs, previous=None, work=tmp_path / "plain", seed=0)
    sampled = told(plain)
    assert rows_computed(plain, sampled, at_reference=True)[0] == 10
    assert plain.from_sampler is None
    trainer = made(model, pairs, tmp_path)
    seen, gaps = rows_computed(trainer, sampled, at_reference=True)
    assert seen == 4
    assert {name.split()[0] for name in gaps} == CHECKED
    assert trainer.from_sampler == 0.6
    assert torch.allclose(known(trainer), known(plain), atol=1e-4)


def test_a_prompt_that_is_not_checked_takes_what_was_told(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    trainer = made(model, pairs, tmp_path)
    sampled = told(trainer)
    rows_computed(trainer, changed(sampled, 1.0, {"p1"}), at_reference=True)
    moved = known(trainer)
    rows_computed(trainer, sampled, at_reference=True)
    tokens = torch.tensor([[len(pairs[1]["chosen_ids"])], [len(pairs[1]["rejected_ids"])]], dtype=torch.float32)
    apart = moved - known(trainer)
    assert torch.allclose(apart[:, 1:2], tokens, atol=1e-4)
    assert apart[:, [0, *range(2, 10)]].abs().max() < 1e-4


def test_all_are_computed_if_a_checked_prompt_differs(
    model: Path, pairs: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = made(model, pairs, tmp_path)
    sampled = told(trainer)
    plain = make_trainer(dpo_recipe(model), pairs, previous=None, work=tmp_path / "plain", seed=0)
    add_reference(plain, lambda done, total: None)
    with caplog.at_level(logging.WARNING):
        seen, gaps = rows_computed(trainer, changed(sampled, 0.002, {"p4", "p5"}), at_reference=True)
    assert (seen, trainer.from_sampler) == (10, 0.0)
    assert {name for name, gap in gaps.items() if gap > 1e-3} == {
        f"{prompt} {side} {index}"
        for prompt, side, index in (
            ("p4", "chosen", 1),
            ("p4", "rejected", 2),
            ("p5", "chosen", 1),
            ("p5", "chosen", 0),
            ("p5", "rejected", 2),
        )
    }
    assert torch.allclose(known(trainer), known(plain), atol=1e-5)
    assert "computed for all pairs" in caplog.text


def test_sides_that_the_sampler_did_not_tell_are_computed(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    trainer = made(model, pairs, tmp_path)
    sampled = told(trainer)
    add_reference(trainer, lambda done, total: None)
    whole = known(trainer)
    some = {key: values for key, values in sampled.logprobs.items() if not key[0].startswith(("p7", "p1"))}
    seen, _ = rows_computed(trainer, SampledLogprobs(0, some), at_reference=True)
    # Of the six prompts that were told, p0, p2, p3, p4, p5 and p6, all are checked that four need.
    assert seen == 10
    assert torch.allclose(known(trainer), whole, atol=1e-5)
    assert rows_computed(trainer, None, at_reference=True)[0] == 10


def test_a_previous_policy_that_sampled_is_its_own_reference(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    first = made(model, pairs, tmp_path / "one")
    shake(first.model)
    policy = tmp_path / "v000001"
    policy.mkdir()
    save_policy(first, policy)
    sampled = told(first, 1)
    trainer = made(model, pairs, tmp_path, policy, of={"previous": 1.0})
    assert rows_computed(trainer, sampled)[0] == 4
    rows = trainer.data_collator(list(trainer.train_dataset))
    own = token_logprobs(trainer, rows).sum(dim=1).view(2, -1)
    assert torch.allclose(known(trainer), own, atol=1e-4)
    # The base model is another, and so is a policy that was published further than it was trained.
    other = made(model, pairs, tmp_path / "base", policy)
    assert rows_computed(other, sampled)[0] == 20  # the reference, and the comparison with the sampler
    further = made(model, pairs, tmp_path / "further", policy, of={"previous": 1.0})
    assert rows_computed(further, sampled, extrapolate=0.5)[0] == 20


def test_both_rejected_sides_are_told(model: Path, tmp_path: Path) -> None:
    layout = [(prompt, 1, rejected) for prompt in range(8) for rejected in (2, 3)]
    pairs = random_pairs(model, layout)
    folded, alone = fold_pairs(pairs)
    assert (len(folded), alone) == (8, 0)
    sampled = told(made(model, pairs, tmp_path / "told"))
    trainer = made(model, folded, tmp_path)
    add_reference(trainer, lambda done, total: None)
    whole = known(trainer)
    assert rows_computed(trainer, sampled, at_reference=True)[0] == 4
    assert torch.allclose(known(trainer), whole, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"dtype": "bfloat16"}, "dpo.dtype=bfloat16"),
        ({"ld_alpha": 0.5}, "dpo.ld_alpha"),
        ({"token_weights": {"by": "suffix"}}, "dpo.token_weights.by=suffix"),
        ({"loss": {"sigmoid": 1.0, "image": 1.0}}, "the loss image"),
        ({"guidance": {"scale": 1.5}}, "dpo.guidance"),
    ],
)
def test_settings_that_need_the_pass_are_refused(model: Path, more: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=f"from_sampler .*{named}"):
        dpo_recipe(model, reference={"from_sampler": True}, **more)
