"""Batches bounded by tokens: gradient, loss and figures equal those of the whole batch."""

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from dpo_models import dpo_recipe, make_family, random_pairs, shake
from sightline_trainer.dpo.losses import fold_pairs
from sightline_trainer.dpo.parts import PARTS, parts_of, shares, within
from sightline_trainer.dpo.reference_logprobs import add_reference
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.dpo.update import update

LAYOUT = [(0, 1, 2), (0, 1, 3), (0, 4, 1), (1, 4, 0), (2, 0, 3), (3, 2, 1)]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("llava") / "model", "llava")


def made(model: Path, work: Path, *, folded: bool = False, weights: bool = False, **dpo: Any) -> Any:
    pairs = random_pairs(model, LAYOUT)
    if weights:
        pairs = pairs.remove_columns("weight").add_column("weight", [1.0, 0.5, 2.0, 1.0, 0.25, 1.5])
    if folded:
        pairs = fold_pairs(random_pairs(model, [(0, 1, 2), (0, 1, 3), (1, 4, 0), (1, 4, 2)]))[0]
    trainer = make_trainer(dpo_recipe(model, **dpo), pairs, previous=None, work=work, seed=0)
    add_reference(trainer, lambda done, total: None)
    shake(trainer.model)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def step(trainer: Any, budget: int | None) -> tuple[float, torch.Tensor, dict[str, float], dict[str, list[float]], int]:
    trainer.data_collator.budget = budget
    trainer.figures.clear()
    trainer._metrics["train"].clear()
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, batch)
    gradient = torch.cat([each.grad.flatten() for each in trainer.model.parameters() if each.grad is not None])
    metrics = {name: list(values) for name, values in trainer._metrics["train"].items()}
    return loss.item(), gradient, trainer.figures[-1], metrics, len(parts_of(batch))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"shared_prefix": False},
        {"loss": {"sigmoid": 1.0, "sft": 0.3}},
        {"loss": {"sigmoid": 1.0, "sft": 0.3}, "weights": True},
        {"loss": {"povid_paper": 1.0}, "folded": True},
        {"loss": {"povid_code": 1.0, "sft": 0.1}, "folded": True, "shared_prefix": False},
        {"loss": {"ipo": 0.5, "sppo_hard": 1.0}, "ld_alpha": 0.5},
        {"wpo": True},
    ],
)
def test_parts_have_the_gradient_of_their_batch(values: dict[str, Any], llava: Path, tmp_path: Path) -> None:
    trainer = made(llava, tmp_path, **values)
    loss, gradient, figures, metrics, one = step(trainer, None)
    apart, theirs, measured, told, count = step(trainer, 60)
    assert one == 1
    assert count >= 2
    assert apart == pytest.approx(loss, rel=1e-5)
    assert (theirs - gradient).norm() <= 1e-5 * gradient.norm()
    assert measured == pytest.approx(figures, rel=1e-4, abs=1e-5)
    for name in ("rewards/margins", "rewards/accuracies", "logps/chosen"):
        # As TRL logs them: the mean of what was put down.
        assert mean(told[name]) == pytest.approx(mean(metrics[name]), rel=1e-4, abs=1e-5)


def test_a_part_has_at_most_so_many_tokens_or_one_pair(llava: Path, tmp_path: Path) -> None:
    trainer = made(llava, tmp_path)
    trainer.data_collator.budget = 60
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    packs = [part["shared_prefix"] for part in batch[PARTS]]
    assert all(pack.input_ids.shape[1] <= 60 or part["completion_mask"].shape[0] == 2 for pack, part in zip(
        packs, batch[PARTS], strict=True))  # fmt: skip
    assert sum(share for share, _ in shares(batch[PARTS])) == pytest.approx(1.0)
    assert [len(group) for group in within(list(range(5)), 2, len)] == [2, 2, 1]
    assert within([7], 1, lambda some: 9) == [[7]]


def test_a_bound_of_tokens_costs_no_second_call_of_the_processor(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = made(llava, tmp_path, shared_prefix=False)
    collator, called = trainer.data_collator, list[str]()
    process = collator.family.process

    def counted(rendered: str, *more: Any) -> Any:
        called.append(rendered)
        return process(rendered, *more)

    monkeypatch.setattr(collator.family, "process", counted)
    rows = list(trainer.train_dataset)
    prompts = len({row["prompt_id"] for row in rows})
    whole = collator(rows)
    assert len(called) == prompts
    collator.budget = 60
    parts = collator(rows)[PARTS]
    assert len(called) == 2 * prompts
    batches = list(collator.batches(rows, len(rows)))
    assert len(called) == 3 * prompts
    assert [len(some) for some, _ in batches] == [len(part["input_ids"]) // 2 for part in parts]
    assert sum(len(batch["pixel_values"]) for _, batch in batches) == len(whole["pixel_values"])


def test_an_update_in_parts_is_the_update(llava: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pairs = random_pairs(llava, LAYOUT)
    values = {"batch_size": 2, "accumulate": 2, "epochs": 2, "loss": {"sigmoid": 1.0, "sft": 0.2}}
    metrics, adapters = [], []
    for budget in (None, 40):
        recipe, work = dpo_recipe(llava, **values, batch_tokens=budget), tmp_path / str(budget)
        done = update(
            recipe, pairs, previous=None, adapter=work / "policy", work=work, seed=0, progress=lambda *_: None
        )
        metrics.append({k: v for k, v in done.metrics.items() if "seconds" not in k and not k.startswith("pairs_per")})
        adapters.append(load_file(work / "policy/adapter_model.safetensors"))
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-3, abs=1e-4)
    for name, tensor in adapters[0].items():
        assert torch.allclose(adapters[1][name], tensor, rtol=1e-3, atol=1e-5), name


def test_a_loss_that_sorts_the_batch_has_no_parts(llava: Path) -> None:
    with pytest.raises(ValueError, match="aot need whole"):
        dpo_recipe(llava, batch_tokens=100, loss={"aot": 1.0})
