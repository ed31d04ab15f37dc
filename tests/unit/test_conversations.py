"""Several images, several turns and a system prompt: from callers' and datasets' forms to requests and pairs."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from running import WEIGHTS
from sampler_models import png
from sightline.errors import InvalidInput
from sightline.sampler import Turn
from sightline.sampler.turns import conversation, user_turn
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.wire import asked_fields
from sightline_chassis.families.rendering import Rendering, check_places, check_texts, write
from sightline_chassis.sections import ImageLimits
from sightline_cli.export import trl_prompts
from sightline_sampler.conversations import ConversationReader
from sightline_sampler.request_images import RequestImages
from sightline_sampler.settings import SamplerLimits
from sightline_trainer.pairs import RULES
from sightline_trainer.pairs.build import FEATURES, PairBuilder, read_pairs, write_pairs
from sightline_trainer.pools import open_pool
from sightline_trainer.preflight.services import conversations
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from transformers import AutoProcessor
from trl.data_utils import prepare_multimodal_messages

SYSTEM, BOT = {"role": "system", "content": "be brief"}, {"role": "assistant", "content": "a star"}
IMAGE = {"type": "image"}


def user(*parts: str) -> dict[str, Any]:
    content = [IMAGE if part == "image" else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


WHOLE = (
    Turn("system", ("be brief",)), Turn("user", (None, "what ?")), Turn("assistant", ("a star",)),
    Turn("user", ("left of", None, "?")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("images", "asked", "turns"),
    [
        (b"a", "what ?", user_turn("what ?", 1)),
        ([b"a", b"b"], "what ?", (Turn("user", (None, None, "what ?")),)),
        ([b"a", b"b"], [SYSTEM, user("image", "what ?"), BOT, user("left of", "image", "?")], WHOLE),
        (None, [SYSTEM, user("what ?")], (Turn("system", ("be brief",)), Turn("user", ("what ?",)))),
        ([b"a", b"b"], [SYSTEM, {"role": "user", "content": "x"}, BOT, user("y")], (
            Turn("system", ("be brief",)), Turn("user", (None, None, "x")), Turn("assistant", ("a star",)),
            Turn("user", ("y",)),
        )),
        ([b"a", b"b"], WHOLE, WHOLE),
    ],
)  # fmt: skip
def test_what_callers_hand_over_travels_and_is_read_as_it_was_meant(
    images: Any, asked: Any, turns: tuple[Turn, ...]
) -> None:
    pictures, found = conversation(images, asked)
    assert found == turns
    fields = asked_fields(images, asked)
    alone = len(turns) == 1 and len(pictures) < 2
    assert set(fields) == ({"image", "prompt"} if alone else {"turns"})  # a service before 0.2.0 knows the former
    reader = ConversationReader(SamplerLimits(), RequestImages(1 << 20, ImageLimits()))
    read = reader.read(pb.SampleRequest(**fields))
    assert read.turns == turns
    assert [image.content for image in read.images] == pictures


def test_an_image_may_stand_in_its_message() -> None:
    own = {"role": "user", "content": [{"type": "image", "image": b"b"}, IMAGE, {"type": "text", "text": "?"}]}
    assert conversation([b"a"], [own])[0] == [b"b", b"a"]
    with pytest.raises(InvalidInput, match="1 image placeholders, but 2 images are given") as caught:
        conversation([b"a", b"c"], [own])
    assert caught.value.reason == "IMAGES_DO_NOT_FIT"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.SampleRequest(prompt="x", turns=[pb.Turn(role=pb.ROLE_USER, parts=[pb.TurnPart(text="y")])]), "BAD_TURNS"),
        (pb.SampleRequest(turns=[pb.Turn(parts=[pb.TurnPart(text="y")])]), "BAD_TURNS"),
        (pb.SampleRequest(turns=[pb.Turn(role=7, parts=[pb.TurnPart(text="y")])]), "BAD_TURNS"),  # type: ignore[arg-type]
        (pb.SampleRequest(turns=[pb.Turn(role=pb.ROLE_USER, parts=[pb.TurnPart()])]), "BAD_TURNS"),
        (pb.SampleRequest(turns=[pb.Turn(role=pb.ROLE_USER)]), "PROMPT_EMPTY"),
        (pb.SampleRequest(turns=[pb.Turn(role=pb.ROLE_USER, parts=[pb.TurnPart(image=pb.Image())])]), "PROMPT_EMPTY"),
        (pb.Probe(turns=[pb.Turn(role=pb.ROLE_USER, parts=[pb.TurnPart(text="y" * 11)])]), "PROMPT_TOO_LARGE"),
        (pb.ScoreTokensRequest(turns=[pb.Turn()] * 4), "TOO_MANY_TURNS"),
        (pb.ScoreTokensRequest(**asked_fields([b"a"] * 3, "x")), "TOO_MANY_IMAGES"),
    ],
)  # fmt: skip
def test_a_service_refuses_what_is_no_conversation_or_too_much(request_: Any, reason: str) -> None:
    limits = SamplerLimits(max_turns=3, max_images=2, max_prompt_bytes=10)
    with pytest.raises(InvalidInput) as caught:
        ConversationReader(limits, RequestImages(1 << 20, ImageLimits())).read(request_)
    assert caught.value.reason == reason


def test_a_template_that_leaves_something_out_is_found_out() -> None:
    def of_texts(messages: list[dict[str, Any]]) -> str:
        return " ".join(f"{m['role']}: {m['content']}" for m in messages)  # as templates of text models do

    def deaf(messages: list[dict[str, Any]]) -> str:
        return " ".join(part["text"] for m in messages if m["role"] != "system" for part in m["content"])

    turns = (Turn("system", (" be brief ",)), Turn("user", ("what ?",)))
    assert write(of_texts, turns) == "system:  be brief  user: what ?"
    check_texts(turns, write(of_texts, turns))
    with pytest.raises(InvalidInput, match=r"does not write turns\[0\] \(role system\)"):
        check_texts(turns, write(deaf, turns))
    with pytest.raises(InvalidInput, match="1 places for 2 images"):
        check_places(user_turn("x", 2), 1)
    with pytest.raises(InvalidInput, match="refuses the prompt: 'text'"):
        write(deaf, user_turn("x", 1))


WITHOUT = ("{% set seen = namespace(image=false) %}{% for message in messages %}{% for part in message['content'] %}"
           "{% if part['type'] == 'image' %}{% set seen.image = true %}{% endif %}{% endfor %}{% endfor %}"
           "{% if not seen.image %}{{ raise_exception('no picture') }}{% endif %}")  # fmt: skip


@pytest.mark.parametrize("refuses", ["", WITHOUT])
def test_a_place_for_an_image_is_found_though_the_template_refuses_a_prompt_without(refuses: str) -> None:
    processor = AutoProcessor.from_pretrained(WEIGHTS / "llava")
    processor.chat_template = refuses + processor.chat_template
    rendering = Rendering(processor)
    assert rendering.places(rendering(user_turn("what ?", 2))) == 2
    if refuses:
        with pytest.raises(InvalidInput, match="refuses the prompt: no picture"):
            rendering(user_turn("what ?", 0))
    else:
        assert rendering.places(rendering(user_turn("what ?", 0))) == 0


# ---- datasets


def folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    for number in range(3):
        (path / f"{number}.png").write_bytes(png(number))
    return path


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_messages_train_on_their_last_assistant_turn(tmp_path: Path) -> None:
    path = lines(
        folder(tmp_path),
        {"id": "a", "images": ["0.png", "1.png"], "messages": [SYSTEM, user("image", "what ?"), BOT,
                                                               user("left of", "image", "?"), BOT]},
        {"id": "b", "images": ["2.png"], "messages": [{"role": "user", "content": "<image>\nwhat ?"}, BOT]},
        {"id": "c", "images": ["0.png", "1.png"], "messages": [
            {"role": "user", "content": "<image> or <image> ?"}, BOT, user("why ?")]},
        {"id": "d", "images": ["0.png", "1.png"], "prompt": "what differs ?"},
        {"id": "dd", "image": ["1.png", "0.png"], "prompt": "is <image> over <image> ?"},
        {"id": "e", "images": ["0.png"], "messages": [user("image", "image", "what ?")]},
        {"id": "f", "images": ["0.png"], "messages": [BOT]},
        {"id": "g", "images": [], "messages": [user("what ?")]},
        {"id": "h", "images": ["0.png"], "messages": [user("image", "what ?"), BOT, {"role": "tool", "content": "x"}]},
    )  # fmt: skip
    pool = open_pool(path)
    a, b, c, d, dd = pool.head()
    assert (a.asked(), a.prompt, a.reference) == (WHOLE, "left of\n?", "a star")
    assert [image.name for image in a.images] == ["0.png", "1.png"]
    assert (b.turns, b.prompt, b.reference) == ((), "what ?", "a star")
    assert c.turns[0].content == (None, " or ", None, " ?")
    assert (c.prompt, c.reference) == ("why ?", "")
    assert (d.turns, d.asked()) == ((), user_turn("what differs ?", 2))
    assert dd.asked() == (Turn("user", ("is ", None, " over ", None, " ?")),)
    assert pool.dropped.counts == {"IMAGES_DO_NOT_FIT": 1, "BAD_TURNS": 2, "IMAGE_MISSING": 1}


def test_ids_are_of_all_images_and_all_that_was_said(tmp_path: Path) -> None:
    rows = [
        {"image": ["0.png", "1.png"], "prompt": "x"}, {"image": ["1.png", "0.png"], "prompt": "x"},
        {"image": ["0.png"], "prompt": "x"}, {"image": ["0.png", "1.png"], "prompt": [SYSTEM, user("x")]},
        {"image": "0.png", "prompt": "x"},
    ]  # fmt: skip
    ids = [prompt.id for prompt in open_pool(lines(folder(tmp_path), *rows)).head()]
    assert len(set(ids)) == 5
    assert ids[4].startswith(ids[2])  # the same picture and text; the row's number distinguishes them


@pytest.mark.parametrize("held", [True, False])
def test_tables_hold_several_images_and_messages(tmp_path: Path, held: bool) -> None:
    path = folder(tmp_path)
    shown = [{"bytes": png(n) if held else None, "path": f"{n}.png"} for n in (0, 1)]
    messages = [SYSTEM, user("image", "what ?"), {**BOT, "content": [{"type": "text", "text": "a star"}]},
                user("left of", "image", "?")]  # fmt: skip
    messages[0] = {**SYSTEM, "content": [{"type": "text", "text": "be brief"}]}
    table = pa.Table.from_pylist([
        {"id": "a", "images": shown, "prompt": messages}, {"id": "b", "images": shown[:1], "prompt": messages[:2]},
    ])  # fmt: skip
    pq.write_table(table, path / "rows.parquet")
    for pool in (
        open_pool(path / "rows.parquet", tmp_path / "cache"), open_pool(_saved(table, path), tmp_path / "cache")
    ):  # fmt: skip
        a, b = pool.head()
        assert a.turns == WHOLE
        assert [image.read_bytes() for image in a.images] == [png(0), png(1)]
        assert b.turns == WHOLE[:2]
        assert len(b.images) == 1


def _saved(table: pa.Table, path: Path) -> str:
    Dataset(table).save_to_disk(str(path / "saved"))
    return f"datasets:{path / 'saved'}?images={path}"


def test_llavas_items_with_several_images_and_turns(tmp_path: Path) -> None:
    path = folder(tmp_path)

    def item(images: Any, *said: str) -> dict[str, Any]:
        who = ["human", "gpt"] * len(said)
        return {"id": "i", "image": images, "conversations": [{"from": a, "value": b} for a, b in zip(who, said)]}  # noqa: B905

    items = [
        item("0.png", "<image>\nwhat ?", "a star", "why ?", "so"),
        item(["0.png", "1.png"], "<image>\nwhat ?", "a star", "left of <image> ?\n<image>"),
        item(["0.png", "1.png"], "what ?", "a star", "why ?", "so"),
        item(["0.png", "1.png", "2.png"], "<image>", "a star", "left of<image>?<image>", "so"),
    ]
    (path / "items.json").write_text(json.dumps(items))
    first = open_pool(f"llava:{path}/items.json").head()
    assert [(one.prompt, len(one.images), one.reference, one.turns) for one in first] == [
        ("what ?", 1, "a star", ()), ("what ?", 1, "a star", ()), ("what ?", 2, "a star", ()),
    ]  # fmt: skip
    pool = open_pool(f"llava:{path}/items.json?turns=last")
    assert [[turn.content for turn in one.turns] for one in pool.head()] == [
        [(None, "what ?"), ("a star",), ("why ?",)],
        [(None, None, "what ?"), ("a star",), ("why ?",)],
        [(None,), ("a star",), ("left of", None, "?", None)],
    ]
    assert [one.reference for one in pool.head()] == ["so", "so", "so"]
    assert pool.dropped.counts == {"IMAGES_DO_NOT_FIT": 1}  # three places, two images
    with pytest.raises(InvalidInput, match="known are first and last"):
        open_pool(f"llava:{path}/items.json?turns=middle")


# ---- pairs


def pairs_of(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    def said(prompt: Prompt) -> list[Response]:
        return [
            Response(prompt.id, i, text, [5, 3], prompt=prompt.prompt, score=Score(reward))
            for i, (text, reward) in enumerate([("a cat", 3.0), ("a dog", 1.0)])
        ]

    builder = PairBuilder({}, {"best_worst": RULES["best_worst"]()}, iteration=1)
    return list(builder.build({each.id: each for each in prompts}, [(each.id, said(each)) for each in prompts]))


def test_pairs_hold_all_images_and_turns_and_trl_takes_them(tmp_path: Path) -> None:
    folder(tmp_path)
    images = tuple(tmp_path / f"{n}.png" for n in (0, 1))
    said = (WHOLE[0], Turn("user", (None, None, "x")), WHOLE[2], Turn("user", ("y",)))
    plain = [Prompt("a", images[:1], "what ?"), Prompt("b", images, "what ?"), Prompt("c", images, "y", turns=said)]
    rows = pairs_of(plain)
    assert [(len(row["images"]), [m["role"][0] for m in row["prompt"]], row["turns"]) for row in rows] == [
        (1, ["u"], []), (2, ["u"], []), (2, ["s", "u", "a", "u"], []),
    ]  # fmt: skip
    placed = pairs_of([Prompt("d", images, "left of\n?", turns=WHOLE)])
    assert placed[0]["turns"] == [turn.message() for turn in WHOLE]
    for name, some in (("plain", rows), ("placed", [*rows, *placed])):
        path = tmp_path / f"{name}.parquet"
        write_pairs(path, some)
        pairs = trl_prompts(read_pairs(path))
        assert "turns" not in pairs.column_names
        for row, prompt in zip(pairs, [*plain, Prompt("d", images, "", turns=WHOLE)], strict=False):
            messages = prepare_multimodal_messages(row["prompt"], row["images"])
            found = [[None if part["type"] == "image" else part["text"] for part in m["content"]] for m in messages]
            assert found == [list(turn.content) for turn in prompt.asked()]
    old = {name: feature for name, feature in FEATURES.items() if name != "turns"}
    pq.write_table(pq.read_table(tmp_path / "plain.parquet").select(list(old)), tmp_path / "old.parquet")
    assert len(read_pairs(tmp_path / "old.parquet")) == 3  # written before there were turns


def test_another_question_stands_behind_the_images_of_its_turn() -> None:
    prompt = Prompt("p", (Path("a"), Path("b")), "left of\n?", turns=WHOLE)
    assert prompt.asked("left of\n?") == WHOLE
    assert prompt.asked("why ?") == (*WHOLE[:3], Turn("user", (None, "why ?")))


def test_a_check_says_that_prompts_have_more_than_the_sampler_takes() -> None:
    prompts = [Prompt("a", (Path("a"),), "x"), Prompt("p", (Path("a"), Path("b")), "left of\n?", turns=WHOLE)]

    def found(**can: Any) -> list[str]:
        able = {"max_images": 0, "max_turns": 0, "one_image_only": "", **can}
        told: Any = SimpleNamespace(capabilities=SimpleNamespace(**able))
        return [f"{finding.code}: {finding}" for finding in conversations(prompts, told)]

    assert found(max_images=2, max_turns=4) == []
    old, one = found(), found(max_images=1, max_turns=64, one_image_only="X shows one in a prompt")
    assert [each.partition(":")[0] for each in old] == ["LIMIT_TOO_LOW", "LIMIT_TOO_LOW"]  # before 0.2.0
    assert "images of a prompt: the recipe needs 2, but the sampler allows 1" in old[0]
    assert "turns of a prompt: the recipe needs 4" in old[1]
    assert len(one) == 1
    assert "the sampler's model takes one: X shows one in a prompt" in one[0]
