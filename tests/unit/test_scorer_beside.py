"""The text tower's fork: it answers on its socket, dies with its parent, and differs from a tower that fails."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from sightline_scorer.triton.beside import SOCKET, Guest, Host, TowerGone

SPAWN = multiprocessing.get_context("spawn")


def doubled(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    if ids[0, 0] < 0:
        raise ValueError("below 0")
    return (2 * ids[:, :2]).astype(np.float32)


def parent(directory: Path, seconds: float) -> None:
    host = Host(directory)
    time.sleep(seconds)  # it loads a model
    host.fork(lambda: doubled)
    time.sleep(600)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory whose name is too long for a socket."""
    directory = tmp_path / ("a" * 120)
    directory.mkdir()
    return directory


def test_the_fork_answers_for_as_long_as_its_parent_lives(place: Path) -> None:
    process = SPAWN.Process(target=parent, args=(place, 0.3), daemon=True)
    process.start()
    guest = Guest(place)
    assert os.stat(place / SOCKET).st_mode & 0o077 == 0, "it is nobody else's"
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    assert guest(ids).tolist() == [[2, 4], [8, 10]]
    large = np.ones((4096, 248), np.int32)
    assert guest(large).shape == (4096, 2)
    with pytest.raises(RuntimeError, match="ValueError: below 0"):
        guest(-ids)
    assert guest(ids[:, ::-1]).tolist() == [[6, 4], [12, 10]], "after an error too, and of a view"
    del guest
    assert Guest(place)(ids).tolist() == [[2, 4], [8, 10]], "it waits for the next one"
    assert process.pid is not None
    fork = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    again = Guest(place)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    end = time.monotonic() + 20
    while Path(f"/proc/{fork}").exists():
        assert time.monotonic() < end, "it ends with its parent"
        time.sleep(0.01)
    with pytest.raises(TowerGone):
        again(ids)
    with pytest.raises(TowerGone):
        Guest(place, seconds=0)


def test_a_parent_that_offers_nothing_after_all_is_told_from_one_that_loads(place: Path) -> None:
    host = Host(place)
    host.close()
    with pytest.raises(TowerGone):
        Guest(place, seconds=0.1)
