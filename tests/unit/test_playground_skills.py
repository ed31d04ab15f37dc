"""The skilled LVLM: what it is taught follows from the scene, and it rates, improves, asks and answers above chance."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import documented
from sightline_chassis.shipped import model_place
from sightline_playground import llava_model, skilled_training, skills, weights_dir
from sightline_playground.bands import SKILLED_BANDS, outside
from sightline_playground.captions import ObjectMention, Prior, mentioned
from sightline_playground.flaws import FlawedAnswer, flawed
from sightline_playground.scenes import PlacedObject, Scene, scenes
from sightline_playground.skilled_measure import (
    ASPECTS,
    answer_numbers,
    improvement_numbers,
    question_numbers,
    rating_numbers,
)
from sightline_playground.skilled_training import SkilledRecipe
from sightline_playground.tokens import lvlm_tokenizer
from sightline_playground.world import BY_NAME, stream

WEIGHTS = weights_dir()
SCENES = scenes("validation", 60, seed=5)
SCENE = Scene((PlacedObject(0, BY_NAME["red star"]), PlacedObject(5, BY_NAME["blue ring"])))


def test_the_plain_models_are_the_ones_that_all_numbers_rest_on() -> None:
    known = {
        "clip/open_clip_model.safetensors": "570daf02cca0a0abc6bd04440450261efed52fb489830e6097f6e1e2fec8a950",
        "llava/model.safetensors": "026bbe73e595339df3cb7954b8f18eac4fa4599ff9d837f0126d7ef87d9e1524",
        "llava/tokenizer.json": "0f75df413c4affe07e65c9522336aa352372d64fc9a7e5f64ff957c95339a068",
    }
    assert {name: hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() for name in known} == known


@pytest.mark.parametrize("wrong", [0, 1, 3])
@pytest.mark.parametrize("missing", [0, 1])
def test_an_answer_has_the_errors_that_it_is_said_to_have(wrong: int, missing: int) -> None:
    rng = stream("flaws", wrong, missing)
    for scene in SCENES:
        given = flawed(scene, rng, wrong, missing)
        named, there = mentioned(given.text), set(scene.names)
        assert len(named) == len(set(named))
        assert (len(set(named) - there), len(there - set(named))) == (wrong, min(missing, len(there) - 1))
        assert (given.wrong, given.missing) == (wrong, min(missing, len(there) - 1))
        assert mentioned(given.improved) == list(scene.names)
        assert given.improved.split()[:2] == given.text.split()[:2]


@pytest.mark.parametrize(
    ("aspect", "wrong", "missing", "mark"),
    [
        ("help", 0, 0, 5), ("help", 1, 1, 3), ("help", 3, 2, 1), ("faith", 1, 2, 3), ("faith", 3, 0, 1),
        ("facts", 2, 1, 1), ("agree", 0, 2, 3), ("ethics", 3, 2, 5),
    ],
)  # fmt: skip
def test_a_mark_counts_the_errors(aspect: str, wrong: int, missing: int, mark: int) -> None:
    assert skills.mark(aspect, FlawedAnswer("", "", wrong, missing)) == mark


def test_claims_are_true_or_false_of_the_scene() -> None:
    """Each object of a true claim is there, in its place; a false one has an object or a place that is not."""
    for scene in SCENES:
        places = {item.thing.name: item.cell for item in scene.items}
        right = {ObjectMention(BY_NAME[name], cell).text for name, cell in places.items()}
        for label in (True, False):
            text = skills.claim(scene, label, stream("claims", scene, label))
            names = mentioned(text)
            said = re.split(r" and | \. there is |^there is |^i see |^the picture shows ", text.removesuffix(" ."))
            wrong_place = any(" at " in part or " in " in part or " on " in part for part in said if part not in right)
            assert (set(names) <= set(places) and not wrong_place) == label, text


@pytest.mark.parametrize(
    ("question", "fits"),
    [
        ("is there a red star in the picture ?", True), ("is there a red ring in the picture ?", False),
        ("is the star blue ?", True), ("is the circle blue ?", False), ("is the red star above the blue ring ?", True),
        ("is the red star above the red ring ?", False), ("is the red star ?", False), ("there is a red star .", False),
    ],
)  # fmt: skip
def test_a_question_is_about_the_picture_if_the_picture_answers_it(question: str, fits: bool) -> None:
    assert skills.about_picture(question, SCENE) == fits


def test_what_is_asked_for_can_be_asked() -> None:
    rng = stream("asked")
    assert all(skills.about_picture(skills.asked(scene, rng).text, scene) for scene in SCENES)


def test_the_prompts_are_those_of_the_recipes() -> None:
    """In the headers' real commands and in their playground ones, so that either model can be named."""
    told = [
        " ".join(command.text.replace("\\n", "\n").split()) for command in documented() if "recipes/" in command.file
    ]
    prompts = [prompt for prompt, _ in skills.RATINGS.values()] + [skills.IMPROVE, skills.TRUE]
    for prompt in prompts:
        squeezed = " ".join(prompt.split())
        assert sum(squeezed in text for text in told) >= 2, prompt
        assert any(squeezed in text and "playground:llava-skilled" in text for text in told), prompt
    recipes = Path(WEIGHTS.parents[1] / "recipes")
    assert skills.THERE in (recipes / "rlaif_v.yaml").read_text()
    assert skills.TOLD in (recipes / "marine.yaml").read_text()


def test_the_tokenizer_knows_every_lesson_and_keeps_the_plain_ones_numbers() -> None:
    plain, skilled = lvlm_tokenizer().get_vocab(), skilled_training.tokenizer()
    assert plain.items() <= skilled.get_vocab().items()
    rng, batches = stream("lessons"), skilled_training.Batches(skilled)
    pairs = [skills.lesson(kind, scene, rng, Prior()) for kind in skills.LESSONS for scene in SCENES]
    ids, _ = batches.encode(pairs)
    assert not (ids == skilled.unk_token_id).any()
    assert ids.shape[1] + llava_model.MAX_NEW_TOKENS < 256


def test_a_training_that_was_cut_off_ends_with_the_same_weights(tmp_path: Path) -> None:
    recipe = SkilledRecipe(steps=4, batch=4)

    def trained(directory: Path | None, stop: int = 9, how: SkilledRecipe = recipe) -> dict[str, torch.Tensor]:
        def progress(done: int, total: int, word: str) -> None:
            if done == stop:
                raise KeyboardInterrupt

        base, _ = llava_model.load(WEIGHTS / "llava")
        model = skilled_training.train(base, SCENES[:8], how, 0, progress, directory, every=2)
        state: dict[str, torch.Tensor] = model.state_dict()
        return state

    whole = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=3)
    resumed = trained(tmp_path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    plain = llava_model.load(WEIGHTS / "llava")[0].state_dict()
    tower = [name for name in plain if "vision_tower" in name]
    assert tower
    assert all(torch.equal(plain[name], whole[name]) for name in tower)
    with pytest.raises(ValueError, match="another recipe or seed"):
        trained(tmp_path, how=SkilledRecipe(steps=5, batch=4))


@pytest.fixture(scope="module")
def skilled() -> tuple[Any, Any]:
    return llava_model.load(Path(model_place("playground:llava-skilled")))


def test_the_weights_are_small_and_the_card_is_within_its_tolerance() -> None:
    directory = WEIGHTS / "llava-skilled"
    assert sum(file.stat().st_size for file in directory.iterdir()) <= 8_000_000
    card = json.loads((directory / "metrics.json").read_text())
    assert outside(card["numbers"], SKILLED_BANDS) == []
    assert {name: [band.low, band.high] for name, band in SKILLED_BANDS.items()} == {
        name: [band["low"], band["high"]] for name, band in card["tolerance"].items()
    }
    text = (directory / "MODEL_CARD.md").read_text()
    assert all(f"| `{name}` | {value:.3f} |" in text for name, value in card["numbers"].items())


def test_it_sees_with_the_plain_ones_tower(skilled: tuple[Any, Any]) -> None:
    plain = llava_model.load(WEIGHTS / "llava")[0].model.vision_tower.state_dict()
    ours = skilled[0].model.vision_tower.state_dict()
    assert all(torch.equal(plain[name], ours[name]) for name in plain)


def test_it_rates_above_chance(skilled: tuple[Any, Any]) -> None:
    found = rating_numbers(*skilled, SCENES[:30], aspects=["faith"])
    assert found["rate_faith_accuracy"] > found["rate_faith_chance"] + 0.1
    assert found["rate_order"] > 0.7


@pytest.mark.slow
def test_it_rates_every_aspect_above_chance(skilled: tuple[Any, Any]) -> None:
    found = rating_numbers(*skilled, SCENES)
    for aspect in ASPECTS:
        assert found[f"rate_{aspect}_accuracy"] > found[f"rate_{aspect}_chance"], found


def test_it_answers_above_chance(skilled: tuple[Any, Any]) -> None:
    found = answer_numbers(*skilled, SCENES[:24])
    assert min(found[f"answer_{kind}_accuracy"] for kind in ("random", "adversarial", "attribute", "claim")) > 0.6


def test_it_improves_answers(skilled: tuple[Any, Any]) -> None:
    found = improvement_numbers(*skilled, SCENES[:40])
    assert found["improve_given_chair_s"] == 1.0
    assert found["improve_chair_s"] < 0.5
    assert found["improve_better"] > 0.5


def test_it_asks_about_what_it_sees(skilled: tuple[Any, Any]) -> None:
    found = question_numbers(*skilled, SCENES[:40])
    assert found["ask_fits"] > found["ask_chance"] + 0.1
    assert found["ask_distinct"] > 0.5
