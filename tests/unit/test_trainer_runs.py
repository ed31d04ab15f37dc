"""Run directories, prompts and events."""

import json
from pathlib import Path

import pytest
from sightline_chassis.errors import PreconditionFailed
from sightline_trainer.events import Event, EventLog, read_events
from sightline_trainer.prompts import Prompt
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory, write_whole


def recipe(**values: object) -> Recipe:
    return Recipe.model_validate({"name": "test", "model": "m", "data": {"train": "a", "test": "b"}, **values})


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_whole(path, lambda aside: aside.write_text("old"))

    def fails(aside: Path) -> None:
        aside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fails)
    assert path.read_text() == "old"


def test_a_run_directory_belongs_to_one_recipe(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    run.open(recipe())
    with pytest.raises(PreconditionFailed, match="another recipe"):
        run.open(recipe(seed=1))


def test_versions_grow_over_the_floor_and_over_half_written_policies(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.next_version(0) == 1
    (run.policies / "v000004").mkdir(parents=True)
    assert run.next_version(0) == 5
    assert run.next_version(9) == 10


def test_seeds_depend_on_prompt_and_parts_only() -> None:
    a, b = (Prompt(id=name, image=Path("x"), prompt="p") for name in "ab")
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
