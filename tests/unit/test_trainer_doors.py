"""A caller's input, or a file among the runs, gives no access and blocks nobody."""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from field import controls
from loop_steps import measured
from PIL import Image
from running import WEIGHTS
from sightline.errors import InvalidInput, NotFound, PreconditionFailed, SightlineError
from sightline.runs.v1 import trainer_pb2 as pb
from sightline_chassis.settings import SettingsError, load_settings
from sightline_chassis.yaml_text import MOST_BYTES, YamlRefused, load_yaml
from sightline_trainer.allowed import Allowed
from sightline_trainer.connections import Connections
from sightline_trainer.pools import load_prompts, open_pool
from sightline_trainer.recipe import Recipe
from sightline_trainer.run_queue import RunQueue
from sightline_trainer.server import RunServicer, TrainerService
from sightline_trainer.settings import TrainerSettings

pytestmark = pytest.mark.field

LLAVA = str(WEIGHTS / "llava")
RECIPE: dict[str, Any] = {"name": "small", "model": LLAVA, "data": {"train": "datasets:a", "test": "datasets:b"}}


# ---- images of datasets


def dataset(root: Path, image: str) -> Path:
    directory = root / "set"
    (directory / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(directory / "images/good.png")
    rows = [{"id": "1", "image": "images/good.png", "prompt": "p"}, {"id": "2", "image": image, "prompt": "p"}]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def _llava(directory: Path) -> str:
    rows = [json.loads(line) for line in (directory / "prompts.jsonl").read_text().splitlines()]
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    (directory / "llava.json").write_text(json.dumps([{**row, "conversations": talk} for row in rows]))
    return f"llava:{directory / 'llava.json'}?images={directory}"


def _parquet(directory: Path) -> str:
    import pandas as pd

    rows = [json.loads(line) for line in (directory / "prompts.jsonl").read_text().splitlines()]
    pd.DataFrame(rows).to_parquet(directory / "rows.parquet")
    return str(directory / "rows.parquet")


def _table(directory: Path) -> str:
    import datasets

    rows = [json.loads(line) for line in (directory / "prompts.jsonl").read_text().splitlines()]
    datasets.Dataset.from_list(rows).save_to_disk(directory / "table")
    return f"datasets:{directory / 'table'}?images={directory}"


def refused(directory: Path, form: Callable[[Path], str], reason: str) -> None:
    """A picture outside its directory ends the run at once; any other unreadable picture costs only its row. Either
    way the row is named."""
    if reason == "IMAGE_OUTSIDE":
        with pytest.raises(InvalidInput) as error:
            load_prompts(form(directory))
        assert error.value.reason == reason
        assert "2" in error.value.message.removeprefix(str(directory))
        return
    pool = open_pool(form(directory))
    assert [prompt.images[0].name for prompt in pool.head()] == ["good.png"]
    (row,) = pool.dropped.rows
    assert row["reason"] == reason
    assert "2" in row["row"].removeprefix(str(directory))


@pytest.mark.parametrize("form", [str, _llava, _parquet, _table])
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("../secret/token", "IMAGE_OUTSIDE"),
        ("/etc/passwd", "IMAGE_OUTSIDE"),
        ("/dev/zero", "IMAGE_OUTSIDE"),
        ("images/link.png", "IMAGE_OUTSIDE"),
        ("images/device.png", "IMAGE_OUTSIDE"),
        ("images/linked/token", "IMAGE_OUTSIDE"),
        ("images/fifo.png", "IMAGE_NO_FILE"),
        ("images", "IMAGE_NO_FILE"),
        ("images/large.png", "IMAGE_TOO_LARGE"),
        ("images/" + "a" * 300 + ".png", "DATASET_IMAGE"),
        ("images/a\0.png", "DATASET_IMAGE"),
    ],
)
def test_an_image_is_a_plain_file_in_the_datasets_directory(
    tmp_path: Path, form: Callable[[Path], str], image: str, reason: str
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/token").write_text("the token")
    directory = dataset(tmp_path, image)
    images = directory / "images"
    (images / "link.png").symlink_to(tmp_path / "secret/token")
    (images / "linked").symlink_to(tmp_path / "secret")
    (images / "device.png").symlink_to("/dev/zero")
    (images / "inside.png").symlink_to(images / "good.png")
    os.mkfifo(images / "fifo.png")
    with (images / "large.png").open("wb") as file:
        file.truncate(1 << 30)
    refused(directory, form, reason)


@pytest.mark.parametrize("form", [str, _llava, _parquet, _table])
@pytest.mark.parametrize(("image", "reason"), [("../secret", "IMAGE_OUTSIDE"), ("images/fifo.png", "IMAGE_NO_FILE")])
def test_no_id_is_made_of_a_picture_that_may_not_be_read(
    tmp_path: Path, form: Callable[[Path], str], image: str, reason: str
) -> None:
    """If rows have no ids, pictures are read when the dataset is opened."""
    directory = dataset(tmp_path, image)
    os.mkfifo(directory / "images/fifo.png")
    (tmp_path / "secret").write_text("the token")
    rows = [json.loads(line) for line in (directory / "prompts.jsonl").read_text().splitlines()]
    for row in rows:
        del row["id"]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(directory, form, reason)


def test_links_inside_and_declared_directories_are_taken(tmp_path: Path) -> None:
    directory = dataset(tmp_path, "images/inside.png")
    (directory / "images/inside.png").symlink_to(directory / "images/good.png")
    assert [prompt.images[0].name for prompt in load_prompts(str(directory))] == ["good.png", "inside.png"]
    elsewhere = tmp_path / "elsewhere"
    (directory / "images").rename(elsewhere)
    rows = [{"id": "1", "image": "good.png", "prompt": "p"}]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (prompt,) = load_prompts(f"{directory}?images={elsewhere}")
    assert prompt.images == (elsewhere / "good.png",)


# ---- what a recipe may name


@pytest.mark.parametrize(
    ("values", "key", "reason"),
    [
        ({"sampling": {"address": "evil:1"}}, "sampling.address", "ADDRESS_NOT_ALLOWED"),
        ({"reward": {"address": "evil:1"}}, "reward.address", "ADDRESS_NOT_ALLOWED"),
        (
            {"candidates": {"policy": {}, "injected": {"writer": "sampler", "address": "evil:1"}}},
            "candidates.injected.address",
            "ADDRESS_NOT_ALLOWED",
        ),
        (
            {"candidates": {"policy": {}, "injected": {"writer": "openai", "model": "m", "url": "http://evil/v1"}}},
            "candidates.injected.url",
            "ADDRESS_NOT_ALLOWED",
        ),
        ({"dpo": {"launch": ["sh"]}}, "dpo.launch", "LAUNCHER_NOT_ALLOWED"),
        ({"data": {"train": "/etc", "test": "datasets:b"}}, "data.train", "DATA_NOT_ALLOWED"),
        ({"data": {"train": "datasets:a", "test": "datasets:/etc"}}, "data.test", "DATA_NOT_ALLOWED"),
        ({"data": {"train": "datasets:a?images=/etc", "test": "datasets:b"}}, "data.train", "DATA_NOT_ALLOWED"),
        ({"data": {"train": "llava:{root}/x.json?images=/", "test": "datasets:b"}}, "data.train", "DATA_NOT_ALLOWED"),
        ({"data": {"train": "{root}/../x", "test": "datasets:b"}}, "data.train", "DATA_NOT_ALLOWED"),
        ({"data": {"train": "{root}/link", "test": "datasets:b"}}, "data.train", "DATA_NOT_ALLOWED"),
        ({"data": {"train": "~root", "test": "datasets:b"}}, "data.train", "DATA_NOT_ALLOWED"),
        ({"data": {"train": "datasets:a", "test": "playground:test?count=9"}}, "data.test", "DATA_NOT_DRAWN"),
    ],
)
def test_a_callers_recipe_names_only_what_the_settings_list(
    tmp_path: Path, values: dict[str, Any], key: str, reason: str
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    text = yaml.safe_dump(RECIPE | values).replace("{root}", str(root))
    known = Allowed([["accelerate", "launch"]], ["good:1"], [root])
    with pytest.raises(InvalidInput, match=key) as error:
        RunQueue(tmp_path / "runs", allowed=known).submit("request", None, text, [])
    assert error.value.reason == reason


def test_what_is_listed_may_be_named(tmp_path: Path) -> None:
    values = {"sampling": {"address": "ours:1"}, "reward": {"address": "good:1"},
              "data": {"train": str(tmp_path / "data/train"), "test": "datasets:b"}}  # fmt: skip
    connections = Connections.model_validate({"sampler": {"address": "ours:1"}})
    queue = RunQueue(tmp_path / "runs", connections=connections, allowed=Allowed((), ["good:1"], [tmp_path / "data"]))
    assert queue.submit("request", None, yaml.safe_dump(RECIPE | values), []).id


def test_a_listed_launcher_stays_one_in_the_runs_own_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There its files have absolute paths, and the run's own data lies in the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/fsdp.yaml").write_text("")
    (tmp_path / "runs/one/data").mkdir(parents=True)
    launch = ["accelerate", "launch", "--config_file", "conf/fsdp.yaml"]
    values = {"dpo": {"launch": launch}, "data": {"train": "runs/one/data", "test": "datasets:b"}}
    known = Allowed([launch], (), [Path("runs/one/data")])
    run = RunQueue(Path("runs"), allowed=known).submit("request", None, yaml.safe_dump(RECIPE | values), [], "one")
    assert "train: run:data\n" in (run.root / "recipe.yaml").read_text()
    recipe = run.recipe()
    assert recipe is not None
    assert recipe.dpo.launch != launch
    known.check(recipe, Connections())
    with pytest.raises(InvalidInput, match=r"dpo\.launch"):
        Allowed([launch[:-1]], (), [Path("runs")]).check(recipe, Connections())
    (run.root / "recipe.yaml").write_text((run.root / "recipe.yaml").read_text().replace("run:data", "run:../../conf"))
    moved = run.recipe()
    assert moved is not None
    with pytest.raises(InvalidInput, match=r"data\.train"):
        known.check(moved, Connections())


def test_a_run_that_is_no_more_allowed_does_not_go_on(tmp_path: Path) -> None:
    text = yaml.safe_dump(RECIPE | {"sampling": {"address": "good:1"}})
    run = RunQueue(tmp_path / "runs", allowed=Allowed((), ["good:1"])).submit("request", None, text, [])
    after = RunQueue(tmp_path / "runs")
    after.start()
    try:
        deadline = time.monotonic() + 60
        while run.state()["state"] == "queued":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (run.state()["state"], run.state()["reason"]) == ("failed", "ADDRESS_NOT_ALLOWED")
    finally:
        after.close()


def test_pictures_of_a_dataset_that_is_no_more_allowed_are_not_shown(tmp_path: Path) -> None:
    directory = dataset(tmp_path, "images/good.png")
    text = yaml.safe_dump(RECIPE | {"data": {"train": str(directory), "test": str(directory)}})

    def servicer(*roots: Path) -> RunServicer:
        values = {"runs": tmp_path / "runs", "recipes": tmp_path, "data_roots": list(roots)}
        settings = TrainerSettings.model_validate(values)
        return RunServicer(RunQueue(settings.runs, allowed=settings.allowed()), settings)

    first = servicer(directory)
    run = first.runs.submit("1", None, text, [], "one")
    captions = [{"prompt_id": "1", "text": "a red dot", "reward": 1.0, "tokens": 3, "hallucinated": []}]
    for number in (0, 1):
        run.iteration(number).mkdir(parents=True)
        (run.iteration(number) / "evaluation.json").write_text(json.dumps({"iteration": number, "chair_s": 0.5}))
        pq.write_table(pa.Table.from_pylist(captions), run.iteration(number) / "captions.parquet")
    request = pb.ListRunPicturesRequest(run_id="one")
    (shown,) = asyncio.run(first.ListRunPictures(request, None)).pictures
    assert (shown.before.text, shown.image[:4], shown.change) == ("a red dot", b"\x89PNG", pb.PICTURE_CHANGE_SAME)
    after = servicer()
    for call in (
        after.ListRunPictures(request, None),
        after.CompareRuns(pb.CompareRunsRequest(run_id="one", other_run_id="one"), None),
    ):
        with pytest.raises(InvalidInput) as error:
            asyncio.run(call)
        assert error.value.reason == "DATA_NOT_ALLOWED"
    with pytest.raises(NotFound):
        asyncio.run(first.ListRunPictures(pb.ListRunPicturesRequest(run_id="../one"), None))


# ---- runs that cannot be read


@pytest.fixture
def service(tmp_path: Path) -> Iterator[TrainerService]:
    settings = TrainerSettings.model_validate({"runs": tmp_path / "runs", "recipes": tmp_path, "resume": False})
    found = TrainerService(settings)
    yield found
    found.runs.close()


def _lines(directory: Path) -> None:
    (directory / "recipe.yaml").write_text("from: another version")


def _binary(directory: Path) -> None:
    (directory / "recipe.yaml").write_bytes(b"\xff\xfe\0")


def _bomb(directory: Path) -> None:
    (directory / "recipe.yaml").write_text(merges(24))


def _empty_state(directory: Path) -> None:
    (directory / "run.json").write_text("")


def _strange_state(directory: Path) -> None:
    (directory / "run.json").write_text(json.dumps({"request_id": "x", "state": "asleep", "created": 1, "updated": 1}))


def _deep_state(directory: Path) -> None:
    (directory / "run.json").write_text("[" * 200_000)


def _metrics(directory: Path) -> None:
    (directory / "metrics.json").write_text('{"a": 1}')


@pytest.mark.parametrize("spoil", [_lines, _binary, _bomb, _empty_state, _strange_state, _deep_state, _metrics])
def test_an_unreadable_run_is_a_row_that_says_so(service: TrainerService, spoil: Callable[[Path], None]) -> None:
    async def main() -> None:
        servicer = service.servicer
        await service.start()  # a restarted trainer
        text = yaml.safe_dump(RECIPE)
        started = await servicer.StartRun(pb.StartRunRequest(recipe_text=text, request_id="1", run_id="one"), None)
        assert started.run.recipe == "small"
        service.runs.close()
        spoil(service.runs.root / "one")
        again = TrainerService(service.settings)
        try:
            await again.start()
            rows = (await again.servicer.ListRuns(pb.ListRunsRequest(), None)).runs
            assert [row.id for row in rows] == ["one"]
            assert rows[0].reason == "RUN_UNREADABLE"
            assert "cannot be read" in rows[0].error
            assert (await again.servicer.GetRun(pb.GetRunRequest(run_id="one"), None)).run == rows[0]
            other = await again.servicer.StartRun(
                pb.StartRunRequest(recipe_text=text, request_id="2", run_id="two"), None
            )
            assert other.run.id == "two"
            for shown in (
                again.servicer.ListRunPictures(pb.ListRunPicturesRequest(run_id="one"), None),
                again.servicer.ListRunPolicies(pb.ListRunPoliciesRequest(run_id="one"), None),
                again.servicer.CompareRuns(pb.CompareRunsRequest(run_id="two", other_run_id="one"), None),
            ):
                with contextlib.suppress(SightlineError):  # no other error, and metrics.json is not needed
                    await shown
            if "state" in spoil.__name__:
                with pytest.raises(PreconditionFailed) as error:
                    await again.servicer.StopRun(pb.StopRunRequest(run_id="one"), None)
                assert error.value.reason == "RUN_UNREADABLE"
                with pytest.raises(PreconditionFailed):
                    await again.servicer.ResumeRun(pb.ResumeRunRequest(run_id="one"), None)
        finally:
            again.runs.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_",
    [
        {"recipe_text": yaml.safe_dump(RECIPE | {"name": "a" * 300}), "request_id": "1"},
        {"recipe_text": yaml.safe_dump(RECIPE), "request_id": "1" * 5000},
        *controls(({"recipe_text": yaml.safe_dump(RECIPE), "request_id": "1", "run_id": "a" * 300},)),
        {"recipe_text": yaml.safe_dump(RECIPE | {"x" * 100_000: 1}), "request_id": "1"},
        {"recipe_text": yaml.safe_dump(RECIPE), "request_id": "1", "overrides": ["seed=1"] * 2000},
        {"recipe_text": yaml.safe_dump(RECIPE), "request_id": "1", "overrides": ["x" * 100_000]},
        {"recipe_text": yaml.safe_dump(RECIPE), "request_id": "1", "overrides": ["x" * 100_000 + "=1"]},
        *controls(
            (
                {
                    "recipe_text": yaml.safe_dump(RECIPE),
                    "request_id": "1",
                    "overrides": ["seed." + "x" * 100_000 + ".a=1"],
                },
            )
        ),
        {"recipe_text": yaml.safe_dump(RECIPE), "request_id": "1", "overrides": ["seed=2026-13-45"]},
        {"recipe_text": yaml.safe_dump(RECIPE) + "seed: 2026-13-45\n", "request_id": "1"},
        {"recipe_text": yaml.safe_dump(RECIPE) + "seed: " + "9" * 5000, "request_id": "1"},
        {"recipe_text": yaml.safe_dump(RECIPE | {"dpo": {f"k{i}": 1 for i in range(1000)}}), "request_id": "1"},
        {"recipe_name": "a" * 100_000, "request_id": "1"},
    ],
)
def test_names_without_measure_are_refused_in_a_line(service: TrainerService, request_: dict[str, Any]) -> None:
    with pytest.raises((InvalidInput, NotFound)) as error:
        asyncio.run(service.servicer.StartRun(pb.StartRunRequest(**request_), None))
    assert len(error.value.message) < 2000  # it travels in a status' trailers


# ---- YAML that is dear


def merges(depth: int) -> str:
    """A few hundred bytes that expand to 2 ** depth values."""
    steps = "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, depth))
    return "a0: &a0 {k: 1}\n" + steps


DEAR = {
    "merges": merges(24),
    "aliases": "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)),
    "bytes": "description: " + "x" * (20 << 20),
    "depth": "[" * 100_000,
    "itself": "a: &a [*a]",
    "values": "a: [" + "1," * 100_000 + "]",
}


@pytest.mark.parametrize("name", DEAR)
def test_dear_yaml_is_refused_before_anything_is_made_of_it(tmp_path: Path, name: str) -> None:
    began = time.thread_time()
    with pytest.raises(YamlRefused):
        load_yaml(DEAR[name])
    assert time.thread_time() - began < 15  # it was 17 s and more without a bound; a second or less with it
    (tmp_path / "recipe.yaml").write_text(DEAR[name])
    with pytest.raises(SettingsError) as error:
        load_settings(Recipe, service="recipe", config=tmp_path / "recipe.yaml")
    assert len(str(error.value)) < 1000
    if len(DEAR[name]) < MOST_BYTES:
        with pytest.raises(SettingsError, match="--set seed"):
            load_settings(Recipe, service="recipe", overrides=[f"seed={DEAR[name]}"])


RIGHT = ("aliases", "itself")  # PyYAML is quick with these


def test_ordinary_aliases_and_merges_are_read() -> None:
    assert load_yaml("a: &x {b: 1}\nc: {<<: *x, d: [*x, *x]}") == {"a": {"b": 1}, "c": {"b": 1, "d": [{"b": 1}] * 2}}


@pytest.mark.parametrize("name", [*(name for name in DEAR if name not in RIGHT), "list", *controls(*RIGHT)])
def test_a_strangers_call_is_answered_beside_a_dear_one(service: TrainerService, name: str) -> None:
    """The queue's lock is free while a recipe is read, and the event loop does not read it."""
    for number in range(60 if name == "list" else 3):
        service.runs.submit(f"r{number}", None, yaml.safe_dump(RECIPE), [], f"run-{number}")
    servicer: RunServicer = service.servicer
    order: list[str] = []

    async def dear() -> None:
        request = pb.StartRunRequest(recipe_text=DEAR.get(name, ""), request_id="dear")
        try:
            if name == "list":
                await servicer.ListRuns(pb.ListRunsRequest(), None)
            else:
                await servicer.StartRun(request, None)
        except InvalidInput:
            assert name != "list"
        order.append("dear")

    async def stranger() -> None:
        await servicer.GetRun(pb.GetRunRequest(run_id="run-0"), None)
        order.append("stranger")

    async def main() -> None:
        await asyncio.gather(dear(), stranger())

    steps = measured(main())
    assert max(steps) < 0.05
    assert name in ("bytes", "itself", "merges", "aliases") or order[0] == "stranger"
    assert threading.current_thread() is threading.main_thread()
