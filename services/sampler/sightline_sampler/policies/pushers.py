"""Which team owns each pushed policy, and how many bytes a team may have.

A policy counts with the size of its files, from its announcement until its directory is deleted, including files shared
with another policy, so that a team's share does not depend on others' pushes. The record is stored beside the arriving
files, so that a restart keeps all shares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sightline.errors import Overloaded
from sightline_chassis import metrics
from sightline_chassis.teams import ANONYMOUS

ENDS = ".team"
"""How the name of a record ends."""

_SILENT = 60.0  # seconds without a piece after which an incomplete policy is dropped for its team's next


@dataclasses.dataclass(frozen=True, slots=True)
class Pusher:
    """The pushing team, and its maximum bytes of pushed policies (None: unlimited)."""

    team: str = ""
    most: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Pushed:
    """A policy's record: its team, its bytes, the digests of its files, and when its last piece arrived."""

    team: str
    size: int
    files: tuple[str, ...]
    seen: float


class PushedShares:
    """The records of one directory of pushed policies. Not thread-safe: `ReceivedPolicies` makes one change at a time.

    Args:
        root: that directory.
        keeps: whether a policy's directory must be kept.
    """

    def __init__(self, root: Path, keeps: Callable[[Path], bool]) -> None:
        self._root, self._keeps = root, keeps

    def admit(self, name: str, sizes: Mapping[str, int], pusher: Pusher) -> None:
        """Count a policy for its team; the team's oldest policies that are not loaded are deleted to make room.

        Args:
            name: name of its directory.
            sizes: bytes of each file, by digest.
            pusher: the pushing team.

        Raises:
            Overloaded: TEAM_PUSHED_POLICY_BYTES: the team's loaded and incomplete policies leave too little room.
        """
        size, records = sum(sizes.values()), _records(self._root)
        if name in records and records[name].team != pusher.team:
            return  # another team sends the same: it belongs to the first
        theirs = {other: one for other, one in records.items() if one.team == pusher.team and other != name}
        if pusher.most is not None:
            for other in sorted(theirs, key=lambda other: theirs[other].seen):
                if sum(one.size for one in theirs.values()) + size <= pusher.most:
                    break
                if self._leaves(other, theirs[other]):
                    del theirs[other]
            held = sum(one.size for one in theirs.values())
            if held + size > pusher.most:
                raise _refused(pusher, size, held)
        record = {"team": pusher.team, "size": size, "files": sorted(sizes)}
        path, aside = _record_of(self._root / name), _record_of(self._root / f".{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(record))
        aside.replace(path)
        _show(self._root, pusher.team)

    def came(self, name: str) -> None:
        """Record that a piece of a policy arrived."""
        with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
            os.utime(_record_of(self._root / name))

    def forget(self, name: str) -> None:
        """Stop counting a policy whose directory was deleted."""
        forget(self._root / name)

    def counts(self, record: Path) -> bool:
        """Whether a record's policy exists here, whenever it arrived."""
        return (self._root / record.name.removesuffix(ENDS)).exists()

    def _leaves(self, name: str, one: Pushed) -> bool:
        """Delete a policy that is not in use; returns whether it was deleted."""
        directory = self._root / name
        if self._keeps(directory):
            return False
        if directory.exists():
            shutil.rmtree(directory, ignore_errors=True)
        elif time.time() - one.seen < _SILENT:
            return False
        self.forget(name)
        wanted = {sha256 for other in _records(self._root).values() for sha256 in other.files}
        for sha256 in set(one.files) - wanted:
            for path in (self._root / ".pushed" / sha256, self._root / ".pushed" / f"{sha256}.part"):
                path.unlink(missing_ok=True)
        return True


def forget(directory: Path) -> None:
    """Stop counting the policy with this directory."""
    record = _record_of(directory)
    one = _read(record)
    if one is None:
        return
    record.unlink(missing_ok=True)
    _show(directory.parent, one.team)


def _record_of(directory: Path) -> Path:
    return directory.parent / ".pushed" / f"{directory.name}{ENDS}"


def _records(root: Path) -> dict[str, Pushed]:
    found = {}
    for path in (root / ".pushed").glob(f"v[0-9]*{ENDS}"):
        if (one := _read(path)) is not None:
            found[path.name.removesuffix(ENDS)] = one
    return found


def _show(root: Path, team: str) -> None:
    held = sum(one.size for one in _records(root).values() if one.team == team)
    metrics.TEAM_STORED.labels(team or ANONYMOUS, "pushed_policy_bytes").set(held)


def _read(record: Path) -> Pushed | None:
    """A record; None if there is none, or if it is not ours."""
    try:
        tree = json.loads(record.read_bytes())
        return Pushed(str(tree["team"]), int(tree["size"]), tuple(map(str, tree["files"])), record.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refused(pusher: Pusher, size: int, held: int) -> Overloaded:
    name = pusher.team or ANONYMOUS
    metrics.refused_by_team_limit(name, "pushed_policy_bytes")
    return Overloaded(
        f"team {name} has {held} bytes of pushed policies that are loaded or arriving, and this one has {size} "
        f"(limit: pushed_policy_bytes = {pusher.most}): retire one (RetirePolicy), or have the limit raised in the "
        "tokens file",
        reason="TEAM_PUSHED_POLICY_BYTES",
        metadata={"team": name, "limit": str(pusher.most)},
    )
