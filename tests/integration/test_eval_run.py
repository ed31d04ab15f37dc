"""`sightline eval run` against a real sampler: all suites, and an interrupted evaluation."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, Services
from sightline.sampler import SamplerClient
from sightline_cli.main import app
from typer.testing import CliRunner

FIXTURES = ROOT / "tests/fixtures/eval"


def run(*arguments: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["eval", "run", *arguments, "--max-tokens", "48", "--json", "-", "--details"])
    assert result.exit_code == code, result.output
    return dict(json.loads(result.stdout)) if code == 0 else {"error": result.stderr}


@pytest.fixture
def pictures(playground: Path) -> list[Path]:
    return sorted((playground / "test/images").iterdir())


def test_the_playground_with_scores_and_going_on_after_a_stop(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "answers.jsonl"
    arguments = ["--sampler", services.sampler, "--data", str(playground / "test"), "--limit", "8"]
    whole = run(*arguments, "--scorer", services.scorer, "--answers", str(kept))
    metrics = whole["metrics"]
    assert whole["counts"]["captions"] == metrics["chair_s"]["denominator"] == 8
    assert 40 < metrics["clip_score"]["value"] < 70
    assert metrics["clip_score"]["denominator"] == 8
    assert metrics["cover"]["value"] > 0.7
    assert metrics["pope_accuracy"]["value"] > 0.6
    assert metrics["question_attribute_accuracy"]["denominator"] > 0
    with SamplerClient(services.sampler) as sampler:
        assert whole["settings"]["policy_version"] == sampler.policies().active.version

    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:10]) + lines[10][:20])  # the process died while it wrote
    again = run(*arguments, "--scorer", services.scorer, "--answers", str(kept))
    assert {name: row["value"] for name, row in again["metrics"].items()} == pytest.approx(
        {name: row["value"] for name, row in metrics.items()}, abs=1e-3
    )
    assert kept.read_bytes().splitlines(keepends=True)[:10] == lines[:10]
    assert len(kept.read_bytes().splitlines()) == len(lines)

    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    rows[5]["text"], rows[6]["of"] = "a red star .", "another question"
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(*arguments, "--scorer", services.scorer, "--answers", str(kept))
    after = [json.loads(line) for line in kept.read_text().splitlines()]
    assert after[:-1] == rows  # answers stay, and a changed question is asked again
    assert after[-1]["key"] == rows[6]["key"]

    changed = run(*arguments, "--scorer", services.scorer, "--answers", str(kept), "--seed", "5", code=2)
    assert "seed 0 there, 5 now" in changed["error"]


def test_pope_asks_its_own_files(services: Services, playground: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [json.loads(line) for line in (playground / "test/questions.jsonl").read_text().splitlines()[:12]]
    for row in rows:
        shutil.copy(playground / "test" / row["image"], tmp_path / "images")
        row["image"] = Path(row["image"]).name
        del row["kind"]
    (tmp_path / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    value = run("--sampler", services.sampler, "--suite", "pope", "--data", str(tmp_path))
    assert value["counts"]["questions"] == 12
    assert {row["answer"] for row in value["details"]} <= {"yes .", "no ."}
    (tmp_path / "images" / rows[0]["image"]).unlink()
    assert "no image" in run("--sampler", services.sampler, "--suite", "pope", "--data", str(tmp_path), code=2)["error"]


def test_chair_takes_coco_files(services: Services, pictures: list[Path], tmp_path: Path) -> None:
    for name in ("coco_instances.json", "coco_captions.json"):
        shutil.copy(FIXTURES / name, tmp_path / f"{name.split('_')[1].removesuffix('.json')}_val.json")
    rows = [
        {"id": f"row-{number}", "image_id": number, "image": str(picture), "prompt": "describe the picture ."}
        for number, picture in zip((201, 202, 203), pictures, strict=False)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    value = run("--sampler", services.sampler, "--suite", "chair", "--data", str(tmp_path))
    assert value["counts"]["captions"] == 3
    assert value["counts"]["true_objects"] == 3
    assert value["metrics"]["recall"]["value"] == 0.0


def test_amber_asks_its_queries(services: Services, pictures: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(FIXTURES / "amber", data)
    (data / "query").mkdir()
    (tmp_path / "image").mkdir()
    queries = []
    for number in range(1, 10):
        shutil.copy(pictures[number], tmp_path / "image" / f"AMBER_{number}.png")
        text = "describe the picture ." if number < 3 else "is there a red star in the picture ?"
        queries.append({"id": number, "image": f"AMBER_{number}.png", "query": text})
    (data / "query" / "query_all.json").write_text(json.dumps(queries))
    value = run("--sampler", services.sampler, "--suite", "amber", "--data", str(data))
    assert value["counts"]["responses"] == 2
    assert value["counts"]["questions"] == 7
    assert value["counts"]["neither_yes_nor_no"] == 0
    assert any(text.startswith("similarity: only equal words") for text in value["differs_from_official"])
    few = run("--sampler", services.sampler, "--suite", "amber", "--data", str(data), "--limit", "2")
    assert "questions" not in few["counts"]
