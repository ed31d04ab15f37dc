"""Evaluation, from the field: answers to other questions, incomplete truth, other people's words and files."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from field import controls
from rich.console import Console
from running import ROOT
from sightline.errors import InvalidInput
from sightline_cli.eval_output import show, show_differences
from sightline_cli.main import app
from sightline_trainer.display import results_table
from sightline_trainer.evaluation.amber import Amber, read_responses
from sightline_trainer.evaluation.captions import read_captions
from sightline_trainer.evaluation.chair import Vocabulary
from sightline_trainer.evaluation.coco import CocoObjects, image_key, load_truth
from sightline_trainer.evaluation.facts import Facts
from sightline_trainer.evaluation.lines import read_lines
from sightline_trainer.evaluation.pope import read_answers, read_questions
from sightline_trainer.evaluation.treebank import tokens
from sightline_trainer.evaluation.words import ListedNouns
from typer.testing import CliRunner

pytestmark = pytest.mark.field

FIXTURES = ROOT / "tests/fixtures/eval"
CAPTION = {"image_id": 1, "caption": "a dog"}


def rows(path: Path, *objects: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))
    return path


def sightline(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "80"})


# POPE: answers belong to the questions asked ------------------------------------------------------------------------


def test_answers_to_another_sets_questions_are_refused(tmp_path: Path) -> None:
    questions = [json.loads(line) for line in (FIXTURES / "pope_questions.jsonl").read_text().splitlines()]
    other = rows(tmp_path / "q.jsonl", *({**one, "text": one["text"].replace("a ", "a blue ")} for one in questions))
    failed = sightline("pope", "--answers", FIXTURES / "pope_answers.jsonl", "--questions", other)
    assert failed.exit_code == 2
    assert "line 1" in failed.stderr
    assert "another set of questions" in failed.stderr
    other = rows(
        tmp_path / "q.jsonl", *({**one, "image": f"other/{number}.jpg"} for number, one in enumerate(questions))
    )
    failed = sightline("pope", "--answers", FIXTURES / "pope_answers.jsonl", "--questions", other)
    assert failed.exit_code == 2
    assert "about image 'd.jpg'" in failed.stderr


def test_answers_that_do_not_say_what_was_asked_are_trusted_only_when_told_to(tmp_path: Path) -> None:
    questions = FIXTURES / "pope_questions.jsonl"
    bare = rows(tmp_path / "a.jsonl", *({"question_id": number, "answer": "yes"} for number in range(1, 9)))
    failed = sightline("pope", "--answers", bare, "--questions", questions)
    assert failed.exit_code == 2
    assert "--trust-ids" in failed.stderr
    seen = sightline("pope", "--answers", bare, "--questions", questions, "--trust-ids", "--json", "-")
    assert json.loads(seen.stdout)["settings"]["matched_by"] == "id alone"


def test_a_suffix_directories_and_cocos_names_do_not_make_another_question(tmp_path: Path) -> None:
    asked = {"question_id": 1, "image": "COCO_val2014_000000000042.jpg", "text": "Is there a dog?", "label": "yes"}
    questions = read_questions(rows(tmp_path / "q.jsonl", asked))
    for answer in (
        {"question_id": 1.0, "prompt": "<image>\nIs  there a dog? Answer yes or no.", "text": "No", "image": "42"},
        {
            "question_id": "1",
            "question": "is there a dog?",
            "image": "val2014/COCO_val2014_000000000042.jpg",
            "response": "No",
        },
        {"question_id": 1, "text": "Is there a dog?", "answer": "No"},
    ):
        assert read_answers(rows(tmp_path / "a.jsonl", answer), questions).by_id == {"1": "No"}


def test_a_question_that_is_null_is_no_question_called_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="line 1: text is missing or null"):
        read_questions(rows(tmp_path / "q.jsonl", {"question_id": 1, "image": "a", "text": None, "label": "yes"}))
    with pytest.raises(InvalidInput, match="line 1: question_id is missing or null"):
        read_questions(rows(tmp_path / "q.jsonl", {"question_id": None, "image": "a", "text": "?", "label": "yes"}))


# CHAIR: half a truth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "lacking"), [("coco_instances.json", "captions"), ("coco_captions.json", "instances")]
)
def test_half_of_cocos_truth_gives_no_official_chair_and_a_word_otherwise(
    tmp_path: Path, file: str, lacking: str
) -> None:
    captions = rows(tmp_path / "c.jsonl", {"image_id": 201, "caption": "a dog with a frisbee"})
    given = ["chair", "--captions", captions, "--truth", FIXTURES / file]
    failed = sightline(*given, "--compat", "official")
    assert failed.exit_code == 2
    assert f"lacks COCO's {lacking}: image '201'" in failed.stderr
    assert failed.stdout == ""
    assert any(
        f"lacks COCO's {lacking}" in one
        for one in json.loads(sightline(*given, "--json", "-").stdout)["differs_from_official"]
    )
    both = ["--truth", FIXTURES / "coco_instances.json", "--truth", FIXTURES / "coco_captions.json"]
    whole = sightline("chair", "--captions", captions, *both, "--compat", "official", "--json", "-")
    assert json.loads(whole.stdout)["metrics"]["chair_s"]["value"] == 0.0


def test_captions_of_another_split_do_not_count_for_an_image(tmp_path: Path) -> None:
    other = {"images": [{"id": 999}], "annotations": [{"image_id": 999, "caption": "a dog"}]}
    rows(tmp_path / "captions.json", other)
    truth = load_truth([FIXTURES / "coco_instances.json", tmp_path / "captions.json"], CocoObjects())
    assert truth.lacks(["201"]) == {"captions": ["201"]}


# CHAIR: the official script's words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "official", "mended"),
    [
        ("a dog+cat", [], ["dog", "cat"]),
        ("a Frisbee™ flies", [], ["frisbee"]),
        *controls(("a Frisbee(TM) flies", ["frisbee"], ["frisbee"])),
        ("a -dog", [], ["dog"]),
        ("a dog\u200b runs", [], ["dog"]),
        ("a dog=cat, dog~cat, dog|cat", [], ["dog", "cat"] * 3),
        ("a dog… a cat", ["cat"], ["dog", "cat"]),
        *controls(("a dog\u2013cat", ["dog", "cat"], ["dog", "cat"])),
        ("a dog-", [], ["dog"]),
        *controls(("a dog.) cat", ["dog", "cat"], ["dog", "cat"])),
        *controls(("a dog's bed, the cats' bowl", ["dog", "bed", "cat", "bowl"], ["dog", "bed", "cat", "bowl"])),
        ("two knifes, mouses and puppys", ["knife", "mouse", "dog"], ["knife", "mouse", "dog"]),
        *controls(("-buses", ["bus"], ["bus"])),
        ("une catégorie de dogé", [], []),
    ],
)
def test_words_are_the_official_scripts(text: str, official: list[str], mended: list[str]) -> None:
    """Expected values come from NLTK 3.10.4's word_tokenize, `pattern`'s singular and the script's steps."""
    assert CocoObjects("official").mentions(text) == official
    assert CocoObjects().mentions(text) == mended


def test_tokens_stand_where_they_are_said_to() -> None:
    text = "\"It's 5 o'clock,\" said the man's dog (a pug)... can't he wait? 'Tis  gonna rain–or\tnot."
    found = tokens(text)
    assert all(text[start:end] == word for word, start, end in found)
    assert [word for word, _, _ in found] == [
        '"', "It", "'s", "5", "o'clock", ",", '"', "said", "the", "man", "'s", "dog", "(", "a", "pug", ")", "...",
        "ca", "n't", "he", "wait", "?", "'", "Tis", "gon", "na", "rain", "–", "or", "not", ".",
    ]  # fmt: skip


def test_words_of_other_languages_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"objects": ["кот", "cat"], "synonyms": {"кошка": "кот"}}))
    assert Vocabulary.load(path).mentions("Кошка und eine catégorie") == ["кот"]
    assert ListedNouns(["cat", "sky"])("une catégorie, two skies") == ["sky"]


# Files as others write them -----------------------------------------------------------------------------------------


def jsonl(objects: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in objects).encode()


WRITTEN: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a byte order mark": lambda objects: b"\xef\xbb\xbf" + jsonl(objects),
    "UTF-16": lambda objects: jsonl(objects).decode().encode("utf-16"),
    "one after the other": lambda objects: "".join(map(json.dumps, objects)).encode(),
    "indented": lambda objects: "\n".join(json.dumps(one, indent=2) for one in objects).encode(),
    "a list": lambda objects: b"\xef\xbb\xbf" + json.dumps(objects, indent=1).encode(),
    "lists put together": lambda objects: b"\n".join(b"\xef\xbb\xbf" + json.dumps([one]).encode() for one in objects),
    "carriage returns": lambda objects: jsonl(objects).replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_each_suite_reads_files_as_others_write_them(tmp_path: Path, written: str) -> None:
    def file(*objects: dict[str, Any]) -> Path:
        path = tmp_path / "file.jsonl"
        path.write_bytes(WRITTEN[written](list(objects)))
        return path

    questions = read_questions(
        file(*({"question_id": n, "image": "a", "text": f"Is it {n}?", "label": "no"} for n in (1, 2)))
    )
    assert [one.text for one in questions] == ["Is it 1?", "Is it 2?"]
    answers = file(*({"question_id": n, "question": f"Is it {n}?", "answer": "no"} for n in (1, 2)))
    assert read_answers(answers, questions).by_id == {"1": "no", "2": "no"}
    assert read_captions(file(CAPTION, CAPTION)) == [("1", "a dog")] * 2
    amber = Amber.load(FIXTURES / "amber")
    assert read_responses(file({"id": 1, "response": "a"}, {"id": "2", "response": ""}), amber) == {1: "a", 2: ""}


def test_truth_vocabulary_and_results_with_a_byte_order_mark(tmp_path: Path) -> None:
    def marked(name: str, value: object) -> Path:
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
        return tmp_path / name

    assert load_truth([marked("truth.json", {"1": ["dog"]})], CocoObjects()) == {"1": {"dog"}}
    marked("vocabulary.json", {"objects": ["dog"]})
    assert Facts.load(tmp_path).vocabulary.mentions("a dog") == ["dog"]
    marked("one.json", {"suite": "chair"})
    assert "no by_image" in sightline("compare", tmp_path / "one.json", tmp_path / "one.json").stderr


@pytest.mark.parametrize(
    "id_",
    [
        "COCO_val2014_000000391895.jpg",
        "val2014/COCO_val2014_000000391895.jpg",
        "000000391895.jpg",
        *controls(391895),
        391895.0,
    ],
)
def test_an_image_of_coco_is_one_image_by_all_its_names(tmp_path: Path, id_: object) -> None:
    assert read_captions(rows(tmp_path / "c.jsonl", {**CAPTION, "image_id": id_})) == [("391895", "a dog")]


@pytest.mark.control
def test_names_that_are_not_cocos_stay() -> None:
    for name in ("42.jpg", "train/0001", "img_000000391895", "test-000001"):
        assert image_key(name) == name


def test_keys_can_be_named(tmp_path: Path) -> None:
    captions = rows(tmp_path / "c.jsonl", {"image": "COCO_val2014_000000000101.jpg", "text": "a cat"})
    given = ["chair", "--captions", captions, "--truth", FIXTURES / "chair_truth.json"]
    failed = sightline(*given)
    assert failed.exit_code == 2
    assert "'image', 'text'" in failed.stderr
    seen = sightline(*given, "--image-id-key", "image", "--caption-key", "text", "--json", "-")
    assert json.loads(seen.stdout)["counts"]["captions"] == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"image_id": null, "caption": "a dog"}', "image_id is missing or null"),
        ('{"image_id": true, "caption": "a dog"}', "image_id is True"),
        ('{"image_id": 1.5, "caption": "a dog"}', "image_id is 1.5"),
        ('{"image_id": 1, "caption": null}', "caption is missing or null"),
        ('{"image_id": 1, "caption": "a \\ud83d"}', "half of a character"),
        ('{"image_id": 1, "image_id": 2, "caption": "a dog"}', "'image_id' appears twice"),
        *controls(('{"image_id": 1, "caption": "a dog"}, ', "not JSON")),
        *controls(('{"image_id": 1, "caption": "a dog"', "not JSON")),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(CAPTION) + "\n" + content)
    with pytest.raises(InvalidInput, match=f"line 2: .*{complaint}"):
        read_captions(path)


def test_a_broken_line_is_named_by_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"a": 1}\n{"a": 2\n{"a": 3}\n')
    with pytest.raises(InvalidInput, match=r"line 2: not JSON \(.* in line 3\)"):
        list(read_lines(path, ["a"]))


# AMBER --------------------------------------------------------------------------------------------------------------


def test_a_response_that_is_null_is_no_answer(tmp_path: Path) -> None:
    amber = Amber.load(FIXTURES / "amber")
    for value in (None, 7, ["a dog"]):
        path = tmp_path / "r.json"
        path.write_text(json.dumps([{"id": 1, "response": value}]))
        with pytest.raises(InvalidInput, match="entry 1: response is"):
            read_responses(path, amber)
    with pytest.raises(InvalidInput, match="id is True"):
        read_responses(rows(tmp_path / "r.jsonl", {"id": True, "response": "a"}), amber)


# Two results ---------------------------------------------------------------------------------------------------------


def test_a_comparison_of_unlike_measurements_says_so(tmp_path: Path) -> None:
    given = ["--captions", FIXTURES / "chair_captions.jsonl", "--truth", FIXTURES / "chair_truth.json", "--details"]
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    sightline("chair", *given, "--json", one)
    sightline("chair", *given, "--json", other, "--compat", "official")
    seen = sightline("compare", one, other)
    assert seen.exit_code == 0
    assert "not only the policy differs: compat mended, official" in seen.stderr
    assert sightline("compare", one, one).stderr == ""


# Tables -------------------------------------------------------------------------------------------------------------


def lines_of(table: Callable[[Console], None]) -> str:
    out = io.StringIO()
    table(Console(file=out, width=80))
    seen = out.getvalue()
    assert "…" not in seen
    assert max(map(len, seen.splitlines())) <= 80
    return seen


def test_tables_at_80_columns_have_whole_names_and_numbers() -> None:
    row = {
        "iteration": 10.0, "policy_version": 100.0, "chair_s": 0.512, "chair_i": 0.123, "cover": 0.871,
        "clip_score": 61.23, "mean_tokens": 124.3, "pairs": 12345.0, "seconds": 123456.0,
    }  # fmt: skip
    seen = lines_of(lambda console: console.print(results_table([row, row])))
    for name in ("iteration", "policy", "CHAIR_s", "vs base", "CHAIR_i", "cover", "CLIPScore", "tokens", "pairs"):
        assert f"{name} " in seen
    assert "123456" in seen
    long = "question_attribute_accuracy"
    metric = {"value": 0.5, "numerator": 12345, "denominator": 54321, "low": 0.4, "high": 0.6}
    value = {"suite": "s", "settings": {}, "counts": {}, "metrics": {long: metric}, "differs_from_official": []}
    seen = lines_of(lambda console: show(value, console))
    assert long in seen
    assert "0.4000 .. 0.6000 12345 / 54321" in " ".join(seen.split())
    change = {"one": 123.4567, "other": None, "change": -123.4567, "low": -123.4567, "high": -23.4567, "clear": True}
    seen = lines_of(lambda console: show_differences({long: change}, console))
    assert f"{long} 123.4567 - -123.4567 -123.4567 .. -23.4567 clear" in " ".join(seen.split())
