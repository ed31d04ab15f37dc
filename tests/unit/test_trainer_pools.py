"""Pools: every kind of dataset gives prompts, seeded draws, and errors that name the place."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from field import controls
from PIL import Image
from sightline.errors import InvalidInput, PreconditionFailed
from sightline_trainer.pools import Pool, hold_out, load_prompts, open_pool, side_files
from sightline_trainer.pools import lines as lines_module
from sightline_trainer.pools.dataset_name import directories


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
    assert prompt.images == (tmp_path / "d/images/7.png",)
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
        ("not json\n", "holds no JSON"),
        ("{not json}\n", "line 1"),
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
            assert str(prompt.images[0]) == "/coco/train/3.jpg"
    file.write_text(json.dumps(items)[:-40])
    with pytest.raises(InvalidInput, match="not an array of JSON objects"):
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
    assert inside.images[0].is_relative_to(tmp_path / "cache")
    assert inside.images[0].read_bytes() == content
    assert beside.images == (tmp_path / "red.png",)
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
    assert [prompt.prompt for prompt in pool.head(2)] == ["q0", "q1"]
    assert len({prompt.id for prompt in pool.head()}) == 3
    assert pool.head(1)[0].images[0].read_bytes() == content
    with pytest.raises(InvalidInput, match="no column prompt"):
        open_pool(f"datasets:{tmp_path}/saved")


def test_a_question_mark_may_be_part_of_a_name(tmp_path: Path) -> None:
    """`?` began the query, so a file `what?.jsonl` was looked for under the name `what`."""
    pictures = jsonl(tmp_path / "which?")
    file = tmp_path / "what?.jsonl"
    file.write_bytes((pictures / "prompts.jsonl").read_bytes())
    pool = open_pool(f"{file}?images={pictures}&reference=reference")
    assert pool.head() == open_pool(pictures).head()
    assert side_files(f"{file}?images={pictures}") == tmp_path
    assert pictures in directories(f"{file}?images={pictures}")
    with pytest.raises(InvalidInput, match=r"jsonl after \? has no value"):
        open_pool(f"{tmp_path}/missing?.jsonl")


def test_a_name_that_reads_like_a_query_allows_no_other_directory(tmp_path: Path) -> None:
    named = tmp_path / "data?images=/etc"
    named.mkdir(parents=True)
    assert {Path("/etc"), tmp_path / "data"} <= set(directories(str(named)))


def test_side_files_lie_beside_the_prompts(tmp_path: Path) -> None:
    jsonl(tmp_path)
    assert side_files(str(tmp_path)) == tmp_path
    assert side_files(f"{tmp_path}/prompts.jsonl") == tmp_path
    (tmp_path / "mix.json").write_text("[]")
    assert side_files(f"llava:{tmp_path}/mix.json?images=/coco") == tmp_path
    with pytest.raises(InvalidInput, match="there is nothing at"):
        open_pool(f"llava:{tmp_path}/other.json")


def picture(path: Path, colour: str, size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path, "PNG")
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> Pool:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return open_pool(path, path.parent / "cache")


@pytest.mark.field
def test_an_id_that_nobody_gave_is_a_digest_of_picture_and_text(tmp_path: Path) -> None:
    red, blue = (picture(tmp_path / f"{name}.png", name).read_bytes() for name in ("red", "blue"))
    rows = [{"image": {"bytes": held, "path": None}, "prompt": text} for held in (red, blue) for text in ("a", "b")]
    pool = table(tmp_path / "t.parquet", rows)
    ids = [prompt.id for prompt in pool.head()]
    assert len(set(ids)) == 4
    # The same row elsewhere, at another place, in another format: the same id, so the same seeds.
    assert [prompt.id for prompt in table(tmp_path / "u/t.parquet", rows[::-1]).head()] == ids[::-1]
    lines = tmp_path / "lines.jsonl"
    named = [{"image": f"{name}.png", "prompt": text} for name in ("red", "blue") for text in "ab"]
    lines.write_text("".join(json.dumps(row) + "\n" for row in named))
    assert [prompt.id for prompt in open_pool(lines).head()] == ids
    # Given ids stay; null counts as no id.
    mixed = table(tmp_path / "m.parquet", [{**row, "id": "x" if n == 1 else None} for n, row in enumerate(rows)])
    assert [prompt.id for prompt in mixed.head()] == [ids[0], "x", *ids[2:]]


@pytest.mark.field
def test_equal_rows_without_ids_are_told_apart_and_with_ids_refused(tmp_path: Path) -> None:
    held = picture(tmp_path / "red.png", "red").read_bytes()
    row = {"image": {"bytes": held, "path": None}, "prompt": "a"}
    pool = table(tmp_path / "t.parquet", [row, {**row, "prompt": "b"}, row, row])
    ids = [prompt.id for prompt in pool.head()]
    assert ids[2:] == [f"{ids[0]}-3", f"{ids[0]}-4"]
    assert [prompt.id for prompt in pool.rows([3])] == [ids[3]]
    assert len(set(pool.digests.tolist())) == 4
    with pytest.raises(InvalidInput, match="prompts 1 and 2 have the same id"):
        table(tmp_path / "u.parquet", [{**row, "id": "x"}, {**row, "id": "x", "prompt": "b"}])


@pytest.mark.field
def test_files_of_one_table_with_and_without_ids(tmp_path: Path) -> None:
    rows = [{"image": str(picture(tmp_path / f"{name}.png", name)), "prompt": "a"} for name in ("red", "blue")]
    pq.write_table(pa.Table.from_pylist([{**rows[0], "id": "given"}]), tmp_path / "1.parquet")
    pq.write_table(pa.Table.from_pylist(rows[1:]), tmp_path / "2.parquet")
    first, second = open_pool(tmp_path).head()
    assert (first.id, len(second.id)) == ("given", 24)


@pytest.mark.field
def test_held_out_means_other_pictures_whatever_they_are_called(tmp_path: Path) -> None:
    colours = ["red", "blue", "green", "white"]
    train = table(
        tmp_path / "train/t.parquet",
        [{"image": str(picture(tmp_path / f"train/{c}.png", c)), "prompt": "a"} for c in colours[:2]],
    ).head()
    test = table(
        tmp_path / "test/t.parquet",
        [{"image": str(picture(tmp_path / f"test/{c}.png", c)), "prompt": "a"} for c in colours[2:]],
    ).head()
    hold_out(train, test)  # row numbers used to collide
    hold_out([replace(train[0], id="same")], [replace(test[0], id="same")])
    copied = replace(test[0], images=(picture(tmp_path / "copy.png", "red"),), id="another")
    with pytest.raises(PreconditionFailed, match=r"share 1 pictures \(1 with the same text\), such as") as caught:
        hold_out(train, [*test, copied])
    assert caught.value.reason == "TEST_LEAKS"
    with pytest.raises(PreconditionFailed, match=r"share 1 pictures \(0 with the same text\)"):
        hold_out(train, [replace(copied, prompt="b")])
    missing, gone = (replace(one, images=(tmp_path / "gone.png",)) for one in (train[0], test[0]))
    hold_out([missing], [gone])
    beside = replace(train[0], images=(*train[0].images, *test[0].images))
    with pytest.raises(PreconditionFailed, match="share 1 pictures"):  # the second of two images
        hold_out([beside], test)
    with pytest.raises(PreconditionFailed, match="share 1 pictures"):
        hold_out(train, [replace(test[0], images=(*test[1].images, *copied.images))])


@pytest.mark.field
@pytest.mark.parametrize(
    ("prompts", "count"), [(40, 200), *controls((40, 40)), (40, 30), (40, 7), (7, 5), (10, 9), (3, 2)]
)
def test_no_prompt_comes_twice_in_an_iteration(tmp_path: Path, prompts: int, count: int) -> None:
    image = str(picture(tmp_path / "red.png", "red"))
    pool = table(tmp_path / "t.parquet", [{"id": str(n), "image": image, "prompt": "a"} for n in range(prompts)])
    walked: list[str] = []
    for iteration in range(1, 30):
        drawn = [prompt.id for prompt in pool.draw(count, iteration=iteration, seed=3)]
        assert len(set(drawn)) == len(drawn) == min(count, prompts)
        walked += drawn
    for start in range(0, len(walked) - prompts + 1, prompts):
        assert len(set(walked[start : start + prompts])) == prompts  # none twice before all have come once
    again = open_pool(tmp_path / "t.parquet")  # as a run that goes on draws it
    assert [prompt.id for prompt in again.draw(count, iteration=29, seed=3)] == walked[-min(count, prompts) :]
