"""State that survives the sampler: the policy activated last, and the weights of every version ever staged."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from sightline.errors import PreconditionFailed
from sightline_chassis.file_lock import locked

_MOST = 1000  # maximum stored versions
_FORMAT = 2


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The version activated last (0: the base model), its location, and digests of manifests by run and version, oldest
    first."""

    active: int = 0
    uri: str = ""
    digests: Mapping[tuple[str, int], str] = dataclasses.field(default_factory=dict)


class StateFile:
    """`sampler.json` in its own directory; written under a temporary name and renamed."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "sampler.json"
        self._one_at_a_time = threading.Lock()
        self._held: IO[bytes] | None = None

    def hold(self) -> None:
        """Lock this directory against other samplers, as long as this process lives.

        Raises:
            PreconditionFailed: another sampler has it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        held = self._path.with_suffix(".lock").open("ab")
        if not locked(held):
            held.close()
            raise PreconditionFailed(
                f"another sampler uses {self._path.parent}: give each its own policies.state_dir",
                reason="STATE_DIR_IN_USE",
            )
        self._held = held

    def release(self) -> None:
        """Release it for another sampler."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def read(self, base_digest: str) -> State | None:
        """The stored state; None if there is none, or if it belongs to another base model.

        Raises:
            PreconditionFailed: the file is invalid; delete it to start from the base model.
        """
        try:
            tree = json.loads(self._path.read_bytes())
            if tree["base_digest"] != base_digest:
                return None
            digests: dict[tuple[str, int], str] = {}
            if tree.get("format") == _FORMAT:  # 0.1.0 did not store the runs of versions
                digests = {(str(run), int(version)): str(digest) for run, version, digest in tree["digests"]}
            return State(int(tree["active"]), str(tree["uri"]), digests)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PreconditionFailed(
                f"{self._path} cannot be read ({error!r}): delete it to start from the base model",
                reason="STATE_UNREADABLE",
            ) from error

    def write(self, base_digest: str, state: State) -> None:
        """Store the state; it is on disk when this returns. Thread-safe, since a caller may leave while the disk is
        slow."""
        tree = {
            "format": _FORMAT,
            "base_digest": base_digest,
            "active": state.active,
            "uri": state.uri,
            "digests": [[*name, digest] for name, digest in list(state.digests.items())[-_MOST:]],
        }
        with self._one_at_a_time:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside = self._path.with_suffix(".writing")
            with aside.open("w", encoding="utf-8") as file:
                json.dump(tree, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(self._path)
            handle = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
