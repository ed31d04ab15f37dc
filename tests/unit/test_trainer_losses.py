"""Weights and margins per pair, POVID's two forms, carried optimiser state and trackers, against numbers by hand."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from dpo_models import dpo_recipe, make_family, random_pairs, shake
from PIL import Image
from sightline.errors import PreconditionFailed
from sightline_trainer.dpo.loss_names import NAMES
from sightline_trainer.dpo.losses import check_losses, fold_pairs
from sightline_trainer.dpo.probing import probe
from sightline_trainer.dpo.reference_logprobs import add_reference, token_logprobs
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.dpo.update import update
from torch.nn.functional import logsigmoid

LAYOUT = [(0, 1, 2), (0, 1, 3), (1, 4, 0), (1, 4, 5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("losses") / "llava", "llava")


@pytest.fixture
def pairs(model: Path) -> Dataset:
    return random_pairs(model, LAYOUT)


def with_column(pairs: Dataset, name: str, values: list[Any]) -> Dataset:
    return Dataset.from_list(
        [{**row, name: value} for row, value in zip(pairs, values, strict=True)], features=pairs.features
    )


def prepared(model: Path, pairs: Dataset, work: Path, **dpo: Any) -> Any:
    trainer = make_trainer(dpo_recipe(model, **dpo), pairs, previous=None, work=work, seed=0)
    add_reference(trainer, lambda done, total: None)
    shake(trainer.model)
    return trainer


def loss_of(trainer: Any) -> torch.Tensor:
    trainer.model.train()
    return trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))


def logratios(trainer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi - log ref of chosen and rejected sides."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    chosen, rejected = token_logprobs(trainer, batch).sum(dim=1).chunk(2)
    return chosen - batch["ref_chosen_logps"], rejected - batch["ref_rejected_logps"]


def test_weights_multiply_the_pairs_losses_and_gradients(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    weights = [0.0, 2.0, 0.5, 1.0]
    trainer = prepared(model, with_column(pairs, "weight", weights), tmp_path)
    chosen, rejected = logratios(trainer)
    expected = (torch.tensor(weights) * -logsigmoid(0.1 * (chosen - rejected))).mean()
    loss = loss_of(trainer)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    weighted = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    # The same by leaving the first pair out and taking the second one twice.
    rows = [1, 1, 2, 3]
    doubled = prepared(model, with_column(pairs.select(rows), "weight", [1.0, 1.0, 0.5, 1.0]), tmp_path)
    again = loss_of(doubled)
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)
    again.backward()
    for name, parameter in doubled.model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, weighted[name], rtol=1e-3, atol=1e-6), name


def test_weights_of_one_change_nothing(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    plain = prepared(model, pairs, tmp_path)
    ones = prepared(model, with_column(pairs, "weight", [1.0] * 4), tmp_path)
    ones.data_collator.columns = ("weight",)
    assert loss_of(ones).item() == pytest.approx(loss_of(plain).item(), rel=1e-6)


@pytest.mark.field
@pytest.mark.parametrize("loss", [{"sigmoid": 1.0, "sft": 0.5}, {"sft": 1.0}, {"bco_pair": 1.0, "sft": 0.5}])
def test_a_weight_does_not_change_what_sft_means(
    model: Path, pairs: Dataset, tmp_path: Path, loss: dict[str, float]
) -> None:
    """TRL's sft is the mean over the tokens of the batch; long and short responses keep their share under weights."""
    lengths = [2, 9, 4, 6]
    rows = [{**row, "chosen_ids": (row["chosen_ids"] * 9)[:n]} for row, n in zip(pairs, lengths, strict=True)]
    uneven = Dataset.from_list(rows, features=pairs.features)
    plain = prepared(model, uneven, tmp_path, loss=loss)
    ones = prepared(model, with_column(uneven, "weight", [1.0] * 4), tmp_path, loss=loss)
    ones.data_collator.columns = ("weight",)
    assert loss_of(ones).item() == pytest.approx(loss_of(plain).item(), rel=1e-5)
    weights = [0.0, 2.0, 0.5, 1.0]
    only = prepared(model, with_column(uneven, "weight", weights), tmp_path, loss={"sft": 1.0})
    chosen = token_logprobs(only, only.data_collator(list(only.train_dataset))).sum(dim=1).chunk(2)[0]
    expected = -(torch.tensor(weights) * chosen).sum() / sum(lengths)
    assert loss_of(only).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.field
def test_both_rejected_sides_of_povid_keep_their_own_weight(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    weighted = with_column(pairs, "weight", [1.0, 3.0, 1.0, 3.0])
    folded, _ = fold_pairs(weighted)
    trainer = prepared(model, folded, tmp_path, loss={"povid_code": 1.0})
    chosen, rejected = logratios(trainer)
    each = -logsigmoid(0.1 * (chosen - rejected))
    expected = (each * torch.tensor([1.0, 1.0, 3.0, 3.0])).mean()
    assert loss_of(trainer).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_margin_is_what_the_chosen_side_must_win_by(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    """ODPO (Amini et al. 2024, arXiv 2402.10571): -log sigmoid(beta * (difference of log-ratios) - margin)."""
    margins = [0.0, 1.0, 4.0, 10.0]
    trainer = prepared(model, with_column(pairs, "margin", margins), tmp_path, margin_scale=0.2)
    chosen, rejected = logratios(trainer)
    expected = -logsigmoid(0.1 * (chosen - rejected) - 0.2 * torch.tensor(margins)).mean()
    assert loss_of(trainer).item() == pytest.approx(expected.item(), rel=1e-5)
    # The figures are those of the policy, without the margin.
    assert trainer.figures[-1]["margin"] == pytest.approx((0.1 * (chosen - rejected)).mean().item(), rel=1e-4)
    assert trainer.figures[-1]["logratio_to_reference"] == pytest.approx(
        ((chosen + rejected) / 2).mean().item(), rel=1e-4
    )


def noised(pairs: Dataset) -> Dataset:
    """Every second pair has another image for its rejected side."""
    rows = []
    for number, row in enumerate(pairs):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        images = [{"bytes": out.getvalue(), "path": "n.png"}] if number % 2 else row["images"]
        rows.append({**row, "rejected_images": images, "rejected_source": "noised_image" if number % 2 else "injected"})
    features = pairs.features.copy()
    features["rejected_images"] = features["images"]
    return Dataset.from_list(rows, features=features)


def test_povids_paper_form_is_one_log_sigmoid_over_two_rejected_sides(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    folded, left = fold_pairs(noised(pairs))
    assert (len(folded), left) == (2, 0)
    trainer = prepared(model, folded, tmp_path, loss={"povid_paper": 1.0}, povid_betas=(0.03, 0.07))
    chosen, rejected = logratios(trainer)
    # As pairs of their own, each with its own image on each side.
    apart = prepared(model, noised(pairs), tmp_path)
    single_chosen, single_rejected = logratios(apart)
    assert rejected.tolist() == pytest.approx(single_rejected[[0, 2, 1, 3]].tolist(), abs=1e-4)
    assert chosen.tolist() == pytest.approx(single_chosen[[0, 2, 1, 3]].tolist(), abs=1e-4)
    r_w, r_t, r_n = chosen[:2], rejected[:2], rejected[2:]
    expected = -logsigmoid(0.1 * r_w - 0.03 * r_t - 0.07 * r_n).mean()
    assert loss_of(trainer).item() == pytest.approx(expected.item(), rel=1e-5)


def test_povids_code_form_is_the_mean_of_two_dpo_losses(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    folded, _ = fold_pairs(pairs)
    trainer = prepared(model, folded, tmp_path, loss={"povid_code": 1.0})
    chosen, rejected = logratios(trainer)
    first = -logsigmoid(0.1 * (chosen[:2] - rejected[:2])).mean()
    second = -logsigmoid(0.1 * (chosen[2:] - rejected[2:])).mean()
    assert loss_of(trainer).item() == pytest.approx(((first + second) / 2).item(), rel=1e-5)


def test_probes_of_povid_are_each_responses_own(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    """Responses have different lengths, so the next row of the batch belongs to another response."""
    lengths = [2, 9, 4, 6]
    rows = [{**row, "rejected_ids": (row["rejected_ids"] * 9)[:n]} for row, n in zip(pairs, lengths, strict=True)]
    uneven = Dataset.from_list(rows, features=pairs.features)
    apart = probe(prepared(model, uneven, tmp_path), range(len(rows)))
    alone = {(each.prompt_id, tuple(each.token_ids)): each.logprobs for each in apart}
    folded, _ = fold_pairs(uneven)
    found = probe(prepared(model, folded, tmp_path, loss={"povid_code": 1.0}), range(len(folded)))
    assert {len(each.token_ids) for each in found} >= {2, 4}
    for each in found:
        assert each.logprobs == pytest.approx(alone[each.prompt_id, tuple(each.token_ids)], abs=1e-5)


def test_pairs_without_a_partner_are_left_out_of_povid(model: Path) -> None:
    pairs = random_pairs(model, [(0, 1, 2), (0, 1, 3), (1, 4, 0)])
    folded, left = fold_pairs(pairs)
    assert (len(folded), left) == (1, 1)
    assert folded[0]["second_rejected_ids"] == pairs[1]["rejected_ids"]
    with pytest.raises(PreconditionFailed, match="two rejected sides"):
        fold_pairs(pairs.select([0, 2]))


@pytest.mark.parametrize(
    ("losses", "values", "fault"),
    [
        ({"sigmod": 1.0}, {}, "sigmod"),
        ({}, {}, "nothing"),
        ({"ipo": 1.0}, {"margins": True}, "margin_scale"),
        ({"aot": 1.0}, {"weights": True}, "sort"),
        ({"exo_pair": 1.0}, {}, "label_smoothing"),
        ({"povid_paper": 1.0, "povid_code": 1.0}, {}, "both"),
    ],
)
def test_losses_that_can_not_be_meant_are_refused(losses: dict[str, float], values: dict[str, Any], fault: str) -> None:
    with pytest.raises(PreconditionFailed, match=fault):
        check_losses(losses, **{"margins": False, "weights": False, "label_smoothing": 0.0, **values})


def test_the_names_are_all_that_trl_has() -> None:
    import inspect
    import re

    from trl import DPOTrainer

    known = set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer._compute_loss)))
    assert known
    assert known <= set(NAMES)


@pytest.mark.slow
def test_an_optimisers_state_and_the_schedule_go_on_where_the_recipe_says(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    """Two iterations with carry are, step by step, one of twice the length: same rates, same Adam."""
    recipe = dpo_recipe(model, carry="optimizer", batch_size=4, learning_rate=1e-3, warmup_ratio=0.0)
    recipe = recipe.model_copy(update={"iterations": 2})
    common: dict[str, Any] = {"work": tmp_path / "work", "seed": 0, "progress": lambda done, total: None}
    update(recipe, pairs, previous=None, adapter=tmp_path / "v1", iteration=1, **common)
    second = update(recipe, pairs, previous=tmp_path / "v1", adapter=tmp_path / "v2", iteration=2, **common)
    assert (tmp_path / "work/optimizer-0002").is_dir()
    longer = dpo_recipe(model, batch_size=4, learning_rate=1e-3, warmup_ratio=0.0, epochs=2)
    whole = update(longer, pairs, previous=None, adapter=tmp_path / "w", **{**common, "work": tmp_path / "other"})
    assert second.probes[0].logprobs == pytest.approx(whole.probes[0].logprobs, abs=1e-4)
    fresh = update(
        recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update={"carry": "none"})}),
        pairs, previous=tmp_path / "v1", adapter=tmp_path / "v3", iteration=2, **common,
    )  # fmt: skip
    assert fresh.probes[0].logprobs != pytest.approx(whole.probes[0].logprobs, abs=1e-3)


def test_a_full_checkpoint_goes_on_and_the_reference_stays_the_base(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    recipe = dpo_recipe(model, train="full", learning_rate=1e-3, report_to=["tensorboard"])
    common: dict[str, Any] = {"seed": 0, "progress": lambda done, total: None, "work": tmp_path / "work"}
    first = update(recipe, pairs, previous=None, adapter=tmp_path / "v1", **common)
    assert (tmp_path / "v1/model.safetensors").exists()
    second = update(recipe, pairs, previous=tmp_path / "v1", adapter=tmp_path / "v2", iteration=2, **common)
    assert second.metrics["margin"] > first.metrics["margin"] > 0 or math.isclose(first.metrics["margin"], 0.0)
    # Before its first step, the second update already differs from the base model.
    trainer = make_trainer(recipe, pairs, previous=tmp_path / "v1", work=tmp_path / "x", seed=0)
    add_reference(trainer, lambda done, total: None)
    assert logratios(trainer)[0].abs().max() > 1e-3
    assert list((tmp_path / "work").rglob("events.out.tfevents.*")), "report_to=tensorboard wrote nothing"
