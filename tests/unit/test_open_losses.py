"""Losses that are not ours: named by place, imported by who runs the recipe, and never a number if they fail."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_models import dpo_recipe, make_family, random_pairs, shake
from sightline.errors import InvalidInput, PreconditionFailed
from sightline_chassis.settings import SettingsError
from sightline_trainer.allowed import Allowed
from sightline_trainer.connections import Connections
from sightline_trainer.dpo.open_losses import check_bound, value
from sightline_trainer.dpo.own_losses import Sides
from sightline_trainer.dpo.reference_logprobs import add_reference
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.open_parts import importing
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.runs import RunDirectory

PLAIN = "name: plain\nmodel: m\ndata: {train: a, test: b}\n"
MODULE = """
from torch.nn.functional import logsigmoid

def anchored(sides):
    return -logsigmoid(sides.beta * sides.chosen)

class Loss:
    pass

def two(chosen, rejected):
    return chosen - rejected

async def late(sides):
    return sides.chosen

NUMBER = 3
"""
SIDES = Sides(0.5, torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, -2.0]))


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of somebody else's, which nobody imported yet; its name is new for each test."""
    name = f"losses_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def read(tmp_path: Path, loss: str, more: str = "", **options: Any) -> Recipe:
    path = tmp_path / "plain.yaml"
    path.write_text(f"{PLAIN}dpo: {{loss: {{sigmoid: 1.0, {loss}}}{more}}}\n")
    return load_recipe(path, **options)


def test_a_loss_by_place_is_read_and_comes_back_from_its_file(tmp_path: Path, theirs: str) -> None:
    recipe = read(tmp_path, f"'{theirs}:anchored': 0.5")
    loss = recipe.dpo.opened_losses[f"{theirs}:anchored"]
    # -log sigmoid of 0.5 * 2 and of 0.5 * -1.
    expected = [math.log1p(math.exp(-1.0)), math.log1p(math.exp(0.5))]
    assert value("anchored", loss, SIDES).tolist() == pytest.approx(expected)
    run = RunDirectory(tmp_path / "run")
    run.open(recipe)
    assert run.recipe(["*"]) == recipe
    looked = run.recipe()  # who looks imports nothing, and sees the same settings
    assert looked is not None
    assert looked.model_dump() == recipe.model_dump()
    with pytest.raises(PreconditionFailed, match="third-party loss that was not imported"):
        check_bound(looked.dpo.loss, looked.dpo.opened_losses)


@pytest.mark.parametrize(
    ("loss", "more", "words"),
    [
        ("'%s:Nothing': 1", "", "cannot be imported: AttributeError"),
        ("'no_such_module:loss': 1", "", "cannot be imported: ModuleNotFoundError"),
        ("'%s:NUMBER': 1", "", "must be a plain function"),
        ("'%s:Loss': 1", "", "must be a plain function"),
        ("'%s:late': 1", "", "must be a plain function"),
        ("'%s:two': 1", "", "it takes (chosen, rejected); it must take (sides)"),
        ("'%s:anchored': -1", "", "weights that train nothing"),
        ("anchored: 1", "", "dpo.loss names anchored; known are sigmoid"),
        ("'%s:anchored': 1", ", wpo: true", "dpo.wpo multiplies only TRL's losses"),
        ("'%s:anchored': 1", ", margin_scale: 1", "dpo.margin_scale works with"),
        ("'%s:anchored': 1", ", ld_alpha: 0.5", "dpo.ld_alpha works with TRL's losses"),
        ("povid_code: 1, '%s:anchored': 1", "", "POVID's losses have two rejected sides"),
    ],
)
def test_what_cannot_be_a_loss_is_refused(tmp_path: Path, theirs: str, loss: str, more: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, loss % theirs if "%s" in loss else loss, more)
    assert words in str(caught.value)


def test_a_service_imports_the_losses_that_its_operator_listed(tmp_path: Path, theirs: str) -> None:
    loss = f"'{theirs}:anchored': 1"
    for listed in ([], ["other:*"]):
        recipe = read(tmp_path, loss, parts=listed)
        assert theirs not in sys.modules
        with pytest.raises(InvalidInput, match=f"{theirs}:anchored names code") as caught:
            Allowed(parts=listed).check(recipe, Connections())
        assert caught.value.reason == "PART_NOT_ALLOWED"
    listed = [f"{theirs}:*"]
    recipe = read(tmp_path, loss, parts=listed)
    assert theirs in sys.modules
    with pytest.raises(InvalidInput, match=r"data\.train"):  # the next thing that it looks at
        Allowed(parts=listed).check(recipe, Connections())


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (torch.tensor([1.0, math.nan]), "not finite for every pair"),
        (torch.tensor([math.inf, 0.0]), "not finite for every pair"),
        (torch.tensor(1.0), r"returned \(\)"),
        (torch.ones(3), r"returned \(3,\)"),
        ([1.0, 2.0], "returned list"),
        (None, "returned NoneType"),
        (ValueError("broken"), "raised ValueError: broken"),
    ],
)
def test_a_failure_is_never_a_number(found: Any, words: str) -> None:
    def loss(sides: Sides) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    with pytest.raises(PreconditionFailed, match=words) as caught:
        value("theirs", loss, SIDES)
    assert caught.value.reason == "LOSS_UNUSABLE"


def test_a_loss_without_a_gradient_is_refused_where_one_is_needed() -> None:
    chosen = SIDES.chosen.clone().requires_grad_()
    sides = Sides(0.5, chosen, SIDES.rejected, chosen - SIDES.rejected)
    with pytest.raises(PreconditionFailed, match="has no gradient, so it would train nothing") as caught:
        value("theirs", lambda sides: sides.chosen.detach(), sides)
    assert caught.value.reason == "LOSS_UNUSABLE"
    with torch.no_grad():
        assert value("theirs", lambda sides: sides.chosen * 2, sides).tolist() == [4.0, -2.0]


def test_it_trains_as_our_own_loss_of_the_same_formula(tmp_path: Path, theirs: str) -> None:
    model = make_family(tmp_path / "llava", "llava")
    pairs = random_pairs(model, [(0, 1, 2), (1, 4, 0)])
    found = []
    for name in ("anchor", f"{theirs}:anchored"):
        with importing(["*"]):
            recipe = dpo_recipe(model, loss={"sigmoid": 1.0, name: 0.5})
        trainer = make_trainer(recipe, pairs, previous=None, work=tmp_path / "work", seed=0)
        add_reference(trainer, lambda done, total: None)
        shake(trainer.model)
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
        loss.backward()
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        found.append((loss.item(), torch.cat(gradients)))
    (ours, our_gradient), (other, other_gradient) = found
    assert other == pytest.approx(ours, rel=1e-6)
    torch.testing.assert_close(other_gradient, our_gradient, rtol=1e-5, atol=1e-7)
