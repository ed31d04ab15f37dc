"""Run directories, prompts and events."""

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sightline.errors import Cancelled, DataCorrupted, InvalidInput, PreconditionFailed
from sightline_chassis.settings import SettingsError
from sightline_trainer import loop, runs, stopwatch
from sightline_trainer.ahead import Ahead
from sightline_trainer.disk import DiskFull
from sightline_trainer.events import Event, EventLog, EventReader, Observer, read_events
from sightline_trainer.execute import execute
from sightline_trainer.files import read_json
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.report.history import History
from sightline_trainer.runs import RunDirectory, write_whole
from sightline_trainer.stopwatch import Stopwatch

SOMEWHERE = {"sampling": {"address": "localhost:1"}, "reward": {"address": "localhost:2"}}


def recipe(**values: object) -> Recipe:
    return Recipe.model_validate({"name": "test", "model": "m", "data": {"train": "a", "test": "b"}, **values})


def test_two_threads_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "run.json"

    def slow(aside: Path) -> None:
        aside.write_text("first")
        other = threading.Thread(target=write_whole, args=(path, lambda aside: aside.write_text("second")))
        other.start()
        other.join()

    write_whole(path, slow)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_whole(path, lambda aside: aside.write_text("old"))

    def fails(aside: Path) -> None:
        aside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fails)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]  # what failed takes no room


def test_a_run_directory_belongs_to_one_recipe(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    run.open(recipe())
    run.set_state("running")
    run.iteration(0).mkdir(parents=True)
    with pytest.raises(PreconditionFailed, match="another recipe"):
        run.open(recipe(seed=1))


def test_a_run_that_failed_before_its_first_file_takes_a_corrected_recipe(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(InvalidInput, match=r"there is nothing at .*wrong: name a directory with prompts\.jsonl"):
        execute(recipe(**SOMEWHERE, data={"train": str(tmp_path / "wrong"), "test": "b"}), run, lambda event: None)
    assert run.state()["reason"] == "DATASET_NOT_FOUND"
    run.open(recipe(seed=1))
    assert run.recipe() == recipe(seed=1)


def test_a_recipe_of_0_1_0_is_read_with_its_own_key(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.open(recipe(dpo={"image_cache_mib": 7}))
    path = tmp_path / "recipe.yaml"
    path.write_text(path.read_text().replace("image_cache_mib", "image_cache_mb"))
    assert run.recipe() == recipe(dpo={"image_cache_mib": 7})
    with pytest.raises(SettingsError, match=r"image_cache_mb is unknown \(did you mean dpo\.image_cache_mib\?\)"):
        load_recipe(path)


def test_versions_grow_over_the_floor_and_over_half_written_policies(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.next_version(0) == 1
    (run.policies / "v000004").mkdir(parents=True)
    assert run.next_version(0) == 5
    assert run.next_version(9) == 10


def test_seeds_depend_on_prompt_and_parts_only() -> None:
    a, b = (Prompt(id=name, images=(Path("x"),), prompt="p") for name in "ab")
    assert a.seed(1, 2) == a.seed(1, 2)
    assert len({a.seed(1, 2), a.seed(2, 1), b.seed(1, 2), a.seed(12)}) == 4
    assert 0 <= a.seed(0) < 2**63


def test_events_are_read_from_any_point_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for done in (0, 1, 2, 3):
        log(Event("sample", 1, done, 3, time=100.0 + done))
    with log.path.open("a") as file:
        file.write(json.dumps({"stage": "pair"})[:-3])
    assert [event.done for _, event in read_events(log.path)] == [0, 1, 2, 3]
    assert [number for number, _ in read_events(log.path, 2)] == [2, 3]


def test_a_torn_line_goes_when_the_log_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log(Event("start"))
    reader = EventReader(path)
    assert [number for number, _ in reader.read()] == [0]
    with path.open("a") as file:
        file.write('{"stage": "sample", ' + "x" * 10000)
    assert list(reader.read()) == []
    EventLog(path)(Event("end"))
    assert [event.stage for _, event in read_events(path)] == ["start", "end"]
    assert [(number, event.stage) for number, event in reader.read()] == [(1, "end")]
    path.write_text("torn")
    EventLog(path)
    assert path.read_text() == ""


def test_seconds_add_up_over_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now)
    first = Stopwatch(tmp_path / "seconds.json")
    now = 104.0
    first.tick()  # too soon to be written
    assert not (tmp_path / "seconds.json").exists()
    now = 107.0
    first.tick()
    now = 109.0  # killed here: two seconds are lost
    second = Stopwatch(tmp_path / "seconds.json")
    now = 112.0
    assert second.seconds == 10.0


def test_a_full_disk_ends_the_run_with_its_reason_and_it_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has no room beyond the reserve."""
    full = True

    class Writes:
        def __init__(self, recipe: Recipe, run: RunDirectory, *rest: object) -> None:
            self.run_directory = run

        def run(self) -> list[dict[str, float]]:
            assert (self.run_directory.root / ".reserve").stat().st_blocks * 512 >= 256 << 10

            def write(aside: Path) -> None:
                aside.write_text("half")
                if full:
                    raise OSError(errno.ENOSPC, "No space left on device")

            write_whole(self.run_directory.root / "pairs.parquet", write)
            return []

    monkeypatch.setattr(loop, "Loop", Writes)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(DiskFull, match="free some") as caught:
        execute(recipe(), run, lambda event: None)
    assert caught.value.reason == "DISK_FULL"
    assert (run.state()["state"], run.state()["reason"]) == ("failed", "DISK_FULL")
    assert not (run.root / ".reserve").exists()
    assert not list(run.root.glob(".pairs*"))
    full = False
    execute(recipe(), run, lambda event: None)
    assert (run.state()["state"], run.state()["reason"]) == ("succeeded", "")


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_run_whose_directory_goes_ends_and_writes_nothing_more(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It made an empty run of that name, or wrote into another one."""

    class Goes:
        def __init__(self, recipe: Recipe, run: RunDirectory, observer: Observer, *rest: object) -> None:
            self.run_directory, self.observer = run, observer

        def run(self) -> list[dict[str, float]]:
            self.observer(Event("start"))
            root = self.run_directory.root
            if how == "moved":
                root.rename(tmp_path / "elsewhere")
            else:
                shutil.rmtree(root)
            if how == "replaced":
                root.mkdir()
            self.observer(Event("pair", 1))
            raise AssertionError("it went on")

    monkeypatch.setattr(loop, "Loop", Goes)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(PreconditionFailed, match=r"was moved, removed or replaced while its run worked") as ended:
        execute(recipe(), run, lambda event: None)
    assert ended.value.reason == "RUN_REMOVED"
    assert run.root.exists() == (how == "replaced")
    assert not list(run.root.glob("*"))
    if how == "moved":
        monkeypatch.setattr(Goes, "run", lambda self: [])
        execute(recipe(), RunDirectory(tmp_path / "elsewhere"), lambda event: None)


def test_a_stop_stays_one_where_the_state_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __init__(self, *rest: object) -> None: ...

        def run(self) -> list[dict[str, float]]:
            def refused(*rest: object) -> None:
                raise OSError(errno.EROFS, "Read-only file system")

            monkeypatch.setattr(runs, "write_json", refused)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "Loop", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(recipe(), RunDirectory(tmp_path / "run"), lambda event: None)


def test_another_recipe_does_not_fail_the_run_that_is_there(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    run.set_state("succeeded")
    run.iteration(0).mkdir(parents=True)
    with pytest.raises(PreconditionFailed, match="another recipe"):
        execute(recipe(seed=1), run, lambda event: None)
    assert run.state()["state"] == "succeeded"


def test_work_ahead_is_done_when_the_block_is_left_and_breaks_off_with_it() -> None:
    done: list[str] = []
    with Ahead(lambda halt: done.append("ahead"), lambda: None):
        pass
    assert done == ["ahead"]

    def endless(halt: Callable[[], None]) -> Any:
        while True:
            halt()

    with pytest.raises(KeyError), Ahead(endless, lambda: None):
        raise KeyError("the update failed")

    def stop() -> None:
        raise Cancelled("stopped", reason="RUN_STOPPED")

    with pytest.raises(Cancelled, match="stopped"), Ahead(endless, stop):
        pass
    with Ahead(None, stop):
        pass


def test_only_an_adapter_is_extrapolated() -> None:
    assert recipe(publication={"extrapolate": 0.5}).publication.extrapolate == 0.5
    with pytest.raises(ValueError, match=r"set dpo\.train to lora"):
        recipe(publication={"extrapolate": 0.5}, dpo={"train": "full"})


def test_the_advice_about_a_damaged_file_can_be_followed(tmp_path: Path) -> None:
    """It was to delete run.json; the run was then refused as one of release 0.1.0."""
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    run.set_state("stopped")
    run.iteration(1).mkdir(parents=True)
    (run.iteration(1) / "update.json").write_text('{"metr')
    (run.root / "run.json").write_text('{"id": "r')
    with pytest.raises(DataCorrupted, match=r"without a copy start a new run$"):
        run.state()
    with pytest.raises(DataCorrupted, match="or delete it and resume the run"):
        read_json(run.iteration(1) / "update.json")
    (run.root / "run.json").unlink()
    with pytest.raises(PreconditionFailed, match=r"has results but no run\.json") as refused:
        run.check(recipe())
    assert refused.value.reason == "RUN_UNREADABLE"


def test_a_report_names_the_recipe_that_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: cut\n")
    with pytest.raises(DataCorrupted, match=r"recipe\.yaml is damaged \(it does not name data\.train and data\.test"):
        History.read(tmp_path)
