"""One row never ends a run: every text and picture passes one gate, which names and leaves out what it refuses."""

import asyncio
import http.server
import io
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image
from running import WEIGHTS
from sightline.errors import InvalidInput, PreconditionFailed
from sightline.pictures import png_chunk
from sightline.sampler.turns import user_turn
from sightline_cli.calibration import reference_lines
from sightline_cli.export import export, plain_pairs
from sightline_cli.failures import guarded
from sightline_trainer.candidates.injected import Injected
from sightline_trainer.candidates.reference import unsampled
from sightline_trainer.dpo.kept_pairs import kept_pairs
from sightline_trainer.evaluation.ratios import Ratios
from sightline_trainer.events import Event, EventLog, EventReader, read_events
from sightline_trainer.injection.language_model import LanguageModelWriter, speaking
from sightline_trainer.left_out import counts_of, first_passing, no_pairs
from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.model_words import ModelWords
from sightline_trainer.pairs.build import PairBuilder, read_pairs, write_pairs
from sightline_trainer.pairs.rules import BestWorst
from sightline_trainer.pools import Pool, open_pool
from sightline_trainer.pools import lines as lines_module
from sightline_trainer.records.prompt import PROMPT_REASONS, Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.row_gate import RowGate
from sightline_trainer.speaker.endpoint import Endpoint

pytestmark = pytest.mark.field

MODEL = str(WEIGHTS / "llava")
HALF = "a \ud83d"


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    """The header of a PNG of 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


@pytest.fixture(scope="module")
def gate() -> RowGate:
    return RowGate(ModelProcessor(MODEL))


# ---- datasets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "directory.png").mkdir()
    for name, content in {
        "good.png": png(), "empty.png": b"", "cut.png": png((64, 64))[:-30], "bomb.png": bomb(), "page.png": b"<html>",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    return tmp_path


GOOD = {"id": "good", "image": "good.png", "prompt": "what do you see ?", "reference": "a red star ."}


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _jsonl(directory: Path, row: dict[str, Any]) -> str:
    (directory / "rows.jsonl").write_text(_lines([GOOD, {**GOOD, "id": "bad", **row}, {**GOOD, "id": "last"}]))
    return str(directory / "rows.jsonl")


def _llava(directory: Path, row: dict[str, Any]) -> str:
    def item(values: dict[str, Any]) -> dict[str, Any]:
        turns = [{"from": "human", "value": values["prompt"]}, {"from": "gpt", "value": values["reference"]}]
        return {"id": values["id"], "image": values["image"], "conversations": turns}

    rows = [item(GOOD), item({**GOOD, "id": "bad", **row}), item({**GOOD, "id": "last"})]
    (directory / "rows.json").write_text(json.dumps(rows))
    return f"llava:{directory / 'rows.json'}"


TEXTS = [
    ({"prompt": HALF}, "PROMPT_HALF_CHARACTER"),
    ({"prompt": ""}, "PROMPT_EMPTY"),
    ({"prompt": " \n"}, "PROMPT_EMPTY"),
    ({"prompt": None}, "PROMPT_MISSING"),
    ({"prompt": float("nan")}, "PROMPT_MISSING"),
    ({"prompt": 7}, "PROMPT_NO_TEXT"),
    ({"prompt": ["a", "b"]}, "PROMPT_NO_TEXT"),
    ({"prompt": "what </s> ?"}, "PROMPT_SPECIAL_TOKEN"),
    ({"reference": HALF}, "REFERENCE_HALF_CHARACTER"),
    ({"reference": "a <image> ."}, "REFERENCE_SPECIAL_TOKEN"),
    ({"reference": "a star .</s>"}, "REFERENCE_SPECIAL_TOKEN"),
    ({"reference": 7}, "REFERENCE_NO_TEXT"),
    ({"image": "directory.png"}, "IMAGE_NO_FILE"),
    ({"image": 7}, "DATASET_IMAGE"),
    ({"id": HALF}, "ID_HALF_CHARACTER"),
]


@pytest.mark.parametrize("form", [_jsonl, _llava])
@pytest.mark.parametrize(("row", "reason"), TEXTS)
def test_a_bad_row_is_left_out_named_and_counted(
    folder: Path, gate: RowGate, form: Callable[[Path, dict[str, Any]], str], row: dict[str, Any], reason: str
) -> None:
    pool = open_pool(form(folder, row), gate=gate)
    assert [prompt.id.partition("-")[0] for prompt in pool.head()] == ["good", "last"]
    assert pool.dropped.counts == {reason: 1}
    assert "line 2" in pool.dropped.rows[0]["row"]
    json.dumps(pool.dropped.as_json(), ensure_ascii=False).encode()  # its report can be written


@pytest.mark.parametrize("row", [{"image": None}, {"image": ""}, {"image": []}, {"prompt": "a <image> ?"}])
def test_a_row_without_picture_or_with_a_placeholder(folder: Path, gate: RowGate, row: dict[str, Any]) -> None:
    pool = open_pool(_jsonl(folder, row), gate=gate)
    assert [prompt.id for prompt in pool.head()] == ["good", "last"]
    assert pool.dropped.reason in ("IMAGE_MISSING", "PROMPT_SPECIAL_TOKEN")


def test_no_reference_is_none_whatever_says_so(folder: Path, gate: RowGate) -> None:
    for nothing in ("", None, float("nan")):
        pool = open_pool(_jsonl(folder, {"reference": nothing}), gate=gate)
        assert [prompt.reference for prompt in pool.head()] == [GOOD["reference"], "", GOOD["reference"]]


def _tables(directory: Path, table: pa.Table) -> Iterator[Pool]:
    """The table as a Parquet file of small row groups, and as a dataset of the `datasets` library."""
    from datasets import Dataset

    pq.write_table(table, directory / "rows.parquet", row_group_size=4)
    yield open_pool(directory / "rows.parquet", directory / "cache", RowGate(ModelProcessor(MODEL)))
    Dataset(table).save_to_disk(directory / "saved")
    yield open_pool(
        f"datasets:{directory}/saved?images={directory}", directory / "cache", RowGate(ModelProcessor(MODEL))
    )


@pytest.mark.parametrize("given", [True, False], ids=["ids", "no ids"])
def test_a_null_picture_in_row_six_of_a_table(folder: Path, gate: RowGate, given: bool) -> None:
    rows = [
        {"id": f"p{n}", "image": {"bytes": png((8, 8 + n)), "path": None}, "prompt": f"what {n} ?"} for n in range(9)
    ]
    rows[5]["image"] = None  # type: ignore[assignment]
    rows[7]["image"] = {"bytes": None, "path": None}  # type: ignore[dict-item]
    rows[8]["image"] = {"bytes": b"", "path": None}  # type: ignore[dict-item]
    if not given:
        rows = [{**row, "id": None} for row in rows]
    for pool in _tables(folder, pa.Table.from_pylist(rows, pa.schema({
        "id": pa.string(), "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "prompt": pa.string(),
    }))):  # fmt: skip
        assert [prompt.prompt for prompt in pool.head()] == [f"what {n} ?" for n in (0, 1, 2, 3, 4, 6, 8)]
        assert pool.dropped.counts == {"IMAGE_MISSING": 2}
        assert "row 6" in pool.dropped.rows[0]["row"]
        assert [prompt.prompt for prompt in pool.rows([5, 0])] == ["what 6 ?", "what 0 ?"]
        (empty,) = pool.rows([6])
        fault = gate.check(empty)  # pictures in tables are checked when they are drawn
        assert fault is not None
        assert fault.reason == "IMAGE_EMPTY"
        assert {prompt.id for prompt in pool.draw(7, iteration=1, seed=0)} == {prompt.id for prompt in pool.head()}


def test_texts_of_tables_that_are_none(folder: Path) -> None:
    held = {"bytes": png(), "path": None}
    broken = pa.array([b"what ?", b"\xed\xa0\xbd", b"", b"a </s> b", None, b"last ?"]).view(pa.binary())
    table = pa.table({
        "id": pa.array([str(n) for n in range(6)]),
        "image": pa.array([held] * 6),
        "prompt": pa.Array.from_buffers(pa.string(), 6, broken.buffers()),  # as written without checks
        "reference": pa.array([1.0, None, None, None, None, float("nan")]),
    })  # fmt: skip
    pq.write_table(table, folder / "rows.parquet")
    pool = open_pool(folder / "rows.parquet", folder / "cache", RowGate(ModelProcessor(MODEL)))
    assert [prompt.prompt for prompt in pool.head()] == ["last ?"]
    assert pool.dropped.counts == {
        "REFERENCE_NO_TEXT": 1, "TEXT_NO_UTF8": 1, "PROMPT_EMPTY": 1, "PROMPT_SPECIAL_TOKEN": 1, "PROMPT_MISSING": 1,
    }  # fmt: skip


def test_trls_columns_are_taken(folder: Path) -> None:
    """TRL and `sightline export` write a list of one picture as `images`, and conversations of one turn."""
    held = {"bytes": png(), "path": None}
    rows = [
        {
            "images": [held],
            "prompt": [{"role": "user", "content": f"what {n} ?"}],
            "chosen": [{"role": "assistant", "content": "a star ."}],
        }
        for n in range(3)
    ] + [{"images": [], "prompt": [{"role": "user", "content": "x"}], "chosen": []}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    pool = open_pool(f"{folder}/rows.parquet?reference=chosen", folder / "cache", RowGate(ModelProcessor(MODEL)))
    assert [prompt.prompt for prompt in pool.head()] == ["what 0 ?", "what 1 ?", "what 2 ?"]
    assert {prompt.reference for prompt in pool.head()} == {"a star ."}
    assert pool.dropped.counts == {"IMAGE_MISSING": 1}


def test_a_damaged_parquet_file_is_a_typed_error(folder: Path) -> None:
    (folder / "rows.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InvalidInput, match=r"rows\.parquet is not a readable Parquet") as caught:
        open_pool(folder / "rows.parquet")
    assert caught.value.reason == "DATASET_UNREADABLE"


def test_a_line_without_end_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MOST_LINE", 1000)
    monkeypatch.setattr(lines_module, "CHUNK", 64)
    reads: list[int] = []

    class File(io.FileIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            reads.append(len(line))
            return line

    long = json.dumps({**GOOD, "prompt": "x" * 5000})
    text = "\n".join(["not json", json.dumps(GOOD), long, json.dumps({**GOOD, "id": "after"}), long])
    (folder / "rows.jsonl").write_text(text)
    with File(str(folder / "rows.jsonl")) as file:
        places = [(number, end - start, line is None) for number, start, end, line in lines_module.bounded_lines(file)]
    assert [long for _, _, long in places] == [False, False, True, False, True]
    assert max(reads) <= 1001
    pool = open_pool(folder / "rows.jsonl", gate=RowGate(ModelProcessor(MODEL)))
    assert [prompt.id for prompt in pool.head()] == ["good", "after"]
    assert pool.dropped.counts == {"DATASET_LINE": 1, "LINE_TOO_LONG": 2}
    (folder / "rows.json").write_text(f"[{long}]")
    with pytest.raises(InvalidInput, match="item 1 is longer than 1000"):
        open_pool(f"llava:{folder / 'rows.json'}")


def test_a_dataset_without_a_picture_says_so(folder: Path, gate: RowGate) -> None:
    rows = [{**GOOD, "id": str(n), "image": f"gone/{n}.png"} for n in range(40)]
    (folder / "rows.jsonl").write_text(_lines(rows))
    with pytest.raises(InvalidInput, match=r"no image of 40 could be read: 40 IMAGE_FILE_UNREADABLE; .*gone/0\.png"):
        first_passing(open_pool(folder / "rows.jsonl", gate=gate), 500, gate)
    (folder / "rows.jsonl").write_text(_lines([{**row, "prompt": "<image> <image> ?"} for row in rows]))
    with pytest.raises(
        InvalidInput, match=r"none of 40 rows can be used: 40 PROMPT_SPECIAL_TOKEN; .*line 1: .*<image>"
    ):
        open_pool(folder / "rows.jsonl", gate=gate)


def test_an_iteration_without_a_picture_says_so() -> None:
    gone = [{"prompt_id": f"p{n}", "reason": "IMAGE_FILE_UNREADABLE", "message": f"no {n}.png"} for n in range(40)]
    error = no_pairs(2, 40, {"pairs": 0}, gone, {})
    assert error.reason == "IMAGE_FILE_UNREADABLE"
    assert "iteration 2: no image of 40 could be read: 40 IMAGE_FILE_UNREADABLE; the first is p0: no 0.png" in str(
        error
    )
    some = no_pairs(2, 41, {"pairs": 0, "prompt_small_gap": 1}, gone, {})
    assert (some.reason, "loosen `filters`" in str(some)) == ("NO_PAIRS", True)
    assert counts_of([*gone, {**gone[0], "source": "policy", "index": "1", "reason": "CANDIDATE_TOO_LONG"}]) == {
        "prompt_image_file_unreadable": 40, "candidate_too_long": 1,
    }  # fmt: skip


# ---- pictures and lengths


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.png", "IMAGE_EMPTY"),
        ("cut.png", "IMAGE_DAMAGED"),
        ("bomb.png", "IMAGE_TOO_MANY_PIXELS"),
        ("page.png", "IMAGE_UNREADABLE"),
        ("gone.png", "IMAGE_FILE_UNREADABLE"),
        ("directory.png", "IMAGE_FILE_UNREADABLE"),
    ],
)
def test_pictures_that_do_not_decode(folder: Path, gate: RowGate, name: str, reason: str) -> None:
    fault = gate.check(Prompt("p", (folder / name,), "what ?"))
    assert fault is not None
    assert fault.reason == reason
    assert gate.check(Prompt("p", (folder / "good.png",), "what ?", "a red star .")) is None


def test_what_has_no_room_in_the_window(folder: Path, gate: RowGate) -> None:
    row = Prompt("p", (folder / "good.png",), "what ?")
    assert gate.template.window == 256
    before = gate.template.length(gate.template.prompt(user_turn("what ?", 1)), [(8, 8)])
    for words, fits in ((256 - before - 1, True), (256 - before, False), (400, False)):
        text = " ".join(["red"] * words)
        assert len(gate.template.response(user_turn("what ?", 1), text)) == words + 1
        fault = gate.check(Prompt("p", row.images, "what ?", text))
        assert (fault is None) == fits
        made = unsampled(gate, row, "what ?", text, index=0, source="reference")
        assert (made.fault is None) == fits
    assert made.fault is not None
    assert made.fault.reason == "CANDIDATE_TOO_LONG"
    long = gate.check(Prompt("p", row.images, " ".join(["red"] * 300)))
    assert long is not None
    assert long.reason == "PROMPT_TOO_LONG"


@pytest.mark.parametrize(
    ("text", "ids", "reason"),
    [
        ("a red star .", [5, 6, 7, 3], None),
        ("", [3], None),
        ("a red star .", [], "CANDIDATE_EMPTY"),
        ("a <image> .", [5, 6, 7, 3], "CANDIDATE_SPECIAL_TOKEN"),
        ("a star .", [5, 4, 7, 3], "CANDIDATE_SPECIAL_TOKEN"),
        ("a star .", [5, 3, 7, 3], "CANDIDATE_SPECIAL_TOKEN"),
        ("a star", [5, 7, 4], "CANDIDATE_SPECIAL_TOKEN"),
        ("a star .", [5, 1, 7, 3], None),  # a word that the tokenizer does not know is one all the same
    ],
)
def test_candidates_whoever_made_them(gate: RowGate, text: str, ids: list[int], reason: str | None) -> None:
    fault = gate.candidate(Response("p", 0, text, ids))
    assert (fault and fault.reason) == reason


@pytest.mark.parametrize("text", [HALF, "a <image> .", "a star .</s>", "<s>", ""])
def test_a_written_text_that_is_none_is_a_candidate_with_a_fault(folder: Path, gate: RowGate, text: str) -> None:
    row = Prompt("p", (folder / "good.png",), "what ?")
    made = unsampled(gate, row, "what ?", text, index=0, source="injected")
    assert made.fault is not None
    assert (made.token_ids, made.rendered_prompt) == ([], "")


def test_special_tokens_are_the_tokenizers_own(tmp_path: Path) -> None:
    words = ModelWords.read(MODEL)
    assert words.special == {"<s>", "</s>", "<unk>", "<pad>", "<image>"}
    assert words.ids == {0, 2, 3, 4}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "eos_token": {"content": "<|end|>"}, "extra_special_tokens": {"image_token": "<|pic|>"},
        "added_tokens_decoder": {
            "7": {"content": "<think>", "special": False}, "9": {"content": "<|end|>", "special": True},
        },
    }))  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"image_token_id": 11}))
    words = ModelWords.read(str(tmp_path))
    assert words.special == {"<|end|>", "<|pic|>"}
    assert words.ids == {9, 11}
    assert words.found_in("so <think> it") is None
    assert words.found_in("so <|pic|> it") == "<|pic|>"
    with pytest.raises(PreconditionFailed, match="tokenizer of") as caught:
        ModelWords.read(str(tmp_path / "none"))
    assert caught.value.reason == "MODEL_UNREADABLE"


# ---- pairs that were kept


def pair(**values: Any) -> dict[str, Any]:
    gate = RowGate(ModelProcessor(MODEL))
    return {
        "prompt_id": "p",
        "images": [{"bytes": png(), "path": "x.png"}],
        "rejected_images": [],
        "prompt": [{"role": "user", "content": "what ?"}],
        "chosen": [{"role": "assistant", "content": "a red star ."}],
        "rejected": [{"role": "assistant", "content": "a blue star ."}],
        "rendered_prompt": gate.template.prompt(user_turn("what ?", 1)),
        "chosen_ids": [5, 6, 7, 3],
        "rejected_ids": [5, 8, 7, 3],
        "weight": 1.0,
        "iteration": 1,
        **values,
    }


def test_a_kept_pair_that_cannot_be_trained_on_is_left_out(tmp_path: Path, gate: RowGate) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("CHOSEN_SPECIAL_TOKEN", {"chosen_ids": [5, 4, 7, 3]}),
        ("REJECTED_SPECIAL_TOKEN", {"rejected": [{"role": "assistant", "content": "a <image> ."}]}),
        ("PROMPT_SPECIAL_TOKEN", {"prompt": [{"role": "user", "content": "a </s> ?"}]}),
        ("CHOSEN_TOO_LONG", {"chosen_ids": [5] * 400}),
        ("REJECTED_EMPTY", {"rejected_ids": []}),
        ("CHOSEN_EMPTY", {"chosen_ids": None}),
        ("PAIR_INCOMPLETE", {"prompt": []}),
        ("IMAGE_DAMAGED", {"images": [{"bytes": png((64, 64))[:-30], "path": None}]}),
        ("IMAGE_EMPTY", {"images": [{"bytes": b"", "path": None}]}),
        ("IMAGE_MISSING", {"images": [{"bytes": None, "path": "x.png"}]}),
        ("IMAGE_MISSING", {"images": []}),
        ("IMAGES_DO_NOT_FIT", {"images": [{"bytes": png(), "path": None}] * 2}),
        ("IMAGE_TOO_MANY_PIXELS", {"rejected_images": [{"bytes": bomb(), "path": None}]}),
    ]
    path = tmp_path / "pairs.parquet"
    write_pairs(path, [pair(), *(pair(prompt_id=reason, **row) for reason, row in bad), pair(prompt_id="last")])
    kept, figures = kept_pairs(path, gate)
    assert kept["prompt_id"][:] == ["p", "last"]
    found = json.loads((tmp_path / "dropped/update.json").read_text())
    assert [row["reason"] for row in found["rows"]] == [reason for reason, _ in bad]
    assert found["rows"][0]["row"] == "pair 2 (prompt CHOSEN_SPECIAL_TOKEN)"
    assert figures["pairs_left_out"] == len(bad)
    assert figures["left_out_pair_incomplete"] == 1
    write_pairs(path, [pair()])
    assert kept_pairs(path, gate)[1] == {}
    assert not (tmp_path / "dropped/update.json").exists()
    write_pairs(path, [pair(**bad[0][1])])
    with pytest.raises(PreconditionFailed, match=r"none of 1 pairs .* the first is pair 1") as caught:
        kept_pairs(path, gate)
    assert caught.value.reason == "NO_PAIRS"


# ---- a run's events


@pytest.mark.parametrize(
    "line",
    [
        b"not json", b"\xff\xfe", b"[]", b'{"stage": "start", "other": 1}', b'{"stage": "hm"}', b"", b"null",
        b'{"stage": "pair", "iteration": "two"}', b'{"stage": "pair", "metrics": 3}', b'{"stage": 5}',
        b'{"message": "' + b"x" * (3 << 20) + b'"}', b"[" * 100_000,
    ],
    ids=lambda line: repr(line[:20]),
)  # fmt: skip
def test_a_damaged_line_of_events_is_told_and_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log(Event("sample", 1, time=5.0))
    with path.open("ab") as file:
        file.write(line + b"\n")
    log(Event("update", 1, time=7.0))
    events = [event for _, event in read_events(path)]
    assert [event.stage for event in events] == ["sample", "sample", "update"]
    assert events[1].message == "line 2 of events.jsonl is damaged and left out"
    assert events[1].time == 5.0  # so no stage's seconds change
    reader = EventReader(path, start=2)
    assert [(number, event.stage) for number, event in reader.read()] == [(2, "update")]
    assert list(reader.read()) == []


# ---- what else reads rows


def test_a_picture_that_is_gone_costs_its_prompt(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png())
    prompts = {name: Prompt(name, (tmp_path / f"{name}.png",), "what ?") for name in ("good", "gone")}
    found = [
        [Response(name, at, f"text {at}", [5, 3], score=Score(50.0 - 10 * at)) for at in range(2)]
        for name in ("good", "gone", "other")
    ]
    builder = PairBuilder({}, {"best_worst": BestWorst()}, iteration=1)
    rows = list(builder.build(prompts, [(one[0].prompt_id, one) for one in found]))
    assert [row["prompt_id"] for row in rows] == ["good"]
    assert builder.counts == {"pairs": 1, "prompt_image_file_unreadable": 1, "prompt_not_drawn": 1}


def test_an_export_leaves_out_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    cut = [{"bytes": png((64, 64))[:-30], "path": None}]
    write_pairs(tmp_path / "p.parquet", [pair(), pair(prompt_id="cut", images=cut), pair(prompt_id="last")])
    pairs, left_out = plain_pairs(read_pairs(tmp_path / "p.parquet"))
    assert pairs["prompt_id"][:] == ["p", "last"]
    assert list(left_out) == [1]
    assert pairs[0]["images"][0].size == (8, 8)


def test_a_run_with_brackets_in_its_name_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its files were taken for patterns, and its name for markup."""
    run, to = tmp_path / "my [1] run [/b] ü", tmp_path / "out [x]"
    (run / "iterations/0001").mkdir(parents=True)
    (run / "recipe.yaml").write_text("{name: a, model: m, data: {train: a, test: b}}")
    write_pairs(run / "iterations/0001/pairs.parquet", [pair()])
    export(run, str(to), as_json=False)
    assert capsys.readouterr().out == f"exported 1 pairs of 1 iteration to {to}\n"
    assert f"`{run.name}`" in (to / "README.md").read_text(encoding="utf-8")
    assert read_pairs(to / "data/train-00000.parquet")["prompt_id"][:] == ["p"]


@pytest.mark.parametrize("texts", [["a", None], ["a", 3], "a cat", None, [HALF]])
def test_a_reference_set_holds_texts_and_no_null(tmp_path: Path, texts: Any) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(_lines([{"image": "a.png", "texts": ["a cat"]}, {"image": "a.png", "texts": texts}]))
    with pytest.raises(InvalidInput, match="line 2"):
        list(reference_lines(path))
    path.write_bytes(b'{"image": "a.png", "texts": ["\xff"]}')
    with pytest.raises(InvalidInput, match="can't be read"):
        list(reference_lines(path))


def test_a_command_line_that_is_no_text_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        guarded(lambda: print("a \udcff".encode()), debug=False)
    assert caught.value.exit_code == 2
    assert "half of a character" in capsys.readouterr().err


def test_changes_are_of_the_pictures_that_both_have() -> None:
    base = Ratios.collect((name, {"m": (float(at), 1.0)}) for at, name in enumerate("abc"))
    assert base.only({"c", "b"}).images == ("b", "c")
    assert base.only({"c", "b"}).value("m") == 1.5


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, '{"error": "filtered"}'), (413, ""), (200, "{}"), (200, "no json"), (200, '{"choices": []}')],
)
def test_a_text_that_a_language_model_refuses_costs_its_prompt(status: int, body: str) -> None:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        settings = Injected(writer="openai", url=f"http://127.0.0.1:{server.server_port}", model="m")
        endpoint = Endpoint(speaking(settings))
        writer = LanguageModelWriter(settings, endpoint)

        async def ask() -> None:
            try:
                await writer(Prompt("p", (Path("x.png"),), "what ?"), "what ?", "a star .", 1)
            finally:
                await endpoint.close()

        with pytest.raises(InvalidInput) as caught:
            asyncio.run(ask())
    assert caught.value.reason.startswith(PROMPT_REASONS)
