"""Released sets of preferences in their authors' formats: rows written by hand in each format."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from running import WEIGHTS
from sightline.errors import InvalidInput
from sightline_trainer.candidates.released import ReleasedRule
from sightline_trainer.draws import Draws
from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.pairs.build import PairBuilder
from sightline_trainer.pools.preferences import open_preferences
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.released import Released
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.row_gate import RowGate

QUESTION, BETTER, WORSE = "what do you see ?", "there is a red star .", "there is a blue ring ."
GATE = RowGate(ModelProcessor(str(WEIGHTS / "llava")))


def turns(answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer}]


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def rated(response: str, *ratings: str) -> dict[str, Any]:
    aspects = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    marks = {aspect: {"Rating": mark, "Rationale": "so"} for aspect, mark in zip(aspects, ratings, strict=True)}
    return {"model": "llava", "response": response, "annotations": marks}


PAIR = {"answers": [BETTER, WORSE], "marks": [1.0, 0.0], "kinds": ["chosen", "rejected"]}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "povid": (
        {"id": "7", "image": "a.png", "conversations": turns(BETTER), "rejected_conversations": turns(WORSE)},
        PAIR,
    ),
    "csr": (  # with a path of its authors' machine
        {"id": 7, "image": "/data/coco/a.png", "conversations": turns(BETTER), "rejected_conversations": turns(WORSE)},
        PAIR,
    ),
    "bpo": (
        {
            "prompt": QUESTION,
            "image": "./coco/train2017/a.png",
            "completions": [
                {"score": 1.0, "response": BETTER, "type": "gt"},
                {"score": 0.0, "response": WORSE, "type": "llm-hal"},
                {"score": 0.0, "response": "there is a star .", "type": "mllm-hal"},
            ],
        },
        {
            "answers": [BETTER, WORSE, "there is a star ."],
            "marks": [1.0, 0.0, 0.0],
            "kinds": ["gt", "llm-hal", "mllm-hal"],
        },
    ),
    "rlhf_v": (
        {"image": "a.png", "idx": 3, "text": json.dumps({"question": QUESTION, "chosen": BETTER, "rejected": WORSE})},
        PAIR,
    ),
    "rlaif_v": ({"image": "a.png", "idx": 3, "question": QUESTION, "chosen": BETTER, "rejected": WORSE}, PAIR),
    "vlfeedback": (  # (5 + 4 + 5) / 3, (5 + 1 + 5) / 3; the third has no mark
        {
            "id": "x",
            "prompt": QUESTION,
            "img_path": "a.png",
            "completions": [rated(BETTER, "5", "4", "5"), rated(WORSE, "5", "1", "5"), rated("so", "5", "N/A", "5")],
        },
        {"answers": [BETTER, WORSE], "marks": [14 / 3, 11 / 3], "kinds": ["llava", "llava"]},
    ),
    "sena": ({"chosen": BETTER, "reject": WORSE, "question": QUESTION, "image": "a.png", "type": "caption"}, PAIR),
    "seva": ({"chosen": BETTER, "reject": WORSE, "question": QUESTION, "image_id": "a.png"}, PAIR),
    "trl": (
        {
            "images": ["a.png"],
            "prompt": said("user", QUESTION),
            "chosen": said("assistant", BETTER),
            "rejected": said("assistant", WORSE),
        },
        PAIR,
    ),
    "trl_texts": ({"images": ["a.png"], "prompt": QUESTION, "chosen": BETTER, "rejected": WORSE}, PAIR),
    "trl_implicit": (
        {
            "images": ["a.png"],
            "prompt": None,
            "chosen": said("user", QUESTION) + said("assistant", BETTER),
            "rejected": said("user", QUESTION) + said("assistant", WORSE),
        },
        PAIR,
    ),
    "trl_implicit_alone": (
        {
            "images": ["a.png"],
            "chosen": said("user", QUESTION) + said("assistant", BETTER),
            "rejected": said("user", QUESTION) + said("assistant", WORSE),
        },
        PAIR,
    ),
    "trl_prompt_twice": (  # as in UltraFeedback's releases
        {
            "images": ["a.png"],
            "prompt": QUESTION,
            "chosen": said("user", QUESTION) + said("assistant", BETTER),
            "rejected": said("user", QUESTION) + said("assistant", WORSE),
        },
        PAIR,
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(np.full((48, 48, 3), 200, np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def only(reference: str, cache: Path | None = None) -> Released:
    (row,) = open_preferences(reference, cache, GATE).head()
    assert isinstance(row, Released)
    return row


def as_lines(folder: Path, rows: list[Any]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def as_array(folder: Path, rows: list[Any]) -> str:
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows, indent=1))
    return str(path)


def as_parquet(folder: Path, rows: list[Any]) -> str:
    path = folder / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("write", [as_lines, as_array, as_parquet])
@pytest.mark.parametrize("name", list(ROWS))
def test_a_released_set_is_read_as_it_is(folder: Path, name: str, write: Callable[[Path, list[Any]], str]) -> None:
    row, wanted = ROWS[name]
    found = only(write(folder, [row]))
    assert (found.prompt, found.images) == (QUESTION, (folder / "a.png",))
    assert {key: list(getattr(found, key)) for key in wanted} == wanted


def test_pictures_lie_where_the_reference_says_or_in_the_table(folder: Path) -> None:
    other = folder / "sets"
    other.mkdir()
    reference = as_array(other, [ROWS["povid"][0]])
    assert only(f"{reference}?images={folder}").images == (folder / "a.png",)
    held = {**ROWS["rlaif_v"][0], "image": {"bytes": (folder / "a.png").read_bytes(), "path": None}}
    found = only(as_parquet(other, [held]), folder / "cache")
    assert found.images[0].read_bytes() == (folder / "a.png").read_bytes()
    (folder / "secret.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(InvalidInput) as caught:
        only(as_array(other, [{**ROWS["povid"][0], "image": "../secret.png"}]))
    assert caught.value.reason in ("IMAGE_OUTSIDE", "DATASET_EMPTY")


def test_a_dataset_saved_to_disk_is_read_too(folder: Path) -> None:
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    rows = [ROWS["trl_texts"][0], ROWS["trl_texts"][0]]
    features = Features(
        {"images": List(ImageFeature()), **{key: Value("string") for key in ("prompt", "chosen", "rejected")}}
    )
    held = [{**row, "images": [{"bytes": (folder / "a.png").read_bytes(), "path": None}]} for row in rows]
    Dataset.from_list(held, features=features).save_to_disk(folder / "saved")
    found = open_preferences(f"datasets:{folder / 'saved'}", folder / "cache", GATE).head()
    assert [row.prompt for row in found] == [QUESTION, QUESTION]
    assert len({row.id for row in found}) == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ROWS["rlaif_v"][0], "rejected": BETTER}, "PAIR_NO_PREFERENCE"),
        ({**ROWS["rlaif_v"][0], "rejected": BETTER + " "}, "PAIR_NO_PREFERENCE"),
        ({**ROWS["rlaif_v"][0], "rejected": None}, "REJECTED_NO_TEXT"),
        ({**ROWS["povid"][0], "rejected_conversations": None}, "PAIR_INCOMPLETE"),
        ({**ROWS["povid"][0], "rejected_conversations": [{"from": "human", "value": "where ?"}, *turns(WORSE)[1:]]},
         "PAIR_QUESTIONS_DIFFER"),
        ({**ROWS["trl_implicit_alone"][0], "rejected": said("user", "where ?") + said("assistant", WORSE)},
         "PAIR_QUESTIONS_DIFFER"),
        ({**ROWS["trl"][0], "prompt": said("system", "Be brief.") + said("user", QUESTION)}, "PAIR_TURNS"),
        ({**ROWS["trl_implicit_alone"][0], **{side: said("user", "a") + said("assistant", "b") + said("user", "c")
                                              + said("assistant", side) for side in ("chosen", "rejected")}},
         "PAIR_TURNS"),
        ({"images": ["a.png"], "chosen": BETTER, "rejected": WORSE}, "PROMPT_MISSING"),
        ({**ROWS["bpo"][0], "completions": [{"score": None, "response": "a"}]}, "PAIR_MARK"),
        ({**ROWS["bpo"][0], "completions": [{"score": "high", "response": "a"}]}, "PAIR_MARK"),
        ({**ROWS["bpo"][0], "completions": [{"score": 1}]}, "PAIR_INCOMPLETE"),
        ({**ROWS["vlfeedback"][0], "completions": [
            rated(BETTER, "5", "5", "5"), {"response": WORSE, "annotations": {"Helpfulness": {"Rating": "1"}}}]},
         "PAIR_NO_PREFERENCE"),  # an answer that lacks a rating has no mark
        ({**ROWS["rlaif_v"][0], "rejected": " "}, "REJECTED_EMPTY"),
        ({**ROWS["rlaif_v"][0], "chosen": "a </s> b"}, "CHOSEN_SPECIAL_TOKEN"),
        ({**ROWS["rlaif_v"][0], "image": None}, "IMAGE_MISSING"),
        ({**ROWS["trl_texts"][0], "images": ["a.png", "a.png"]}, "IMAGE_NOT_ONE"),
        ({**ROWS["povid"][0], "conversations": turns(BETTER) * 2}, "PAIR_TURNS"),
        ({"image": "a.png", "caption": "x"}, "PAIR_INCOMPLETE"),
        ({**ROWS["bpo"][0], "completions": [{"score": float("nan"), "response": "a"}]}, "PAIR_MARK"),
        ({**ROWS["vlfeedback"][0], "completions": [rated(BETTER, "4", "4", "4"), rated(WORSE, "4", "4", "4")]},
         "PAIR_NO_PREFERENCE"),
        ({**ROWS["rlhf_v"][0], "text": "{"}, "DATASET_LINE"),
        ("no object", "DATASET_LINE"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_left_out_by_name(folder: Path, row: Any, reason: str) -> None:
    pool = open_preferences(as_lines(folder, [ROWS["povid"][0], row]), None, GATE)
    assert (len(pool), dict(pool.dropped.counts)) == (1, {reason: 1})


def test_every_answer_faces_those_with_a_lower_mark_whatever_the_reward_says(folder: Path) -> None:
    row = only(as_array(folder, [ROWS["bpo"][0]]))
    rewards = (1.0, 2.0, 2.0)
    group = [
        Response(row.id, at, text, [1], prompt=QUESTION, source=f"released:{kind}", score=Score(rewards[at]))
        for at, (text, kind) in enumerate(zip(row.answers, row.kinds, strict=True))
    ]
    builder = PairBuilder({}, {"released": ReleasedRule({row.id: row})}, iteration=1)
    pairs = list(builder.build({row.id: row}, [(row.id, group)]))
    assert [(pair["chosen_source"], pair["rejected_source"], pair["rule"]) for pair in pairs] == [
        ("released:gt", "released:llm-hal", "released"),
        ("released:gt", "released:mllm-hal", "released"),
    ]
    assert builder.counts == Counter(pairs=2)


@pytest.mark.parametrize(
    ("mix", "wanted"),
    [
        ({}, [(0, 4), (0, 4)]),
        ({"offline": 0.5}, [(2, 2), (2, 2)]),
        ({"offline": 0.0, "start": 1}, [(0, 4), (4, 0)]),
        ({"offline": 0.25, "start": 1}, [(0, 4), (3, 1)]),
    ],
)
def test_an_iteration_draws_its_share_of_released_rows(
    folder: Path, playground: Path, mix: dict[str, Any], wanted: list[tuple[int, int]]
) -> None:
    from sightline_trainer.pools import open_pool

    rows = [{**ROWS["rlaif_v"][0], "chosen": f"{BETTER} {number}"} for number in range(8)]
    pairs = open_preferences(as_lines(folder, rows), None, None)
    data = {"train": "a", "test": "b", "pairs": "c", "mix": mix, "prompts_per_iteration": 4}
    recipe = Recipe.model_validate({"name": "x", "model": "m", "iterations": 2, "data": data})
    draws = Draws(recipe, open_pool(playground / "train"), pairs)
    found = [(draws.asked(iteration), draws.released(iteration)) for iteration in (1, 2)]
    assert [(len(asked), len(released)) for asked, released in found] == wanted
    one, other = ({row.id for row in released} for _, released in found)
    assert not one & other  # none comes twice before all have come once
    assert draws.released(2) == found[1][1]
    assert {prompt.id for prompt in draws.all()} == {each.id for both in found for side in both for each in side}
