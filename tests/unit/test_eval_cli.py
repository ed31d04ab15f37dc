"""`sightline eval` on files: tables, JSON, exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import ROOT
from sightline_cli.main import app
from typer.testing import CliRunner, Result

FIXTURES = ROOT / "tests/fixtures/eval"
CHAIR = ["--captions", str(FIXTURES / "chair_captions.jsonl"), "--truth", str(FIXTURES / "chair_truth.json")]
POPE = ["--answers", str(FIXTURES / "pope_answers.jsonl"), "--questions", str(FIXTURES / "pope_questions.jsonl")]
AMBER = ["--answers", str(FIXTURES / "amber_responses.json"), "--data", str(FIXTURES / "amber")]


def sightline(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", *arguments])


def value_of(*arguments: str) -> dict[str, Any]:
    result = sightline(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_json_to_stdout_is_json_and_nothing_else() -> None:
    value = value_of("chair", *CHAIR)
    assert value["counts"] == {
        "images": 6, "captions": 6, "hallucinated_captions": 5, "mentions": 19, "hallucinated_mentions": 7,
        "true_objects": 13, "covered_objects": 11,
    }  # fmt: skip
    assert value["metrics"]["chair_i"] | {"low": 0, "high": 0} == {
        "value": 7 / 19, "numerator": 7, "denominator": 19, "low": 0, "high": 0,
    }  # fmt: skip
    assert value["differs_from_official"]
    assert "details" not in value
    assert value_of("chair", *CHAIR, "--compat", "official")["counts"]["mentions"] == 17
    assert value_of("pope", *POPE)["metrics"]["f1"]["value"] == 0.6
    assert value_of("amber", *AMBER)["metrics"]["generative/hal"]["value"] == 0.5


def test_the_table_and_the_file_say_the_same(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = sightline("chair", *CHAIR, "--json", str(out), "--details")
    assert result.exit_code == 0
    assert "0.3684" in result.stdout
    assert "7 / 19" in result.stdout
    value = json.loads(out.read_text())
    assert len(value["details"]) == 6
    assert value["details"][1]["hallucinated"] == [["stop sign", "stop sign", 69, 78]]
    assert value["by_image"]["images"] == ["101", "102", "103", "104", "105", "106"]


def test_two_results_on_the_same_images_are_compared(tmp_path: Path) -> None:
    one, other, alone = (str(tmp_path / f"{name}.json") for name in ("one", "other", "alone"))
    assert sightline("chair", *CHAIR, "--json", one, "--details").exit_code == 0
    assert sightline("chair", *CHAIR, "--json", other, "--details", "--compat", "official").exit_code == 0
    assert sightline("chair", *CHAIR, "--json", alone).exit_code == 0
    found = value_of("compare", one, other)
    assert found["recall"]["change"] == pytest.approx(9 / 13 - 11 / 13)
    assert found["chair_s"] == {"one": 5 / 6, "other": 5 / 6, "change": 0, "low": 0, "high": 0, "clear": False}
    failed = sightline("compare", one, alone)
    assert failed.exit_code == 2
    assert "--details" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["chair", "--captions", "none.jsonl", *CHAIR[2:]], "none.jsonl can't be read"),
        (["chair", *CHAIR[:2], "--truth", str(FIXTURES / "coco_instances.json")], "'101'"),
        (["pope", *POPE[:2], "--questions", str(FIXTURES / "chair_captions.jsonl")], "line 1"),
        (["amber", *AMBER, "--similarity", "guess"], "wanted exact"),
        (["amber", *AMBER[:2], "--data", str(FIXTURES)], "annotations.json"),
        (["run", "--sampler", "127.0.0.1:1", "--data", "nowhere"], "nowhere"),
        (["run", "--sampler", "127.0.0.1:1", "--suite", "pope", "--data", str(FIXTURES / "amber")], "questions.jsonl"),
    ],
)
def test_input_that_can_not_be_used_is_exit_code_2_and_one_paragraph(arguments: list[str], complaint: str) -> None:
    result = sightline(*arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
