"""Bad rows in a whole run: the run continues, names the rows that it left out, and counts them."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from running import Services, small_recipe
from sightline.errors import SightlineError
from sightline_playground.export import export
from sightline_trainer.events import Event
from sightline_trainer.execute import execute
from sightline_trainer.pairs.build import FEATURES
from sightline_trainer.recipe import Recipe
from sightline_trainer.report.history import History
from sightline_trainer.report.page import page
from sightline_trainer.runs import RunDirectory

pytestmark = pytest.mark.field

BAD: dict[int, dict[str, Any]] = {
    0: {"prompt": "what \ud83d ?"},
    1: {"prompt": "a <image> ?"},
    2: {"prompt": ""},
    3: {"reference": "a star \ud83d"},
    4: {"reference": "a star .</s>"},
    5: {"reference": " ".join(["red"] * 400)},  # room for the prompt, but not for the answer
    6: {"image": None},
    7: {"image": "images/gone.png"},
    8: {"image": "images"},
}


def spoiled(directory: Path, split: Any, bad: dict[int, dict[str, Any]], count: int = 16) -> list[dict[str, Any]]:
    """A playground dataset in which some rows have other values."""
    export(directory, split=split, count=count, seed=5)
    rows = [json.loads(line) for line in (directory / "prompts.jsonl").read_text().splitlines()]
    for at, values in bad.items():
        rows[at] |= values
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def recipe(services: Services, root: Path, **values: Any) -> Recipe:
    """A recipe of one iteration on all rows: the reference against the policy's answer."""
    tree = small_recipe(services, root, iterations=1)
    tree["data"]["prompts_per_iteration"] = 64
    tree["sampling"]["candidates"] = 2
    tree |= {
        "candidates": {"policy": {}, "reference": {}},
        "reward": {"address": services.scorer, "terms": {}},
        "filters": {},
        "pairing": {"reference_against_rejected": {"rejected": {"policy": 1.0}}},
        "evaluation": {"prompts": 6, "questions": 6, "diverse_prompts": 0, "greedy_prompts": 2},
        **values,
    }
    return Recipe.model_validate(tree)


def test_a_run_goes_on_without_its_bad_rows(services: Services, tmp_path: Path) -> None:
    rows = spoiled(tmp_path / "train", "align", BAD)
    (tmp_path / "train" / rows[9]["image"]).write_bytes(b"\x89PNG\r\n\x1a\n")
    held_out = spoiled(tmp_path / "test", "test", {0: {"prompt": "\udcff"}, 1: {"image": "images/gone.png"}}, 8)
    questions = tmp_path / "test/questions.jsonl"
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    asked = [{**one, "text": "is <image> there ?"} if one["id"] == held_out[2]["id"] else one for one in asked]
    questions.write_text("".join(json.dumps(one) + "\n" for one in asked))

    run, events = RunDirectory(tmp_path / "run"), list[Event]()
    execute(recipe(services, tmp_path), run, events.append)
    assert run.state()["state"] == "succeeded"

    found = json.loads((run.root / "dropped.json").read_text())
    assert found["data.train"]["counts"] == {
        "PROMPT_HALF_CHARACTER": 1, "PROMPT_SPECIAL_TOKEN": 1, "PROMPT_EMPTY": 1, "REFERENCE_HALF_CHARACTER": 1,
        "REFERENCE_SPECIAL_TOKEN": 1, "IMAGE_MISSING": 1, "IMAGE_NO_FILE": 1,
    }  # fmt: skip
    assert found["data.train"]["rows"][0]["row"].endswith("prompts.jsonl, line 1")
    counts = found["data.test"]["counts"]
    assert (counts["PROMPT_HALF_CHARACTER"], counts["IMAGE_FILE_UNREADABLE"]) == (1, 1)
    assert counts["PROMPT_SPECIAL_TOKEN"] >= 1  # the questions about the third picture
    kept = json.loads((run.iteration(1) / "pairs.json").read_text())
    assert kept["candidate_too_long"] == 1
    assert kept["prompt_image_file_unreadable"] == 1
    assert sum(count for name, count in kept.items() if name.startswith("prompt_image_")) == 2
    pairs = pq.read_table(run.iteration(1) / "pairs.parquet")
    assert set(pairs["prompt_id"].to_pylist()) <= {row["id"] for row in rows[10:]}
    messages = [event.message for event in events if "left_out" in event.metrics]
    assert any("7 rows of data.train were left out" in one and "line 1" in one for one in messages)
    assert any("candidate_too_long" in one for one in messages)

    # A pair that was kept by another release and cannot be trained on; and a damaged line of events.
    row = {**pairs.slice(0, 1).to_pylist()[0], "prompt_id": "spoiled", "chosen_ids": [5, 4, 6, 3]}
    import pyarrow as pa

    with pq.ParquetWriter(run.iteration(1) / "pairs.parquet", FEATURES.arrow_schema) as writer:
        writer.write_table(pa.concat_tables([pa.Table.from_pylist([row], FEATURES.arrow_schema), pairs]))
    for name in ("update.json", "publish.json", "evaluation.json"):
        (run.iteration(1) / name).unlink()
    with run.events.open("ab") as file:
        file.write(b'{"stage": "pa\xff\n')
    events.clear()
    execute(recipe(services, tmp_path), run, events.append)
    update = json.loads((run.iteration(1) / "update.json").read_text())["metrics"]
    assert (update["pairs_left_out"], update["left_out_chosen_special_token"]) == (1.0, 1.0)
    assert any("pair 1 (prompt spoiled)" in event.message for event in events)
    html = page([History.read(run.root)], pictures=2)
    assert "Rows left out" in html
    assert all(reason in html for reason in ("REFERENCE_HALF_CHARACTER", "CANDIDATE_TOO_LONG", "CHOSEN_SPECIAL_TOKEN"))


def test_no_picture_at_all_is_said_as_that(services: Services, tmp_path: Path) -> None:
    spoiled(tmp_path / "train", "align", {at: {"image": f"images/gone{at}.png"} for at in range(8)}, 8)
    spoiled(tmp_path / "test", "test", {}, 6)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(SightlineError, match=r"8 of 8 sampled images of data\.train can't be read, such as .*gone"):
        execute(recipe(services, tmp_path), run, lambda event: None)
    assert run.state()["reason"] == "IMAGES_UNREADABLE"
