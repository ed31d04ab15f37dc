"""What outlives the sampler: the last activated policy, and which weights each activated version stood for."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from sightline_chassis.errors import PreconditionFailed

from sightline_sampler.types import PolicyInfo

_MOST = 1000  # activated versions remembered


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The last activated version (0: the base model), where it lies, and digests of manifests by version."""

    active: int
    uri: str
    digests: dict[int, str]


class StateFile:
    """`sampler.json` in a directory of its own; written aside and renamed."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "sampler.json"

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

    def write(self, base_digest: str, active: PolicyInfo) -> None:
        """Remembers an activation; on disk when this returns."""
        before = self.read(base_digest)
        digests = dict(before.digests) if before is not None else {}
        if active.version:
            digests[active.version] = active.digest
        tree = {
            "base_digest": base_digest,
            "active": active.version,
            "uri": active.uri,
            "digests": {str(version): digests[version] for version in sorted(digests)[-_MOST:]},
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(".writing")
        with aside.open("w", encoding="utf-8") as file:
            json.dump(tree, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(self._path)
