"""Whose the pushed policies are, and how many bytes of them a team may have.

A policy counts as large as its files, from when it is announced until its directory leaves; also a file that it shares
with another one, so that what a team has does not depend on what others push. The record lies beside the files on their
way, so a restart forgets nobody's share.
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

_SILENT = 60.0  # seconds without a piece, after which a policy on its way gives way to its team's next


@dataclasses.dataclass(frozen=True, slots=True)
class Pusher:
    """Who pushes: the team, and the bytes of pushed policies that it may have (None: unlimited)."""

    team: str = ""
    most: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Pushed:
    """A policy's record: its team, its bytes, the digests of its files, and when its last piece came."""

    team: str
    size: int
    files: tuple[str, ...]
    seen: float


class PushedShares:
    """The records of one directory of pushed policies. Not thread-safe: `ReceivedPolicies` changes one thing at a time.

    Args:
        root: that directory.
        keeps: whether a policy's directory must stay.
    """

    def __init__(self, root: Path, keeps: Callable[[Path], bool]) -> None:
        self._root, self._keeps = root, keeps

    def admit(self, name: str, sizes: Mapping[str, int], pusher: Pusher) -> None:
        """Count a policy against its team, whose oldest ones that are not loaded make room for it.

        Args:
            name: of its directory.
            sizes: bytes of each file, by digest.
            pusher: who pushes it.

        Raises:
            Overloaded: TEAM_PUSHED_POLICY_BYTES, what the team has loaded, or on its way, leaves too little room.
        """
        size, records = sum(sizes.values()), _records(self._root)
        if name in records and records[name].team != pusher.team:
            return  # another team sends the same: the first one's
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
        """Note that a piece of a policy came."""
        with contextlib.suppress(FileNotFoundError):  # it gave way meanwhile
            os.utime(_record_of(self._root / name))

    def forget(self, name: str) -> None:
        """Count a policy no longer, whose directory has left."""
        forget(self._root / name)

    def counts(self, record: Path) -> bool:
        """Whether a record's policy is here, however long ago it came."""
        return (self._root / record.name.removesuffix(ENDS)).exists()

    def _leaves(self, name: str, one: Pushed) -> bool:
        """Let a policy go that is not in use; whether it went."""
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
    """Count a policy no longer, whose directory this was."""
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
    """A record; None where there is none, or it is not ours."""
    try:
        tree = json.loads(record.read_bytes())
        return Pushed(str(tree["team"]), int(tree["size"]), tuple(map(str, tree["files"])), record.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refused(pusher: Pusher, size: int, held: int) -> Overloaded:
    name = pusher.team or ANONYMOUS
    metrics.refused_by_team_limit(name, "pushed_policy_bytes")
    return Overloaded(
        f"team {name} has {held} bytes of pushed policies that are loaded or on their way, and this one has {size} "
        f"(limit: pushed_policy_bytes = {pusher.most}): retire one (RetirePolicy), or have the limit raised in the "
        "tokens file",
        reason="TEAM_PUSHED_POLICY_BYTES",
        metadata={"team": name, "limit": str(pusher.most)},
    )
