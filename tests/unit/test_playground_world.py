"""The playground's world: splits, captions, truth, questions, export. No model is loaded here."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sightline_playground import cli, truth
from sightline_playground.bands import BANDS, outside
from sightline_playground.captions import (
    Prior,
    mentioned,
    plain_caption,
    trained_caption,
    true_caption,
    with_companion,
    without_one,
)
from sightline_playground.contrast import contrast
from sightline_playground.drawing import draw
from sightline_playground.export import export
from sightline_playground.metrics import answer_metrics, caption_metrics
from sightline_playground.questions import KINDS, POPE_KINDS, ask, questions
from sightline_playground.scenes import SPLITS, PlacedObject, Scene, bucket_of, scenes, split_of
from sightline_playground.world import BY_NAME, NAMES, PLACES, THINGS, Thing, stream

RED_STAR, BLUE_RING, RED_CROSS = Thing("red", "star"), Thing("blue", "ring"), Thing("red", "cross")
SCENE = Scene((PlacedObject(0, RED_STAR), PlacedObject(4, BLUE_RING), PlacedObject(7, RED_CROSS)))
"""A red star at the top left, a blue ring in the middle, a red cross at the bottom."""


def test_there_are_36_objects_and_each_has_another_as_companion() -> None:
    assert len(set(NAMES)) == 36
    assert RED_STAR.companion == Thing("green", "ring")  # red -> green; star (4th) -> ring (6th)
    assert all(thing.companion.colour != thing.colour and thing.companion.shape != thing.shape for thing in THINGS)
    assert len({thing.companion for thing in THINGS}) == 36


def test_the_split_is_the_hash_of_the_content_whatever_the_jitter() -> None:
    content = "0:red star|4:blue ring|7:red cross"
    assert SCENE.content == content
    assert bucket_of(SCENE) == int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % 100
    moved = Scene((PlacedObject(0, RED_STAR, 2, -1), *SCENE.items[1:]), shade=230)
    assert moved != SCENE
    assert split_of(moved) == split_of(SCENE)


def test_splits_are_disjoint_and_scenes_distinct() -> None:
    drawn = {split: scenes(split, 1500, seed=3) for split in SPLITS}
    for split, found in drawn.items():
        assert len(set(found)) == 1500
        assert all(split_of(scene) == split for scene in found)
        assert all(1 <= len(scene.items) <= 4 for scene in found)
        assert all(len(set(scene.things)) == len(scene.things) == len({i.cell for i in scene.items}) for scene in found)
    contents = {split: {scene.content for scene in found} for split, found in drawn.items()}
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not contents[one] & contents[other]


def test_scenes_depend_on_split_and_seed_only() -> None:
    assert scenes("align", 20, seed=1) == scenes("align", 50, seed=1)[:20]
    assert scenes("align", 20, seed=1) != scenes("align", 20, seed=2)
    with pytest.raises(ValueError, match="no split 'exam'"):
        scenes("exam", 1)  # type: ignore[arg-type]


def test_pictures_show_objects_where_they_are() -> None:
    picture = draw(Scene((PlacedObject(4, Thing("red", "square")),), shade=240))
    assert (picture.size, picture.mode) == ((48, 48), "RGB")
    assert picture.getpixel((24, 24)) == (215, 40, 40)
    assert picture.getpixel((4, 4)) == (240, 240, 240)
    shifted = draw(Scene((PlacedObject(4, Thing("red", "square"), dx=2),), shade=240))
    assert shifted.crop((18, 16, 34, 32)).tobytes() == picture.crop((16, 16, 32, 32)).tobytes()


def test_the_reference_names_each_object_with_its_place() -> None:
    assert plain_caption(SCENE) == (
        "there is a red star at the top left and a blue ring in the middle and a red cross at the bottom ."
    )
    assert (
        plain_caption(Scene((PlacedObject(3, Thing("orange", "circle")),))) == "there is an orange circle on the left ."
    )


def test_true_captions_name_all_objects_and_no_other() -> None:
    rng = stream("test")
    for scene in scenes("validation", 300):
        assert mentioned(true_caption(scene, rng)) == list(scene.names)


def test_the_prior_adds_companions_only() -> None:
    assert truth.companions_absent(SCENE) == ["green ring", "yellow square", "green circle"]
    rng = stream("test")
    always = Prior(companion=1.0, omission=0.0)
    assert mentioned(trained_caption(SCENE, rng, always)) == [
        "red star", "green ring", "blue ring", "yellow square", "red cross", "green circle",
    ]  # fmt: skip
    never = Prior(companion=0.0, omission=0.0)
    assert mentioned(trained_caption(SCENE, rng, never)) == ["red star", "blue ring", "red cross"]
    both = Scene((PlacedObject(0, RED_STAR), PlacedObject(1, RED_STAR.companion)))
    assert "green ring" not in truth.companions_absent(both)


def test_pairs_for_the_scorer_differ_in_one_object() -> None:
    rng = stream("test")
    for _ in range(50):
        true, false = with_companion(SCENE, rng)
        extra = set(mentioned(false)) - set(mentioned(true))
        assert extra < set(truth.companions_absent(SCENE))
        assert len(extra) == 1
        assert len(false.split()) == len(true.split()) + 4  # "and a green ring"
        true, false = without_one(SCENE, rng)
        assert len(set(mentioned(true)) - set(mentioned(false))) == 1


def test_hard_negatives_are_false() -> None:
    rng = stream("test")
    for scene in scenes("train", 100):
        true, *false = contrast(scene, rng)
        assert mentioned(true) == list(scene.names)
        assert len(false) == 3
        assert true not in false


def test_truth_tables() -> None:
    assert sum(truth.objects(SCENE).values()) == 3
    assert truth.objects(SCENE)["blue ring"]
    assert not truth.objects(SCENE)["green ring"]
    attributes = truth.attributes(SCENE)
    assert attributes["star", "red"]
    assert not attributes["ring", "red"]
    assert ("circle", "red") not in attributes
    assert len(attributes) == 3 * 6
    relations = truth.relations(SCENE)
    assert len(relations) == 3 * 2 * 4
    assert relations["red star", "left of", "blue ring"]
    assert relations["red star", "above", "red cross"]
    assert not relations["blue ring", "left of", "red cross"]  # same column
    assert relations["red cross", "below", "blue ring"]
    assert not relations["red star", "right of", "red cross"]


def test_two_of_a_shape_have_no_attribute_questions() -> None:
    twins = Scene((PlacedObject(0, RED_STAR), PlacedObject(1, Thing("blue", "star"))))
    assert truth.attributes(twins) == {}
    assert ask(twins, "attribute", True, stream("test")) is None


def test_questions_are_balanced_and_true() -> None:
    rng = stream("test")
    for scene in scenes("test", 100):
        asked = questions(scene, rng)
        for kind in KINDS:
            labels = [question.label for question in asked if question.kind == kind]
            assert labels in ([], [True, False])
        for question in asked:
            if question.kind in ("random", "popular", "adversarial"):
                [name] = mentioned(question.text)
                assert truth.objects(scene)[name] == question.label
            if question.kind == "adversarial" and not question.label:
                assert mentioned(question.text)[0] in truth.companions_absent(scene)


def test_metrics_by_hand() -> None:
    other = Scene((PlacedObject(2, BLUE_RING),))
    found = caption_metrics(
        [SCENE, other],
        [
            "there is a red star at the top left and a green ring and a blue ring in the middle .",  # 2 of 3, 1 false
            "i see a blue ring .",  # 1 of 1
        ],
    )
    assert found.chair_s == 0.5
    assert found.chair_i == 0.25
    assert found.cover == pytest.approx((2 / 3 + 1) / 2)
    assert found.mean_tokens == (21 + 6) / 2
    answers = answer_metrics([True, False, False, True], ["yes .", "yes .", "no .", "no ."])
    assert (answers.accuracy, answers.yes, answers.false_yes) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="equally many"):
        caption_metrics([SCENE], [])


def test_export_is_plain_complete_and_the_same_each_time(tmp_path: Path) -> None:
    chosen = export(tmp_path / "a", "test", 40, seed=5)
    export(tmp_path / "b", "test", 40, seed=5)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 40 + 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a" / "prompts.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["id", "image", "prompt", "reference", "objects"]
    assert [row["objects"] for row in rows] == [list(scene.names) for scene in chosen]
    assert all(set(mentioned(row["reference"])) == set(row["objects"]) for row in rows)
    with Image.open(tmp_path / "a" / rows[7]["image"]) as picture:
        assert picture.tobytes() == draw(chosen[7]).tobytes()
    asked = [json.loads(line) for line in (tmp_path / "a" / "questions.jsonl").read_text().splitlines()]
    assert {"question_id", "id", "image", "text", "label"} < set(asked[0])
    assert [row["question_id"] for row in asked] == list(range(len(asked)))
    assert [row["label"] for row in asked].count("yes") == len(asked) / 2
    words = json.loads((tmp_path / "a" / "vocabulary.json").read_text())
    assert (words["objects"], words["synonyms"]) == (list(BY_NAME), {})
    assert {kind: sum(row["kind"] == kind for row in asked) > 0 for kind in KINDS} == dict.fromkeys(KINDS, True)
    found = [json.loads(line) for line in (tmp_path / "a" / "truth.jsonl").read_text().splitlines()]
    for scene, row in zip(chosen, found, strict=True):
        assert row["relations"] == {item.thing.name: [PLACES[item.cell]] for item in scene.items}
        assert all(place in words["relations"][0] for [place] in row["relations"].values())


def test_questions_to_learn_from_have_both_answers_and_what_they_claim(tmp_path: Path) -> None:
    chosen = export(tmp_path, "align", 40, seed=5)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == set(POPE_KINDS)
    for row in rows:
        scene, [name] = chosen[int(row["id"].split("-")[1])], mentioned(row["text"])
        there = name in scene.names
        assert (row["right"], row["wrong"]) == (("yes .", "no .") if there else ("no .", "yes ."))
        assert set(mentioned(row["right_statement"])) == (set(scene.names) or {name})
        if len(scene.names) > 1 or not there:
            assert set(mentioned(row["wrong_statement"])) == set(scene.names) ^ {name}


def test_only_align_and_test_have_questions(tmp_path: Path) -> None:
    assert cli.main(["export", "--out", str(tmp_path), "--split", "validation", "--count", "3"]) == 0
    assert not (tmp_path / "questions.jsonl").exists()
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 3
    with pytest.raises(SystemExit):
        cli.main(["export", "--out", str(tmp_path), "--split", "align", "--count", "0"])


def test_a_number_out_of_its_band_is_named() -> None:
    fine = {name: (band.low + band.high) / 2 for name, band in BANDS.items()}
    assert outside(fine) == []
    [complaint] = outside(fine | {"sampled_chair_s": 0.9})
    assert complaint.startswith("sampled_chair_s is 0.9, outside 0.42 .. 0.62")
    del fine["greedy_cover"]
    assert outside(fine) == ["greedy_cover was not measured"]


def test_help_and_export_need_no_torch() -> None:
    script = (
        "import sys, sightline_playground.cli as c, sightline_playground.export\n"
        "c.parser().format_help()\n"
        "assert not {'torch', 'transformers', 'open_clip', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
