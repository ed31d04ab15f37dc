"""The lock by which services and commands take a directory."""

import subprocess
import sys
from pathlib import Path

from sightline_chassis.file_lock import locked

HOLD = """
import sys
from sightline_chassis.file_lock import locked
file = open(sys.argv[1], "ab")
print(locked(file), flush=True)
input()
"""


def test_one_holds_it_alone_and_several_may_look(tmp_path: Path) -> None:
    place = tmp_path / ".lock"
    place.touch()
    with place.open("rb") as first, place.open("rb") as second, place.open("rb") as third:
        assert locked(first, shared=True)
        assert locked(second, shared=True)
        assert not locked(third)
    with place.open("rb") as first, place.open("rb") as second:
        assert locked(first)
        assert not locked(second)
        assert not locked(second, shared=True)


def test_a_killed_holder_releases_it(tmp_path: Path) -> None:
    place = tmp_path / ".lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with place.open("ab") as file:
            assert not locked(file)
            holder.kill()
            holder.wait()
            assert locked(file)
    finally:
        holder.kill()
        holder.communicate()
