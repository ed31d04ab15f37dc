"""Datasets as strangers have them: other formats are read or named, and columns that differ are told."""

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from sightline.errors import InvalidInput
from sightline_trainer.pools import open_pool
from sightline_trainer.pools.preferences import open_preferences

pytestmark = pytest.mark.field

ROW = {"id": "1", "image": "a.png", "prompt": "what is it ?"}
SECOND = {**ROW, "id": "2"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    return tmp_path


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refused(place: str | Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        open_pool(place, Path(str(place)).parent / "cache")
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_array_is_read_as_lines_are(home: Path, name: str, indent: int | None, mark: bytes) -> None:
    (home / name).write_bytes(mark + json.dumps([ROW, SECOND], indent=indent).encode())
    (home / "plain.jsonl").write_text(lines(ROW, SECOND))
    pool = open_pool(home / name)
    assert pool.head() == open_pool(home / "plain.jsonl").head()
    assert pool.rows([1]) == pool.head()[1:]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_llavas_file_may_begin_with_a_byte_order_mark(home: Path, mark: bytes) -> None:
    turns = [{"from": "human", "value": "<image>\nä ?"}, {"from": "gpt", "value": "ö"}]
    rows = [{"id": "1", "image": "a.png", "conversations": turns}] * 3
    (home / "talk.json").write_bytes(mark + json.dumps(rows, ensure_ascii=False).encode())
    pool = open_pool(f"llava:{home}/talk.json")
    assert [(prompt.id, prompt.prompt, prompt.reference) for prompt in pool.rows([0, 2])] == [
        ("1-1", "ä ?", "ö"), ("1-3", "ä ?", "ö"),
    ]  # fmt: skip


def tar(rows: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as file:
        member = tarfile.TarInfo("0.json")
        member.size = len(rows)
        file.addfile(member, io.BytesIO(rows))
    return held.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.jsonl", lines(ROW, SECOND).encode("utf-16"), "is UTF-16: write it as UTF-8"),
        ("rows.jsonl.gz", gzip.compress(lines(ROW).encode()), "is compressed by gzip"),
        ("rows.tar", tar(lines(ROW).encode()), "is a tar archive"),
        ("rows.csv", b"id,image,prompt\n1,a.png,what ?\n", "holds no JSON"),
        ("rows.tsv", b"id\timage\tprompt\n1\ta.png\twhat ?\n", "holds no JSON"),
        ("rows.json", json.dumps({"data": [ROW]}, indent=1).encode(), "is one JSON object"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_a_file_of_another_format_is_named_as_that(home: Path, name: str, content: bytes, says: str) -> None:
    """Each of its lines was counted as DATASET_LINE, with the decoder's position in the first."""
    (home / name).write_bytes(content)
    error = refused(home / name)
    assert (error.reason, says in str(error), str(home / name) in str(error)) == ("DATASET_FORMAT", True, True)
    if not name.endswith(".json"):
        with pytest.raises(InvalidInput):
            open_preferences(str(home / name))


def test_bad_lines_beside_good_ones_are_still_only_left_out(home: Path) -> None:
    (home / "rows.jsonl").write_text("# a comment\n" + lines(ROW) + "{\n")
    assert len(open_pool(home / "rows.jsonl")) == 1


@pytest.mark.parametrize(
    ("row", "reason", "says"),
    [
        ({"id": "1", "image_path": "a.png", "question": "q"}, "PROMPT_MISSING", "no prompt, but 'id', 'image_path'"),
        ({"image_path": "a.png", "prompt": "q"}, "IMAGE_MISSING", r"after \?, as in \?image=NAME"),
        ({"image": "a.png", "conversations": [{"from": "human", "value": "q"}]}, "PROMPT_MISSING", "llava:FILE"),
        ({"data": [ROW]}, "PROMPT_MISSING", "no prompt, but 'data'"),
        ({**ROW, "prompt": None}, "PROMPT_MISSING", "its prompt is null"),
        ({**ROW, "image": "https://example.org/a.png"}, "IMAGE_NO_FILE", "is an address"),
        ({**ROW, "image": "file:///data/a.png"}, "IMAGE_NO_FILE", "is an address"),
        ({**ROW, "image": "/9j/" + "A" * 300}, "IMAGE_NO_FILE", "is base64: put data:image"),
        ({**ROW, "image": "data:image/png,abc"}, "DATA_URI_UNUSABLE", "data:image"),
        ({**ROW, "image": "data:image/png;base64,?"}, "BASE64_MALFORMED", "not base64"),
    ],
)
def test_a_row_says_what_it_lacks_and_what_to_do(home: Path, row: dict[str, Any], reason: str, says: str) -> None:
    (home / "rows.jsonl").write_text(lines(row))
    with pytest.raises(InvalidInput, match=says) as caught:
        open_pool(home / "rows.jsonl", home / "cache")
    assert caught.value.reason == reason


def test_a_picture_may_be_a_data_uri(home: Path) -> None:
    held = (home / "a.png").read_bytes()
    text = base64.b64encode(held).decode()
    rows = [{**ROW, "image": f"data:image/png;base64,{text}"}, {**SECOND, "image": {"bytes": text, "path": None}}]
    (home / "rows.jsonl").write_text(lines(*rows))
    pool = open_pool(home / "rows.jsonl", home / "cache")
    assert [prompt.images[0].read_bytes() for prompt in pool.head()] == [held, held]
    with pytest.raises(InvalidInput, match="must be a path here"):
        open_pool(home / "rows.jsonl")


def test_one_picture_may_have_its_place_in_the_prompt(home: Path) -> None:
    """Such prompts were left out, for the placeholder in them."""
    asked = [{**ROW, "prompt": "<image>\nwhat is it ?"}, {**SECOND, "prompt": "what is it ?\n<image>"}]
    (home / "rows.jsonl").write_text(lines(*asked))
    assert [(prompt.prompt, prompt.turns) for prompt in open_pool(home / "rows.jsonl").head()] == [
        (ROW["prompt"], ()), (ROW["prompt"], ()),
    ]  # fmt: skip


def test_an_id_that_comes_twice_is_told(home: Path) -> None:
    (home / "rows.jsonl").write_text(lines(ROW, {**ROW, "prompt": "another ?"}))
    assert "prompts 1 and 2 have the same id, 1;" in str(refused(home / "rows.jsonl"))
    assert len(open_pool(f"{home}/rows.jsonl?id=none")) == 2


@pytest.mark.parametrize("place", ["", "https://hub.example/datasets/x", "s3://bucket/rows.jsonl", "hf://datasets/x"])
def test_a_place_that_is_not_on_this_machine_is_named(place: str) -> None:
    with pytest.raises(InvalidInput, match=f"^'{place}' names no dataset on this machine"):
        open_pool(place)


def test_a_directory_of_the_datasets_library_says_how_to_name_it(home: Path) -> None:
    saved = datasets.Dataset.from_dict({"image": [str(home / "a.png")], "prompt": ["q"]})
    saved.save_to_disk(home / "saved")
    (home / "snapshot/data").mkdir(parents=True)
    saved.to_parquet(home / "snapshot/data/train-00000-of-00001.parquet")
    for name in ("saved", "snapshot"):
        assert f"as datasets:{home / name}" in str(refused(home / name))


def test_a_split_that_was_not_saved_is_refused(home: Path) -> None:
    one = datasets.Dataset.from_dict({"image": ["a.png"], "prompt": ["q"]})
    two = datasets.DatasetDict({"train": one, "test": one})
    two.save_to_disk(home / "two")
    one.save_to_disk(home / "one")
    two["test"].save_to_disk(home / "part")
    assert str(refused(f"datasets:{home}/two?split=validation")).endswith("no split validation: it has train, test")
    assert str(refused(f"datasets:{home}/one?split=test")).endswith("no split test: it has train")
    for reference in ("two?split=test", "two", "one", "one?split=train", "part"):
        assert len(open_pool(f"datasets:{home}/{reference}")) == 1
