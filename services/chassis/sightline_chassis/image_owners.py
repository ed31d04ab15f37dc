"""Which teams own the stored images, and how many bytes each team has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator


class ImageOwners:
    """Teams and their images, each team's least recently used first. An image that two teams sent counts for both.

    Args:
        on_bytes: called with a team and its bytes whenever they change.
    """

    def __init__(self, on_bytes: Callable[[str, int], None] = lambda team, held: None) -> None:
        self._on_bytes = on_bytes
        self._teams: dict[str, OrderedDict[bytes, int]] = {}
        self._bytes: dict[str, int] = {}
        self._owners: dict[bytes, set[str]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._owners)

    def owns(self, team: str, sha256: bytes) -> bool:
        """Whether the team owns it. Images without a known owner (kept in a directory over a restart) belong to ""."""
        owners = self._owners.get(sha256)
        return team == "" if owners is None else team in owners

    def add(self, team: str, sha256: bytes, size: int) -> None:
        """Add the team as an owner; the image was just used."""
        held = self._teams.setdefault(team, OrderedDict())
        held[sha256] = size
        held.move_to_end(sha256)
        if team not in self._owners.setdefault(sha256, set()):
            self._owners[sha256].add(team)
            self._count(team, size)

    def used(self, team: str, sha256: bytes) -> None:
        """Note that the team used it."""
        held = self._teams.get(team)
        if held is not None and sha256 in held:
            held.move_to_end(sha256)

    def gone(self, sha256: bytes) -> None:
        """Note that it is no longer stored."""
        for team in self._owners.pop(sha256, ()):
            self._release(team, sha256)

    def over(self, team: str, most: int | None) -> Iterator[bytes]:
        """Take images from the team, the least recently used first, until it has at most this many bytes.

        Yields:
            The images without any owner left.
        """
        while most is not None and self._bytes.get(team, 0) > most:
            sha256 = next(iter(self._teams[team]))
            self._release(team, sha256)
            self._owners[sha256].discard(team)
            if not self._owners[sha256]:
                del self._owners[sha256]
                yield sha256

    def _release(self, team: str, sha256: bytes) -> None:
        self._count(team, -self._teams[team].pop(sha256))
        if not self._teams[team]:
            del self._teams[team]

    def _count(self, team: str, more: int) -> None:
        self._bytes[team] = held = self._bytes.get(team, 0) + more
        if not held:
            del self._bytes[team]
        self._on_bytes(team, held)
