"""Extra rows, views and our own losses: numbers by hand, and the same rows with and without the shared prefix."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from dpo_models import FAMILIES, dpo_recipe, make_family, random_pairs, shake
from PIL import Image
from sightline.errors import PreconditionFailed
from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.dpo.doubts import Doubts
from sightline_trainer.dpo.loss_names import CHOSEN_AT_VIEW, EXTRA_ROWS, OWN, OWN_RESPONSE, loss_fault
from sightline_trainer.dpo.method import Doubt, View
from sightline_trainer.dpo.own_losses import OWN_LOSSES, Sides, nearness
from sightline_trainer.dpo.reference_logprobs import add_reference, self_check, token_logprobs
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.dpo.views import Shown

LAYOUT = [(0, 1, 2), (0, 1, 3), (1, 4, 0), (1, 4, 5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("methods") / "llava", "llava")


@pytest.fixture(scope="module")
def pairs(model: Path) -> Dataset:
    return random_pairs(model, LAYOUT)


def prepared(model: Path, pairs: Dataset, work: Path, **dpo: Any) -> Any:
    """A trainer whose policy differs from its reference."""
    trainer = make_trainer(dpo_recipe(model, **dpo), pairs, previous=None, work=work, seed=0)
    add_reference(trainer, lambda done, total: None)
    shake(trainer.model)
    return trainer


def loss_of(trainer: Any) -> torch.Tensor:
    trainer.model.train()
    loss: torch.Tensor = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
    return loss


def ratios(trainer: Any) -> torch.Tensor:
    """[2 + E, B] log pi - log ref of all rows, from plain forward passes of the collator's batch."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    sums = token_logprobs(trainer, batch).sum(dim=1).view(2 + len(trainer.extras), -1)
    known = [batch["ref_chosen_logps"], batch["ref_rejected_logps"], *batch.get("ref_extra_logps", [])]
    return sums - torch.stack(known)


def sides(**values: Any) -> Sides:
    """Two pairs: r(y_w) = 2, -1; r(y_l) = 1, 1; r(y_w at view) = 0, 3; beta 0.5."""
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0])
    given: dict[str, Any] = {
        "beta": 0.5,
        "chosen": chosen,
        "rejected": rejected,
        "difference": chosen - rejected,
        "extras": {CHOSEN_AT_VIEW: torch.tensor([0.0, 3.0])},
    }
    return Sides(**{**given, **values})


def nls(x: float) -> float:
    """-log sigmoid."""
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image", [nls(0.5 * (2 - 0)), nls(0.5 * (-1 - 3))]),
        ("image_joint", [nls(0.5 * (1 + 2 - 0)), nls(0.5 * (-2 - 1 - 3))]),
        ("anchor", [nls(0.5 * 2), nls(0.5 * -1)]),
    ],
)
def test_an_own_loss_of_two_pairs_by_hand(name: str, expected: list[float]) -> None:
    assert OWN_LOSSES[name](sides()).tolist() == pytest.approx(expected, rel=1e-6)


def test_every_own_loss_has_its_name_where_recipes_are_read() -> None:
    assert set(OWN_LOSSES) == set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_a_loss_reads_the_further_row_that_is_named_and_no_other(name: str) -> None:
    known = {"doubt": torch.zeros(2), "nearness": torch.eye(2)}
    needed = {EXTRA_ROWS[name]: torch.ones(2)} if name in EXTRA_ROWS else {}
    assert OWN_LOSSES[name](sides(extras=needed, **known)).isfinite().all()
    if needed:
        with pytest.raises(KeyError):
            OWN_LOSSES[name](sides(extras={}, **known))


@pytest.mark.parametrize("loss", [{"sigmoid": 1.0, "image": 0.7, "anchor": 0.3}, {"image_joint": 1.0}])
@pytest.mark.parametrize("shared", [True, False])
def test_mdpo_and_chip_are_the_written_formula(
    model: Path, pairs: Dataset, tmp_path: Path, loss: dict[str, float], shared: bool
) -> None:
    """Value and gradient equal autograd of the formula, on plain rows and on the shared prefix."""
    trainer = prepared(model, pairs, tmp_path, loss=loss, view={"kind": "diffusion", "step": 700}, shared_prefix=shared)
    loss_of(trainer).backward()
    got = {name: each.grad.clone() for name, each in trainer.model.named_parameters() if each.grad is not None}
    value = loss_of(trainer).item()
    trainer.model.zero_grad()

    batch = trainer.data_collator(list(trainer.train_dataset))
    known = torch.cat([batch["ref_chosen_logps"][None], batch["ref_rejected_logps"][None], batch["ref_extra_logps"]])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    kept = {k: v for k, v in batch.items() if not k.startswith("ref_") and k != "completion_mask"}
    output = trainer.model(**kept, labels=labels, use_cache=False, fused_lm_head=True)
    w, r, v = output.log_probs.sum(dim=1).view(3, -1) - known
    assert (v - w).abs().min() > 1e-3, "the view shows the picture as it is"
    sigmoid = torch.nn.functional.logsigmoid
    if "anchor" in loss:
        expected = -(sigmoid(0.1 * (w - r)) + 0.7 * sigmoid(0.1 * (w - v)) + 0.3 * sigmoid(0.1 * w)).mean()
    else:
        expected = -sigmoid(0.1 * ((w - r) + (w - v))).mean()
    assert value == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, each in trainer.model.named_parameters():
        if each.grad is not None:
            assert torch.allclose(each.grad, got[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("kind", ["blank", "diffusion", "pixel", "crop"])
def test_views_are_the_same_with_and_without_the_shared_prefix(
    model: Path, pairs: Dataset, tmp_path: Path, kind: str
) -> None:
    trainer = prepared(model, pairs, tmp_path, loss={"image": 1.0}, view={"kind": kind, "step": 900})
    assert self_check(trainer, pairs=4) < 1e-4
    rows = list(trainer.train_dataset)
    plain = PairCollator(trainer.data_collator.family, extras=trainer.extras)
    plain.reference = trainer.data_collator.reference
    packed, again = trainer.data_collator(rows), plain(rows)
    assert "shared_prefix" in packed
    assert "shared_prefix" not in again
    trainer.model.train()
    losses = [trainer.compute_loss(trainer.model, batch).item() for batch in (packed, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # The picture is seen less, or differently.
    assert (ratios(trainer)[2] - ratios(trainer)[0]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llava"])
@pytest.mark.parametrize("kind", ["blank", "diffusion", "crop"])
def test_views_hold_in_other_families(tmp_path: Path, family: str, kind: str) -> None:
    """Views change tiles and patches too; a crop keeps the picture's size, so the number of tokens stays."""
    other = make_family(tmp_path / family, family)
    pairs = random_pairs(other, LAYOUT)
    trainer = prepared(other, pairs, tmp_path / "work", loss={"image": 1.0}, view={"kind": kind, "step": 900})
    assert self_check(trainer, pairs=4) < 1e-4
    assert (ratios(trainer)[2] - ratios(trainer)[0]).abs().max() > 1e-3
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert "shared_prefix" in batch
    prompts = batch["input_ids"].masked_fill(batch["completion_mask"] == 1, 0)
    assert torch.equal(prompts[: len(pairs)], prompts[2 * len(pairs) :])


def test_an_extra_row_with_weights_keeps_the_pairs_weight(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    weights = [0.0, 2.0, 0.5, 1.0]
    rows = [{**row, "weight": weight} for row, weight in zip(pairs, weights, strict=True)]
    weighted = Dataset.from_list(rows, features=pairs.features)
    trainer = prepared(model, weighted, tmp_path, loss={"sigmoid": 1.0, "image": 2.0})
    w, r, v = ratios(trainer)
    each = -torch.nn.functional.logsigmoid(0.1 * (w - r)) - 2 * torch.nn.functional.logsigmoid(0.1 * (w - v))
    assert loss_of(trainer).item() == pytest.approx((each * torch.tensor(weights)).mean().item(), rel=1e-5)
    assert trainer.figures[-1]["loss_image"] > 0


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def test_a_view_is_drawn_by_picture_and_seed_alone() -> None:
    for kind in ("pixel", "crop"):
        one, other = Shown(View(kind=kind), 1), Shown(View(kind=kind), 2)
        assert one.picture(picture(), "a") == one.picture(picture(), "a")
        assert one.picture(picture(), "a") != one.picture(picture(), "b")
        assert one.picture(picture(), "a") != other.picture(picture(), "a")
        assert one.picture(picture(), "a").size == (60, 40)
        assert one.named("a") != other.named("a")


def test_blank_and_diffusion_are_on_normalised_pixels() -> None:
    pixels = {"pixel_values": torch.full((1, 3, 64, 64), 2.0), "image_sizes": torch.tensor([[64, 64]])}
    blank = Shown(View(), 0).inputs(pixels, "a")
    assert blank["pixel_values"].abs().max() == 0
    assert blank["image_sizes"].tolist() == [[64, 64]]
    noisy = Shown(View(kind="diffusion", step=500), 0).inputs(pixels, "a")["pixel_values"]
    # Step 500 keeps 0.863 of the signal under noise of 0.505 (POVID's, VCD's and CHiP's schedule).
    assert noisy.mean().item() == pytest.approx(2 * 0.863, abs=0.02)
    assert noisy.std().item() == pytest.approx(0.505, abs=0.02)


def test_a_crop_shows_the_share_that_was_asked_for() -> None:
    whole = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (200, 1, 3)))
    for seed in range(20):
        piece = np.asarray(Shown(View(kind="crop", scale=(0.04, 0.04)), seed).picture(whole, "a"))
        # A fifth of the width, give or take the ratio of 3/4 to 4/3.
        assert 200 * 0.2 * 0.8 < int(piece.max()) - int(piece.min()) < 200 * 0.2 * 1.25
    thin = Image.new("RGB", (2, 900))
    assert Shown(View(kind="crop", scale=(0.9, 1.0)), 0).picture(thin, "a").size == (2, 900)


@pytest.mark.parametrize(
    ("losses", "values", "fault"),
    [
        ({"anchor": 1.0}, {"margins": True}, "margin_scale"),
        ({"image": 1.0, "sigmoid": 1.0}, {"wpo": True}, "wpo"),
        ({"image": 1.0}, {"divergence": "forward_kl"}, "f_divergence"),
    ],
)
def test_own_losses_that_can_not_be_meant_are_refused(
    losses: dict[str, float], values: dict[str, Any], fault: str
) -> None:
    given: dict[str, Any] = {"margins": False, "weights": False, "label_smoothing": 0.0, **values}
    assert fault in (loss_fault(losses, **given) or "")


def test_optimism_doubt_and_relative_preferences_of_two_pairs_by_hand() -> None:
    assert OWN_LOSSES["optimism"](sides(extras={OWN_RESPONSE: torch.tensor([-4.0, 1.0])})).tolist() == [-2.0, 0.5]
    # D = 1, -2; only the second pair is doubted.
    doubted = OWN_LOSSES["cdpo"](sides(doubt=torch.tensor([0.0, 0.1]))).tolist()
    assert doubted == pytest.approx([nls(0.5), 0.9 * nls(-1.0) + 0.1 * nls(1.0)], rel=1e-6)
    # Pictures at right angles with tau 0.5: w = softmax(0, -2) = 1, e^-2 over 1 + e^-2.
    near = nearness(torch.tensor([[3.0, 0.0], [0.0, 0.1]]), 0.5)
    a = 1 / (1 + math.exp(-2))
    b = 1 - a
    assert near.flatten().tolist() == pytest.approx([a, b, b, a], rel=1e-5)
    # r_w = 2, -1 and r_l = 1, 1.
    expected = [(nls(0.5 * a * 1) + nls(0.5 * b * 1)) / 2, (nls(0.5 * b * -2) + nls(0.5 * a * -2)) / 2]
    assert OWN_LOSSES["rpo"](sides(nearness=near)).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_least_certain_tenth_is_doubted_once_a_fifth_of_the_steps_is_done() -> None:
    doubts = Doubts(Doubt())
    margins = torch.arange(20.0)
    assert doubts.of(margins, 0.1).abs().max() == 0
    # Of 0..19 twice the tenth lies below 2.
    assert doubts.of(margins, 0.2).tolist() == pytest.approx([0.1, 0.1] + [0.0] * 18)
    assert Doubts(Doubt()).of(torch.arange(9.0), 0.9).max() == 0, "nine margins have no tenth"


def filled(pairs: Dataset) -> Dataset:
    """Add what the policy sampled first, and the pictures' embeddings."""
    rows = [
        {**row, "own_ids": [*row["rejected_ids"][:2], 2], "embedding": [1.0, float(number)]}
        for number, row in enumerate(pairs)
    ]
    return Dataset.from_list(rows, features=pairs.features)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("loss", [{"sigmoid": 1.0, "optimism": 0.5}, {"cdpo": 1.0}, {"rpo": 1.0, "anchor": 0.5}])
def test_the_other_own_losses_are_the_written_formula(
    model: Path, pairs: Dataset, tmp_path: Path, loss: dict[str, float], shared: bool
) -> None:
    trainer = prepared(model, filled(pairs), tmp_path, loss=loss, shared_prefix=shared, rpo_temperature=0.5)
    w, r, *own = ratios(trainer)
    sigmoid = torch.nn.functional.logsigmoid
    if "optimism" in loss:
        expected = (-sigmoid(0.1 * (w - r)) + 0.5 * 0.1 * own[0]).mean()
    elif "cdpo" in loss:
        trainer.doubts.seen.extend([1e9] * 10)  # so that all of these are the least certain
        trainer.state.global_step, trainer.state.max_steps = 1, 2
        expected = (-0.9 * sigmoid(0.1 * (w - r)) - 0.1 * sigmoid(-0.1 * (w - r))).mean()
        trainer.doubts.settings = Doubt(share=0.9)
    else:
        near = nearness(torch.tensor([[1.0, float(i)] for i in range(4)]), 0.5)
        expected = (-sigmoid(0.1 * near * (w[:, None] - r[None, :]))).mean() - 0.5 * sigmoid(0.1 * w).mean()
    assert loss_of(trainer).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_loss_whose_column_is_missing_is_refused(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    for loss, column in (("optimism", "own_ids"), ("rpo", "embedding")):
        with pytest.raises(PreconditionFailed, match=column):
            prepared(model, pairs, tmp_path, loss={"sigmoid": 1.0, loss: 1.0})
