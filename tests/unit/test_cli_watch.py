"""`sightline watch` on a run whose process is alive, or was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from sightline.errors import InternalError
from sightline_cli.watch import follow
from sightline_trainer.events import Event, EventLog
from sightline_trainer.execute import killed, lease
from sightline_trainer.runs import RunDirectory


def begun(root: Path) -> RunDirectory:
    run = RunDirectory(root)
    run.set_state("running")
    EventLog(run.events)(Event("start", message="begun"))
    return run


def test_a_watch_of_a_killed_run_ends_and_says_how_to_resume(tmp_path: Path) -> None:
    """It waited for ever."""
    run = begun(tmp_path / "run")
    with lease(run):
        pass  # its process is gone
    seen: list[str] = []
    watched = follow(run, poll=0.01, patience=0.1)
    with pytest.raises(InternalError, match=r"`sightline run .*recipe\.yaml --run .*` resumes it") as told:
        seen.extend(event.message for event in watched)
    assert (seen, told.value.reason) == (["begun"], "RUN_KILLED")


def test_a_watch_waits_while_a_process_has_the_run_and_reads_to_its_end(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    with lease(run):
        assert not killed(run)
        events = follow(run, poll=0.01, patience=0.0)
        assert next(events).message == "begun"
        EventLog(run.events)(Event("end", message="done"))
        run.set_state("stopped")
        assert [event.message for event in events] == ["done"]


@pytest.mark.parametrize("state", ["queued", "stopped", "succeeded", "failed"])
def test_only_a_run_that_counts_as_running_can_have_been_killed(tmp_path: Path, state: str) -> None:
    run = RunDirectory(tmp_path / "run")
    run.set_state(state)  # type: ignore[arg-type]
    assert not killed(run)
    assert not (run.root / ".lease").exists()  # a look writes nothing
