"""VILA's findings as options of the LVLM's training: each changes what it says, and nothing else changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sightline_playground import clip_model, llava_model, llava_training, mixture, weights_dir
from sightline_playground.cli import main
from sightline_playground.llava_training import Batches, LlavaRecipe, answer_loss, features
from sightline_playground.mixture import IGNORE, Mixture
from sightline_playground.scenes import scenes
from sightline_playground.world import stream

SCENES = scenes("train", 16, seed=3)
PAIRS = [("what do you see ?", "there is a red star ."), ("is the star red ?", "yes .")]


@pytest.fixture(scope="module")
def train() -> Callable[..., dict[str, torch.Tensor]]:
    clip, _, _ = clip_model.load(weights_dir() / "clip")

    def trained(steps: int = 3, **how: Any) -> dict[str, torch.Tensor]:
        recipe = LlavaRecipe(steps=steps, batch=4, mixture=Mixture(**how))
        state = llava_training.train(clip, SCENES, recipe, 0, lambda done, total, word: None).state_dict()
        return {name: weight.clone() for name, weight in state.items()}

    return trained


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """The parts in which two models differ."""
    parts = {"vision_tower": "tower", "multi_modal_projector": "projector", "language_model": "llm", "lm_head": "llm"}
    return {
        part for name in one if not torch.equal(one[name], other[name]) for key, part in parts.items() if key in name
    }


def test_a_frozen_llm_stays_as_the_text_left_it_and_an_unfrozen_one_moves(train: Any) -> None:
    read = train(steps=0, text_steps=3)
    assert moved(read, train(steps=0)) == {"llm"}
    assert moved(read, train(text_steps=3, freeze=True)) == {"projector"}
    assert moved(read, train(text_steps=3)) == {"projector", "llm"}


def test_the_other_options_change_what_is_learned_from(train: Any) -> None:
    plain = train()
    assert moved(plain, train()) == set()
    assert moved(plain, train(documents=1.0)) == {"projector", "llm"}
    # Text alone teaches the projector nothing.
    assert moved(train(steps=0), train(text=1.0)) == {"llm"}


@pytest.mark.parametrize(
    ("how", "share"),
    [({}, 0.0), ({"documents": 0.3}, 0.3), ({"text": 0.2}, 0.2), ({"documents": 0.5, "text": 0.2}, 0.4)],
)
def test_shares_are_shares(how: dict[str, float], share: float) -> None:
    rng = stream("forms")
    forms = [Mixture(**how).form(rng) for _ in range(4000)]
    wanted = "text" if how.keys() == {"text"} else "documents"
    assert forms.count(wanted) / 4000 == pytest.approx(share, abs=0.03)
    if not how:
        assert set(forms) == {"pairs"}
        assert rng.random() == stream("forms").random()  # so that the shipped LVLM's training is as it was


def test_a_document_has_two_pictures_and_labels_on_both_answers() -> None:
    tokenizer = Batches().tokenizer
    ids, labels = mixture.documents(tokenizer, PAIRS)
    singles, single_labels = Batches().encode(PAIRS)
    length = int((singles[1] != tokenizer.pad_token_id).sum())
    assert ids.tolist() == [singles[0].tolist() + singles[1, 1:length].tolist()]
    assert labels.tolist() == [single_labels[0].tolist() + single_labels[1, 1:length].tolist()]
    assert int((ids == tokenizer.convert_tokens_to_ids("<image>")).sum()) == 2 * llava_model.PATCHES
    model, _ = llava_model.load(weights_dir() / "llava")
    pictures = clip_model.pixels([llava_training.draw(scene) for scene in SCENES[:2]])
    with torch.inference_mode():
        ours = answer_loss(model, features(model, SCENES[:2]), ids, labels)
        theirs = model(input_ids=ids, pixel_values=pictures, labels=labels).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_text_alone_has_labels_on_every_word() -> None:
    tokenizer = Batches().tokenizer
    ids, labels = mixture.texts(tokenizer, ["there is a red star .", "i see a ring ."])
    assert tokenizer.decode(ids[0]) == "<s> there is a red star . </s>"
    assert labels.tolist() == [[IGNORE, *ids[0, 1:].tolist()], [IGNORE, *ids[1, 1:-1].tolist(), IGNORE]]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--freeze-llm"], "set --text-steps"),
        (["--interleaved", "1.5"], "give a share from 0 to 1"),
        (["--text-only", "-1"], "give a share from 0 to 1"),
    ],
)
def test_options_that_cannot_be_are_refused_at_the_start(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["make", *options])
    assert why in capsys.readouterr().err
