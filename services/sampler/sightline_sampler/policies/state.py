"""What outlives the sampler: the last activated policy, and which weights each version ever staged stood for."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from sightline.errors import PreconditionFailed

_MOST = 1000  # versions remembered


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The last activated version (0: the base model), where it lies, and digests of manifests by version."""

    active: int = 0
    uri: str = ""
    digests: Mapping[int, str] = dataclasses.field(default_factory=dict)


class StateFile:
    """`sampler.json` in a directory of its own; written aside and renamed."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "sampler.json"
        self._one_at_a_time = threading.Lock()

    def read(self, base_digest: str) -> State | None:
        """What was remembered; None where nothing was, or for another base model.

        Raises:
            PreconditionFailed: the file is not ours; deleting it starts from the base model.
        """
        try:
            tree = json.loads(self._path.read_bytes())
            if tree["base_digest"] != base_digest:
                return None
            digests = {int(version): str(digest) for version, digest in tree["digests"].items()}
            return State(int(tree["active"]), str(tree["uri"]), digests)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PreconditionFailed(
                f"{self._path} cannot be read ({error!r}): delete it to start from the base model",
                reason="STATE_UNREADABLE",
            ) from error

    def write(self, base_digest: str, state: State) -> None:
        """Remembers; on disk when this returns. Safe in several threads: a caller may leave while the disk is slow."""
        tree = {
            "base_digest": base_digest,
            "active": state.active,
            "uri": state.uri,
            "digests": {str(version): state.digests[version] for version in sorted(state.digests)[-_MOST:]},
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
