"""Pools: every kind of dataset gives its prompts, seeded draws, and errors that name the place."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sightline.errors import InvalidInput
from sightline_trainer.pools import lines as lines_module
from sightline_trainer.pools import load_prompts, open_pool, side_files


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"p{i}", "image": f"images/{i}.png", "prompt": "what is it ?", "reference": f"ä {i}", "objects": ["cat"]}
        for i in range(count)
    ]


def jsonl(directory: Path, count: int = 10) -> Path:
    directory.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows(count))
    (directory / "prompts.jsonl").write_text(text + "\n\n")
    return directory


def test_lines_are_read_by_their_place(tmp_path: Path) -> None:
    pool = open_pool(jsonl(tmp_path / "d"))
    assert len(pool) == 10
    (prompt,) = pool.rows([7])
    assert (prompt.id, prompt.reference, prompt.objects) == ("p7", "ä 7", ("cat",))
    assert prompt.image == tmp_path / "d/images/7.png"
    assert [prompt.id for prompt in pool.rows([3, 1, 3])] == ["p3", "p1", "p3"]
    assert [prompt.id for prompt in pool.head(2)] == ["p0", "p1"]
    assert open_pool(tmp_path / "d/prompts.jsonl").head() == pool.head()


def test_prompts_walk_the_whole_pool_before_one_comes_again(tmp_path: Path) -> None:
    pool = open_pool(jsonl(tmp_path / "d"))
    first, second, third = (pool.draw(4, iteration=i, seed=7) for i in (1, 2, 3))
    assert first == open_pool(tmp_path / "d").draw(4, iteration=1, seed=7)
    assert first != pool.draw(4, iteration=1, seed=8)
    ids = [prompt.id for prompt in [*first, *second, *third]]
    assert len(ids) == 12
    assert len(set(ids[:10])) == 10


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "prompts.jsonl"),
        ("", "no prompt"),
        ("not json\n", "line 1"),
        ('{"id": 1, "image": "x.png"}\n', "prompt"),
        ('{"id": 1, "image": "x", "prompt": 2}\n', "must be texts"),
        (
            '{"id": 1, "image": "x", "prompt": "p"}\n{"id": 1, "image": "x", "prompt": "p"}\n',
            "1 and 2 have the same id",
        ),
    ],
)
def test_a_bad_dataset_is_refused_with_its_line(tmp_path: Path, lines: str | None, message: str) -> None:
    if lines is not None:
        (tmp_path / "prompts.jsonl").write_text(lines)
    with pytest.raises(InvalidInput, match=message):
        load_prompts(tmp_path)


def test_other_column_names_and_unknown_ones(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"key": 1, "file": "a.png", "question": "q", "answer": "a"}\n')
    (prompt,) = load_prompts(f"{tmp_path}/x.jsonl?id=key&image=file&prompt=question&reference=answer")
    assert (prompt.id, prompt.prompt, prompt.reference) == ("1", "q", "a")
    with pytest.raises(InvalidInput, match="unknown prompts; known are id, image"):
        load_prompts(f"{tmp_path}/x.jsonl?prompts=question")


def test_llavas_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [
        {"id": "7", "conversations": [{"from": "human", "value": "no image"}, {"from": "gpt", "value": "x"}]},
        *(
            {
                "id": "000033471",
                "image": f"train/{i}.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat colour is the bus [é]?"},
                    {"from": "gpt", "value": f'It is "red", {i}.'},
                    {"from": "human", "value": "more"},
                    {"from": "gpt", "value": "no"},
                ],
            }
            for i in range(5)
        ),
    ]
    file = tmp_path / "mix.json"
    for indent in (None, 2):
        file.write_text(json.dumps(items, indent=indent, ensure_ascii=False))
        for chunk in (1 << 20, 17):
            monkeypatch.setattr(lines_module, "CHUNK", chunk)
            pool = open_pool(f"llava:{file}?images=/coco")
            assert [prompt.id for prompt in pool.head()] == [f"000033471-{i}" for i in range(2, 7)]
            (prompt,) = pool.rows([3])
            assert prompt.prompt == "What colour is the bus [é]?"
            assert prompt.reference == 'It is "red", 3.'
            assert str(prompt.image) == "/coco/train/3.jpg"
    file.write_text(json.dumps(items)[:-40])
    with pytest.raises(InvalidInput, match="no array of JSON objects"):
        open_pool(f"llava:{file}")


def test_parquet_with_images_inside(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    content = (tmp_path / "red.png").read_bytes()
    made = [
        {**row, "image": {"bytes": content, "path": None} if i % 2 else {"bytes": None, "path": "red.png"}}
        for i, row in enumerate(rows(10))
    ]
    for start, name in ((0, "a.parquet"), (6, "b.parquet")):
        table = pa.Table.from_pylist(made[start : start + 6])
        pq.write_table(table, tmp_path / name, row_group_size=4)
    pool = open_pool(tmp_path, tmp_path / "cache")
    assert [prompt.id for prompt in pool.rows([9, 0, 5, 6])] == ["p9", "p0", "p5", "p6"]
    inside, beside = pool.rows([1, 2])
    assert inside.image.is_relative_to(tmp_path / "cache")
    assert inside.image.read_bytes() == content
    assert beside.image == tmp_path / "red.png"
    assert len(pool.draw(10, iteration=1, seed=0)) == 10
    with pytest.raises(InvalidInput, match="no column text"):
        open_pool(f"{tmp_path}/a.parquet?prompt=text")


def test_a_dataset_of_the_datasets_library(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    Image.new("RGB", (4, 4), "blue").save(tmp_path / "blue.png")
    content = (tmp_path / "blue.png").read_bytes()
    dataset = Dataset.from_list(
        [{"image": {"bytes": content, "path": None}, "question": f"q{i}"} for i in range(3)],
        features=Features({"image": ImageFeature(), "question": Value("string")}),
    )
    dataset.save_to_disk(str(tmp_path / "saved"))
    pool = open_pool(f"datasets:{tmp_path}/saved?prompt=question", tmp_path / "cache")
    assert [(prompt.id, prompt.prompt) for prompt in pool.head(2)] == [("000000000", "q0"), ("000000001", "q1")]
    assert pool.head(1)[0].image.read_bytes() == content
    with pytest.raises(InvalidInput, match="no column prompt"):
        open_pool(f"datasets:{tmp_path}/saved")


def test_side_files_lie_beside_the_prompts(tmp_path: Path) -> None:
    jsonl(tmp_path)
    assert side_files(str(tmp_path)) == tmp_path
    assert side_files(f"{tmp_path}/prompts.jsonl") == tmp_path
    (tmp_path / "mix.json").write_text("[]")
    assert side_files(f"llava:{tmp_path}/mix.json?images=/coco") == tmp_path
    with pytest.raises(InvalidInput, match="no such file"):
        open_pool(f"llava:{tmp_path}/other.json")
