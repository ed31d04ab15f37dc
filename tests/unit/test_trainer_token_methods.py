"""Token weights, visual guidance and token KLs: by hand, by autograd, with and without the shared prefix."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from dpo_models import dpo_recipe, make_family, random_pairs, shake
from sightline.errors import PreconditionFailed
from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.dpo.guidance import guided
from sightline_trainer.dpo.loss_names import loss_fault
from sightline_trainer.dpo.method import TokenWeights
from sightline_trainer.dpo.reference_logprobs import add_reference
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.dpo.token_weights import sentence_weights, token_weights
from torch.nn.functional import logsigmoid
from trl.trainer.utils import use_adapter

LAYOUT = [(0, 1, 2), (0, 1, 3), (1, 4, 0)]
METHODS: dict[str, dict[str, Any]] = {
    "weights": {"loss": {"sigmoid": 1.0, "sft": 0.5}, "token_weights": {"by": "difference", "changed": 4.0, "run": 2}},
    "guidance": {"loss": {"sigmoid": 1.0}, "guidance": {"scale": 1.5}},
    "token_kl": {"loss": {"sigmoid": 1.0}, "token_kl": 0.3},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("tokens") / "llava", "llava")


@pytest.fixture(scope="module")
def pairs(model: Path) -> Dataset:
    """Pairs whose rejected sides begin like the chosen ones."""
    made = random_pairs(model, LAYOUT)
    rows = [{**row, "rejected_ids": [*row["chosen_ids"][:3], *row["rejected_ids"]]} for row in made]
    return Dataset.from_list(rows, features=made.features)


def prepared(model: Path, pairs: Dataset, work: Path, **dpo: Any) -> Any:
    trainer = make_trainer(dpo_recipe(model, **dpo), pairs, previous=None, work=work, seed=0)
    add_reference(trainer, lambda done, total: None)
    shake(trainer.model)
    trainer.model.train()
    return trainer


def logits(trainer: Any, row: dict[str, Any], side: str, *, blank: bool, reference: bool = False) -> torch.Tensor:
    """[response, vocabulary] log-probs of one side from a plain forward pass of the model."""
    family = trainer.data_collator.family
    from sightline_trainer.dpo.collator import decoded

    prompt = family.processing.prompt(row["rendered_prompt"], [decoded(image) for image in row["images"]])
    ids = torch.tensor(row[f"{side}_ids"])
    inputs = dict(prompt.images)
    if blank:
        inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    inputs["input_ids"] = torch.cat([prompt.ids, ids])[None]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if reference:
        with torch.no_grad(), use_adapter(trainer.model, adapter_name=None):
            out = trainer.model(**inputs, use_cache=False).logits
    else:
        out = trainer.model(**inputs, use_cache=False).logits
    scores: torch.Tensor = out[0, -len(ids) - 1 : -1].log_softmax(-1)
    return scores


def expected(trainer: Any, name: str) -> torch.Tensor:
    """The formula as written, from plain forward passes, with its graph."""
    losses, sft, tokens = [], [], 0
    for row in trainer.train_dataset:
        weights = token_weights(row["chosen_ids"], row["rejected_ids"], trainer.data_collator.token_weights)
        r, kl = {}, {}
        for side, weight in zip(("chosen", "rejected"), weights, strict=True):
            ids = torch.tensor(row[f"{side}_ids"])[:, None]
            own = logits(trainer, row, side, blank=False)
            known = logits(trainer, row, side, blank=False, reference=True)
            lp = own.gather(-1, ids)[:, 0]
            if side == "chosen":
                sft.append(-lp.sum())
                tokens += len(ids)
            if name == "guidance":
                blind = logits(trainer, row, side, blank=True).gather(-1, ids)[:, 0].detach()
                lp = 1.5 * lp - 0.5 * blind
            r[side] = ((lp - known.gather(-1, ids)[:, 0]) * torch.tensor(weight)).sum()
            kl[side] = (known.exp() * (known - own)).sum()
        difference = r["chosen"] - r["rejected"]
        if name == "token_kl":
            difference = difference - 0.3 * (kl["rejected"] - kl["chosen"].detach())
        losses.append(-logsigmoid(0.1 * difference))
    loss = torch.stack(losses).mean()
    return loss + 0.5 * torch.stack(sft).sum() / tokens if name == "weights" else loss


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_value_and_gradient_are_the_written_formulas(
    model: Path, pairs: Dataset, tmp_path: Path, name: str, shared: bool
) -> None:
    trainer = prepared(model, pairs, tmp_path, shared_prefix=shared, **METHODS[name])
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert ("shared_prefix" in batch) == shared
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    got = {key: each.grad.clone() for key, each in trainer.model.named_parameters() if each.grad is not None}
    trainer.model.zero_grad()
    wanted = expected(trainer, name)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    wanted.backward()
    for key, each in trainer.model.named_parameters():
        if each.grad is not None:
            assert torch.allclose(each.grad, got[key], rtol=2e-3, atol=2e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_full_training_in_bfloat16_does_a_step(model: Path, pairs: Dataset, tmp_path: Path, name: str) -> None:
    from sightline_trainer.dpo.update import update

    recipe = dpo_recipe(model, train="full", dtype="bfloat16", learning_rate=1e-3, **METHODS[name])
    done = update(
        recipe, pairs, previous=None, adapter=tmp_path / "v1", work=tmp_path / "w", seed=0, progress=lambda a, b: None
    )
    assert math.isfinite(done.metrics["loss"])


def test_segments_are_what_lies_outside_of_longer_equal_runs() -> None:
    chosen, rejected = [1, 2, 3, 4, 9, 5, 6, 7], [1, 2, 3, 8, 9, 5, 6, 7, 0]
    by_hand = [1.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 1.0, 4.0]
    assert token_weights(chosen, rejected, TokenWeights(by="difference")) == by_hand
    # A run of three is not a run of four.
    assert token_weights(chosen, rejected, TokenWeights(by="difference", run=4))[0][:4] == [4.0] * 4
    suffix = TokenWeights(by="suffix", changed=1.0, shared=0.0)
    assert token_weights(chosen, rejected, suffix) == ([0.0] * 3 + [1.0] * 5, [0.0] * 3 + [1.0] * 6)
    assert token_weights(chosen, rejected, TokenWeights()) == ([1.0] * 8, [1.0] * 9)


def test_a_side_learns_from_the_sentences_for_which_it_stands_there() -> None:
    words = ["a cat", ".", " two dogs", " sleep", ".", ""]  # the last one is the end token
    ids = list(range(6))

    def decode(some: Any) -> str:
        return "".join(words[i] for i in some)

    settings = TokenWeights(by="sentence", changed=3.0, shared=0.5, bound=0.5)
    marks = [0.9, 0.1]
    assert sentence_weights(ids, marks, decode, settings, chosen=True) == [3.0, 3.0, 0.5, 0.5, 0.5, 0.5]
    assert sentence_weights(ids, marks, decode, settings, chosen=False) == [0.5, 0.5, 3.0, 3.0, 3.0, 3.0]
    # No marks, or another number of marks than sentences, give no verdict.
    assert sentence_weights(ids, [], decode, settings, chosen=True) == [1.0] * 6
    assert sentence_weights(ids, [0.9], decode, settings, chosen=True) == [1.0] * 6


def test_weights_by_sentence_reach_the_rows(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    settings = {"by": "sentence", "changed": 3.0, "shared": 0.5}
    with pytest.raises(PreconditionFailed, match="scores by sentence"):
        prepared(
            model, pairs.remove_columns(["chosen_sentences", "rejected_sentences"]), tmp_path, token_weights=settings
        )
    rows = [{**row, "chosen_sentences": [0.9], "rejected_sentences": []} for row in pairs]
    marked = Dataset.from_list(rows, features=pairs.features)
    trainer = prepared(model, marked, tmp_path, token_weights=settings)
    chosen, rejected = trainer.data_collator(list(trainer.train_dataset))["token_weights"].chunk(2)
    # Random words are one sentence, a good one; the rejected sides were never marked.
    assert set(chosen.unique().tolist()) == {0.0, 3.0}
    assert set(rejected.unique().tolist()) == {0.0, 1.0}


def test_guidance_by_hand_and_no_gradient_through_the_blind_rows() -> None:
    seen = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    blind = torch.tensor([[-3.0, -2.0]], requires_grad=True)
    result = guided(seen, blind, 1.5)
    assert result.tolist() == [[1.5 * -1 - 0.5 * -3, 1.5 * -2 - 0.5 * -2]]
    result.sum().backward()
    assert seen.grad is not None
    assert seen.grad.tolist() == [[1.5, 1.5]]
    assert blind.grad is None


def test_an_extra_row_is_weighted_as_its_text_is(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    settings = {"by": "suffix", "changed": 2.0, "shared": 0.0}
    trainer = prepared(model, pairs, tmp_path, loss={"image": 1.0}, token_weights=settings)
    batch = trainer.data_collator(list(trainer.train_dataset))
    chosen, _, view = batch["token_weights"].chunk(3)
    assert torch.equal(chosen, view)
    assert set(chosen.unique().tolist()) == {0.0, 2.0}
    plain = PairCollator(trainer.data_collator.family, extras=trainer.extras)
    assert "token_weights" not in plain(list(trainer.train_dataset))


@pytest.mark.parametrize(
    ("losses", "values", "fault"),
    [
        ({"ipo": 1.0}, {"token_kl": True}, "token_kl"),
        ({"anchor": 1.0}, {"token_kl": True}, "token_kl"),
        ({"sigmoid": 1.0}, {"token_kl": True, "divergence": "js_divergence"}, "reverse KL"),
        ({"sigmoid": 1.0}, {"reshaped": True, "wpo": True}, "wpo"),
    ],
)
def test_what_can_not_be_meant_is_refused(losses: dict[str, float], values: dict[str, Any], fault: str) -> None:
    given: dict[str, Any] = {"margins": False, "weights": False, "label_smoothing": 0.0, **values}
    assert fault in (loss_fault(losses, **given) or "")
