"""The loop's numbers in a tracker, read back from the tracker's files."""

from pathlib import Path

import pytest
from sightline.errors import Cancelled, PreconditionFailed
from sightline_trainer.events import Event
from sightline_trainer.tracking import Tracking


def test_the_loops_numbers_are_in_tensorboard_by_iteration(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Tracking(["tensorboard"], tmp_path, "a-run") as reported:
        for iteration, chair in enumerate((0.5, 0.25)):
            reported(Event("sample", iteration, 1, 2))
            reported(Event("pair", iteration, metrics={"pairs": 7}))
            reported(Event("iteration", iteration, metrics={"chair_s": chair, "cover": 0.9}))
    (directory,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    read = EventAccumulator(str(directory)).Reload()
    assert [(one.step, one.value) for one in read.Scalars("eval/chair_s")] == [(0, 0.5), (1, 0.25)]
    assert [one.value for one in read.Scalars("train/pair_pairs")] == [7, 7]


def test_a_tracker_that_cannot_be_ended_does_not_change_how_the_run_ended(tmp_path: Path) -> None:
    """An interrupted run continues later; a failed one does not."""
    tracking = Tracking([], tmp_path, "a-run")
    ended: list[str] = []

    class Broken:
        def on_train_end(self, *_: object) -> None:
            ended.append("broken")
            raise ConnectionError("the tracker is away")

    class Sound:
        def on_train_end(self, *_: object) -> None:
            ended.append("sound")

    tracking._arguments = tracking._state = tracking._control = None  # type: ignore[assignment]
    tracking._callbacks = [Broken(), Sound()]
    with pytest.raises(Cancelled), tracking:
        raise Cancelled("the trainer stops")
    assert ended == ["broken", "sound"]


def test_without_a_tracker_nothing_is_written(tmp_path: Path) -> None:
    with Tracking([], tmp_path, "a-run") as reported:
        reported(Event("iteration", 1, metrics={"chair_s": 0.5}))
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreconditionFailed, match=r"dpo\.report_to: .*paper"), Tracking(["paper"], tmp_path, "r"):
        pass
