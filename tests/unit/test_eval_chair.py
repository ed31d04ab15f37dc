"""CHAIR on COCO objects: the fixtures' counts by hand, and the official rule with and without its mistakes."""

import json
from pathlib import Path

import pytest
from running import ROOT
from sightline.errors import InvalidInput
from sightline_trainer.evaluation.captions import count_captions, read_captions
from sightline_trainer.evaluation.coco import CocoObjects, Compat, image_key, load_truth

FIXTURES = ROOT / "tests/fixtures/eval"


@pytest.mark.parametrize(
    ("compat", "mentions", "covered"), [("mended", 19, 11), ("official", 17, 9)], ids=["mended", "official"]
)
def test_the_fixtures_as_counted_by_hand(compat: Compat, mentions: int, covered: int) -> None:
    objects = CocoObjects(compat)
    table = count_captions(
        read_captions(FIXTURES / "chair_captions.jsonl"), load_truth([FIXTURES / "chair_truth.json"], objects), objects
    )
    counts = table.chair()
    assert (counts.captions, counts.hallucinated_captions) == (6, 5)
    assert (counts.mentions, counts.hallucinated_mentions) == (mentions, 7)
    assert (counts.true_objects, counts.covered_objects) == (13, covered)
    values = table.ratios().values()
    assert values["chair_s"] == 5 / 6
    assert values["chair_i"] == 7 / mentions
    assert values["recall"] == covered / 13
    assert values["mean_words"] == (14 + 18 + 16 + 13 + 5 + 11) / 6


def test_hallucinated_words_are_named_with_their_place() -> None:
    objects = CocoObjects()
    text = "A man rides two Horses."
    [row] = count_captions([("1", text)], {"1": frozenset({"person", "cat"})}, objects).details()
    assert row["hallucinated"] == [["horse", "Horses", 16, 22]]
    assert text[16:22] == "Horses"
    assert row["missed"] == ["cat"]


@pytest.mark.parametrize(
    ("text", "mended", "official"),
    [
        ("two buses behind a bus", ["bus", "bus"], ["bus"]),
        ("a man with ties and a tie", ["person", "tie", "tie"], ["person", "tie"]),
        ("a motor bike, a motor cycle", ["motorcycle", "motorcycle"], ["motorcycle"]),
        ("an iPhone and a cheesecake", ["cell phone", "cake"], []),
        ("a stove top oven", ["oven"], ["oven", "oven"]),
        ("a dog.The cat", ["dog", "cat"], ["cat"]),
        ("a dog. The cat", ["dog", "cat"], ["dog", "cat"]),
        ("a hot dog and a dog", ["hot dog", "dog"], ["hot dog", "dog"]),
        ("two hot dogs, wine glasses, teddy bears", ["hot dog", "wine glass", "teddy bear"], None),
        ("a baby bird, adult cats, a baby", ["bird", "cat", "person"], None),
        ("a passenger jet and a passenger train", ["airplane", "train"], None),
        ("home plate beside the train tracks", [], None),
        ("the seat of the toilet, a toilet seat", ["toilet", "toilet"], None),
        ("a seat", ["chair"], None),
        ("men, women's knives and geese with mice", ["person", "person", "knife", "bird", "mouse"], None),
        ("puppies, ponies, ostriches, buffaloes", ["dog", "horse", "bird", "cow"], None),
        ("sheep, skis, scissors, people, children", ["sheep", "skis", "scissors", "person", "person"], None),
        ("a category of cattle-like carpets", [], None),
        ("a dining table and a coffee table", ["dining table", "dining table"], None),
    ],
)
def test_words_plurals_and_pairs(text: str, mended: list[str], official: list[str] | None) -> None:
    assert CocoObjects().mentions(text) == mended
    assert CocoObjects("official").mentions(text) == (mended if official is None else official)


def test_the_list_has_the_80_objects_and_each_is_found_by_its_name() -> None:
    objects = CocoObjects()
    assert len(objects.objects) == 80
    for name in objects.objects:
        assert objects.mentions(f"there is a {name} here") == [name]


def test_the_example_of_the_standalone_script() -> None:
    """github.com/Maxlinn/CHAIR-metric-standalone, example_inputs.jsonl and outputs.json, second entry."""
    text = (
        "The image features a large white polar bear swimming in a blue pool of water. The bear is in the process of "
        "diving underwater, with its head submerged and its body partially visible. The bear's paw is also visible, as "
        "it swims through the water. The scene captures the bear's natural behavior and movement in its aquatic "
        "environment."
    )
    for compat in ("mended", "official"):
        assert CocoObjects(compat).mentions(text) == ["bear"] * 4


def test_truth_of_coco_files_adds_instances_and_reference_captions() -> None:
    objects = CocoObjects()
    files = [FIXTURES / "coco_instances.json", FIXTURES / "coco_captions.json"]
    assert load_truth(files, objects) == {"201": {"dog", "frisbee"}, "202": {"car"}, "203": frozenset()}
    assert load_truth(files[:1], objects)["201"] == {"dog"}


def test_an_unknown_image_is_an_error_that_names_it() -> None:
    objects = CocoObjects()
    with pytest.raises(InvalidInput, match="'999'") as caught:
        count_captions([("101", "a cat"), ("999", "a dog")], {"101": frozenset()}, objects)
    assert caught.value.reason == "UNKNOWN_IMAGE"
    assert image_key(42) == image_key("42") == image_key("000000000042") == "42"
    assert image_key("test-000001") == "test-000001"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not a readable JSON"),
        ('{"1": ["unicorn"]}', "unicorn"),
        ('{"1": "dog"}', "not a truth file"),
        ("[1]", "not a truth file"),
        ('{"annotations": [{"image_id": 1, "category_id": 9}]}', "not a truth file"),
    ],
)
def test_a_truth_file_that_is_none(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "truth.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=complaint):
        load_truth([path], CocoObjects())


@pytest.mark.parametrize("line", ["no json", "[]", '{"image_id": 1}', '{"image_id": 1, "caption": 3}'])
def test_a_caption_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"image_id": 1, "caption": "x"}) + "\n\n" + line + "\n")
    with pytest.raises(InvalidInput, match=r"captions.jsonl, line 3"):
        read_captions(path)


def test_no_captions_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text("\n")
    with pytest.raises(InvalidInput, match="no caption"):
        read_captions(path)
    with pytest.raises(InvalidInput, match="can't be read"):
        read_captions(tmp_path / "none.jsonl")
