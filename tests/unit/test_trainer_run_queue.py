"""RunQueue with a scripted loop: order, stops, resumes, and a restart from the files on disk."""

import errno
import fcntl
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import WEIGHTS
from sightline.errors import Cancelled, InvalidInput, NotFound, PreconditionFailed
from sightline_trainer import run_queue as module
from sightline_trainer.allowed import Allowed
from sightline_trainer.events import Event, Observer
from sightline_trainer.execute import lease, leased
from sightline_trainer.recipe import Recipe
from sightline_trainer.run_queue import RunQueue
from sightline_trainer.runs import RunDirectory

LLAVA = str(WEIGHTS / "llava")
TEXT = yaml.safe_dump({"name": "small", "model": LLAVA, "data": {"train": "datasets:a", "test": "datasets:b"}})

HOLD = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"


class Scripted:
    """Replaces `execute`: sends the events that the test releases, and writes the run's state."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.steps: dict[str, list[Event]] = {}
        self.go = threading.Semaphore(0)
        self.fail: Exception | None = None

    def __call__(
        self, recipe: Recipe, run: RunDirectory, observer: Observer, connections: Any, halt: Callable[[], None]
    ) -> None:
        with lease(run):
            run.set_state("running")
            self.order.append(run.id)
            try:
                for event in self.steps.get(run.id, [Event("pair", 1), Event("publish", 1)]):
                    while not self.go.acquire(timeout=0.01):
                        halt()
                    observer(event)
                if self.fail is not None:
                    raise self.fail
            except Cancelled:
                run.set_state("stopped")
                raise
            except Exception as error:
                run.set_state("failed", error=str(error), reason="BROKEN")
                raise
            run.set_state("succeeded")

    def let(self, events: int) -> None:
        self.go.release(events)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    script = Scripted()
    monkeypatch.setattr(module, "execute", script)
    return script


@pytest.fixture
def queue(scripted: Scripted, tmp_path: Path) -> Iterator[RunQueue]:
    runs = RunQueue(tmp_path / "runs")
    runs.start()
    yield runs
    runs.close()


def submit(queue: RunQueue, name: str) -> RunDirectory:
    return queue.submit(f"request-{name}", None, TEXT, [], name)


def until(run: RunDirectory, state: str) -> None:
    deadline = time.monotonic() + 60
    while run.state().get("state") != state:
        assert time.monotonic() < deadline, run.state()
        time.sleep(0.01)


def test_a_busy_trainer_queues_runs_and_works_on_one_after_the_other(queue: RunQueue, scripted: Scripted) -> None:
    runs = [submit(queue, name) for name in ("one", "two", "three")]
    until(runs[0], "running")
    assert [run.state()["state"] for run in runs] == ["running", "queued", "queued"]
    assert submit(queue, "two").id == "two"
    scripted.let(6)
    until(runs[2], "succeeded")
    assert scripted.order == ["one", "two", "three"]


def test_a_graceful_stop_ends_with_the_stage_and_a_resume_goes_on(queue: RunQueue, scripted: Scripted) -> None:
    scripted.steps["one"] = [Event("sample", 1, 1, 2), Event("sample", 1, 2, 2), Event("pair", 1), Event("publish", 1)]
    run = submit(queue, "one")
    scripted.let(1)
    until(run, "running")
    queue.stop("one", now=False)
    scripted.let(1)
    time.sleep(0.2)
    assert run.state()["state"] == "running"  # the stage is not done yet
    scripted.let(1)
    until(run, "stopped")
    queue.go_on("one")
    scripted.let(4)
    until(run, "succeeded")
    assert scripted.order == ["one", "one"]
    with pytest.raises(PreconditionFailed, match="are done"):
        queue.go_on("one")


def test_a_stop_at_once_breaks_off_what_tells_nothing(queue: RunQueue, scripted: Scripted) -> None:
    run = submit(queue, "one")
    until(run, "running")
    queue.stop("one", now=True)
    until(run, "stopped")


def test_a_resume_that_meets_a_run_that_is_stopping_is_not_lost(queue: RunQueue, scripted: Scripted) -> None:
    run = submit(queue, "one")
    until(run, "running")
    with queue._lock:
        queue.stop("one", now=True)
        queue._again = True  # as `go_on` does, after the loop has seen the stop
    deadline = time.monotonic() + 60
    while len(scripted.order) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    scripted.let(2)
    until(run, "succeeded")


def test_a_queued_run_is_stopped_and_resumed_and_runs_once(queue: RunQueue, scripted: Scripted) -> None:
    first, second = submit(queue, "one"), submit(queue, "two")
    until(first, "running")
    assert queue.stop("two", now=False).state()["state"] == "stopped"
    assert queue.go_on("two").state()["state"] == "queued"
    assert queue.go_on("two").state()["state"] == "queued"
    scripted.let(4)
    until(second, "succeeded")
    scripted.let(4)
    time.sleep(0.2)
    assert scripted.order == ["one", "two"]


def test_a_failed_run_says_why_and_is_resumed(queue: RunQueue, scripted: Scripted) -> None:
    scripted.fail = RuntimeError("the scorer is on fire")
    run = submit(queue, "one")
    scripted.let(2)
    until(run, "failed")
    assert (run.state()["error"], run.state()["reason"]) == ("the scorer is on fire", "BROKEN")
    scripted.fail = None
    queue.go_on("one")
    scripted.let(2)
    until(run, "succeeded")
    assert (run.state()["error"], run.state()["reason"]) == ("", "")


@pytest.mark.parametrize("ending", ["failed", "stopped"])
def test_a_resume_in_the_moment_after_a_run_has_ended_is_not_lost(
    queue: RunQueue, scripted: Scripted, ending: str
) -> None:
    """The state is on disk, but the queue's thread has not reached the next run yet."""
    scripted.fail = RuntimeError("the scorer is on fire") if ending == "failed" else None
    run = submit(queue, "one")
    until(run, "running")
    with queue._lock:  # holds the thread at the end of the run
        if ending == "stopped":
            queue.stop("one", now=True)
        scripted.let(2)
        until(run, ending)
        scripted.fail = None
        queue.go_on("one")
    scripted.let(2)
    until(run, "succeeded")


def test_a_stop_in_the_moment_after_a_resume_is_not_lost(queue: RunQueue, scripted: Scripted) -> None:
    """The run has failed and is queued again, but the queue's thread has not reached it yet."""
    scripted.fail = RuntimeError("the scorer is on fire")
    run = submit(queue, "one")
    until(run, "running")
    with queue._lock:  # holds the thread at the end of the run
        scripted.let(2)
        until(run, "failed")
        queue.go_on("one")
        assert queue.stop("one", now=True).state()["state"] == "stopped"
    scripted.let(4)
    until(submit(queue, "two"), "succeeded" if scripted.fail is None else "failed")
    assert scripted.order == ["one", "two"]
    assert run.state()["state"] == "stopped"


def test_a_stop_that_waits_for_its_stage_outlives_a_restart(scripted: Scripted, tmp_path: Path) -> None:
    before = RunQueue(tmp_path / "runs")
    before.start()
    run = submit(before, "one")
    until(run, "running")
    before.stop("one", now=False)
    before.close()
    assert run.state()["state"] == "stopped"


@pytest.mark.parametrize("fault", ["gone", "unreadable"])
def test_a_run_that_cannot_be_read_does_not_hold_up_the_others(queue: RunQueue, scripted: Scripted, fault: str) -> None:
    first, broken = submit(queue, "one"), submit(queue, "two")
    until(first, "running")
    if fault == "gone":
        shutil.rmtree(broken.root)
    else:
        (broken.root / "recipe.yaml").write_text("from_another_version: true")
    scripted.let(4)
    until(submit(queue, "three"), "succeeded")
    assert scripted.order == ["one", "three"]
    assert fault == "gone" or broken.state()["reason"] == "RUN_UNREADABLE"


def test_a_run_whose_directory_goes_while_it_runs_does_not_hold_up_the_others(
    queue: RunQueue, scripted: Scripted
) -> None:
    first = submit(queue, "one")
    until(first, "running")
    with queue._lock:
        queue.stop("one", now=True)
        queue.go_on("one")
        queue.stop("one", now=True)
        until(first, "stopped")
        queue._again = True
        shutil.rmtree(first.root)
    scripted.let(2)
    until(submit(queue, "two"), "succeeded")


def test_a_restart_finds_the_same_runs_in_their_order(scripted: Scripted, tmp_path: Path) -> None:
    before = RunQueue(tmp_path / "runs")  # never started: as if it was killed at once
    for name in ("b", "a", "c"):
        submit(before, name)
    before.get("b").set_state("running")
    before.get("c").set_state("stopped")
    after = RunQueue(tmp_path / "runs")
    after.start()
    scripted.let(4)
    until(after.get("a"), "succeeded")
    assert scripted.order == ["b", "a"]
    assert after.get("c").state()["state"] == "stopped"
    assert submit(after, "a").state()["state"] == "succeeded"  # the request is known from disk
    after.close()


def test_a_trainer_that_may_not_resume_leaves_unfinished_runs_stopped(scripted: Scripted, tmp_path: Path) -> None:
    before = RunQueue(tmp_path / "runs")
    run = submit(before, "one")
    run.set_state("running")
    after = RunQueue(tmp_path / "runs", resume=False)
    after.start()
    assert run.state()["state"] == "stopped"
    after.close()


@pytest.mark.parametrize("state", ["running", "queued"])
def test_a_resume_takes_over_a_run_whose_trainer_was_killed(
    queue: RunQueue, scripted: Scripted, tmp_path: Path, state: Any
) -> None:
    """It stayed as it was until a trainer was restarted."""
    run = submit(RunQueue(tmp_path / "runs"), "one")  # by another trainer, which does not work
    run.set_state(state)
    queue.go_on("one")
    scripted.let(2)
    until(run, "succeeded")
    assert scripted.order == ["one"]


def test_a_run_without_its_recipe_says_so(queue: RunQueue, scripted: Scripted) -> None:
    """It was queued for ever."""
    submit(queue, "first")
    run = submit(queue, "one")
    (run.root / "recipe.yaml").unlink()
    scripted.let(2)
    until(run, "failed")
    assert "has no recipe.yaml: restore it from a copy" in run.state()["error"]
    with pytest.raises(PreconditionFailed, match=r"has no recipe\.yaml") as refused:
        queue.go_on("one")
    assert refused.value.reason == "RUN_UNREADABLE"


def test_a_bad_id_and_a_bad_recipe_are_told_in_the_callers_words(queue: RunQueue) -> None:
    with pytest.raises(InvalidInput, match="use 1 to 100 lower-case letters"):
        submit(queue, "a" * 101)
    with pytest.raises(InvalidInput, match=r"^the recipe: must hold a mapping of sections, not a list$"):
        queue.submit("request", None, "- a\n", [])


def test_a_run_that_another_process_works_on_is_left_alone(scripted: Scripted, tmp_path: Path) -> None:
    run = submit(RunQueue(tmp_path / "runs"), "one")
    run.set_state("running")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.root / ".lease")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        assert leased(run)
        other = RunQueue(tmp_path / "runs")
        other.start()
        with pytest.raises(PreconditionFailed, match="another process works on run 'one'") as refused:
            other.stop("one", now=True)  # it did nothing, silently
        assert refused.value.reason == "RUN_LEASED"
        assert other.go_on("one").state()["state"] == "running"
        assert scripted.order == []
        other.close()
    finally:
        holder.kill()
        holder.communicate()
    assert not leased(run)  # the kernel released the lease when its holder died


def test_who_only_looks_whether_a_run_is_leased_keeps_nobody_from_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert not leased(run)
    assert not run.root.exists()
    run.root.mkdir()
    with (run.root / ".lease").open("a+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # another trainer that starts, and looks at the same moment
        assert not leased(run)
        threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with lease(run):
            assert leased(run)


def test_a_run_that_cannot_be_written_holds_up_neither_a_start_nor_the_others(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer did not start, or the thread that executes runs ended."""
    before = RunQueue(tmp_path / "runs")
    locked, fine = submit(before, "locked"), submit(before, "fine")
    write = RunDirectory.set_state

    def refusing(run: RunDirectory, state: Any, **facts: object) -> None:
        if run.id == locked.id:
            raise OSError(errno.EROFS, "Read-only file system")
        write(run, state, **facts)

    monkeypatch.setattr(RunDirectory, "set_state", refusing)
    after = RunQueue(tmp_path / "runs")
    after.start()
    scripted.let(2)
    until(fine, "succeeded")
    after.go_on(locked.id)  # it counts as queued
    scripted.let(2)
    until(submit(after, "last"), "succeeded")
    assert (after.alive(), scripted.order) == (True, ["fine", "last"])
    after.close()


@pytest.mark.parametrize("run_id", ["no-such", "../runs", "", "UPPER"])
def test_unknown_runs_are_not_found(queue: RunQueue, run_id: str) -> None:
    with pytest.raises(NotFound, match="ListRuns"):
        queue.get(run_id)


def test_a_launcher_runs_only_where_the_trainers_settings_list_it(scripted: Scripted, tmp_path: Path) -> None:
    launcher = ["accelerate", "launch"]
    text = yaml.safe_dump({**yaml.safe_load(TEXT), "dpo": {"launch": launcher}})
    with pytest.raises(InvalidInput, match=r"dpo\.launch names .*, which this trainer does not run") as refused:
        RunQueue(tmp_path / "runs").submit("request", None, text, [])
    assert refused.value.reason == "LAUNCHER_NOT_ALLOWED"
    known = Allowed(launchers=[launcher])
    with pytest.raises(InvalidInput, match=r"dpo\.launch"):
        RunQueue(tmp_path / "runs", allowed=known).submit("request", None, TEXT, ["dpo.launch=[sh, -c, x]"])
    assert RunQueue(tmp_path / "runs", allowed=known).submit("request", None, text, []).id
