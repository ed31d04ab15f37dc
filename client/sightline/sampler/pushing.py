"""Push a policy to a sampler that cannot see its directory: the missing files, in pieces. Light."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline.errors import PreconditionFailed
from sightline.sampler.manifest import ARRIVAL, MANIFEST, ManifestError, manifest_digest, read_manifest
from sightline.sampler.v1 import sampler_pb2 as pb

_PIECE = 1 << 20
_A_CALL = 64 << 20  # bytes of one call: at most this is sent again if its stream breaks

UNSEEN = frozenset(
    {"POLICY_MISSING_DIRECTORY", "OUTSIDE_ROOT", "SCHEME_NOT_ALLOWED", "POLICY_DIFFERS", "POLICY_HALF_WRITTEN"}
)
"""Reasons from a sampler that cannot see the named directory, may not read it, or sees another policy there."""


class Parcel:
    """The files of a policy directory.

    Args:
        directory: holds a policy with its manifest.

    Raises:
        PreconditionFailed: it does not.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._root = Path(directory)
        try:
            manifest, self.digest = read_manifest(self._root), manifest_digest(self._root)
            self._files = {bytes.fromhex(sha256): self._root / name for name, sha256 in manifest.files.items()}
            sizes = {name: (self._root / name).stat().st_size for name in manifest.files}
            text = (self._root / MANIFEST).read_bytes()
        except ManifestError as error:
            raise PreconditionFailed(str(error), reason=f"POLICY_{error.reason}") from None
        except OSError as error:
            raise PreconditionFailed(f"{self._root}: {error}", reason="POLICY_MISSING_FILE") from None
        arrival = self._root / ARRIVAL
        self._head = pb.PushedPolicy(
            manifest=text, sizes=sizes, arrival=arrival.read_bytes() if arrival.is_file() else b""
        )

    def messages(self, missing: Sequence[pb.MissingFile]) -> Iterator[pb.PushPolicyRequest]:
        """The announcement, and the next pieces of the missing files."""
        yield pb.PushPolicyRequest(policy=self._head)
        left = _A_CALL
        for item in missing:
            path, offset = self._files.get(item.sha256), item.offset
            if path is None:
                continue
            with path.open("rb") as file:
                file.seek(offset)
                while left > 0 and (data := file.read(_PIECE)):
                    chunk = pb.PushedChunk(sha256=item.sha256, offset=offset, data=data)
                    yield pb.PushPolicyRequest(chunk=chunk)
                    offset, left = offset + len(data), left - len(data)
