"""Pushed policies: received in pieces by the SHA-256 of each file, and assembled when all files are complete.

    DOWNLOADS/
      .pushed/<sha256>.part          an incomplete file: pieces are appended, so data from before a broken stream is
      kept
      .pushed/<sha256>               a complete file with a checked digest, waiting for the others
      .pushed/v000007-<12>.team      the policy's team, and its bytes (`pushers`)
      v000007-<12 of its digest>/    the policy, to be staged as "pushed://<digest of its manifest>"

A file that a policy here already has is not requested again. Names come from a checked manifest, so none points outside
the directory. If space runs out, policies that are not loaded are deleted first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from sightline.errors import DataCorrupted, InvalidInput, NotFound, Overloaded, PreconditionFailed
from sightline.sampler.manifest import (
    ARRIVAL,
    MANIFEST,
    ManifestError,
    PolicyManifest,
    manifest_digest,
    parse_manifest,
    policy_dirname,
    read_manifest,
)
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline_chassis.full_disk import disk_full

from sightline_sampler.policies.download import downloads
from sightline_sampler.policies.pushers import ENDS, PushedShares, Pusher
from sightline_sampler.settings import PolicySettings

PUSHED = "pushed"
"""Scheme of a pushed policy's uri."""

_MOST_FILES = 10_000
_MOST_NAME = 255  # maximum bytes of one part of a path, as in file systems
_SPARE = 64 << 20  # bytes of the disk to leave free
_FORGOTTEN = 3600.0  # seconds after which incomplete files count as abandoned
_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class Announced:
    """An announced policy: its manifest, and the bytes of each file by its SHA-256 (hexadecimal)."""

    manifest: PolicyManifest
    text: bytes
    arrival: bytes
    sizes: Mapping[str, int]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def directory(self) -> str:
        """Name of its final directory."""
        return f"{policy_dirname(self.manifest.version)}-{self.digest[:12]}"

    @classmethod
    def of(cls, message: pb.PushedPolicy) -> Announced:
        """An announced policy.

        Raises:
            InvalidInput: its manifest is invalid, its names cannot be files, or sizes are missing.
        """
        try:
            manifest = parse_manifest(message.manifest)
        except ManifestError as error:
            raise InvalidInput(f"the pushed manifest: {error}", reason=f"POLICY_{error.reason}") from error
        if len(manifest.files) > _MOST_FILES:
            raise InvalidInput(f"the policy has more than {_MOST_FILES} files", reason="POLICY_TOO_LARGE")
        folders = {str(folder) for name in manifest.files for folder in PurePosixPath(name).parents}
        for name in manifest.files:
            parts = PurePosixPath(name).parts
            if name in (MANIFEST, ARRIVAL) or name in folders or "\0" in name or parts[0].startswith("."):
                raise InvalidInput(
                    f"the manifest names {name[:200]!r}, which cannot be a file of a policy: rename or remove it",
                    reason="POLICY_UNSAFE_NAME",
                )
            if len(parts) > 16 or any(len(os.fsencode(part)) > _MOST_NAME for part in parts):
                raise InvalidInput(
                    f"the file name {name[:200]!r}... is too long: use at most 16 parts of {_MOST_NAME} bytes",
                    reason="POLICY_UNSAFE_NAME",
                )
        sizes: dict[str, int] = {}
        for name, sha256 in manifest.files.items():
            if name not in message.sizes or sizes.setdefault(sha256, message.sizes[name]) != message.sizes[name]:
                raise InvalidInput(
                    f"{name!r} has no size, or another size than a file with the same SHA-256: send one size "
                    "for each file",
                    reason="POLICY_SIZES",
                )
        return cls(manifest, message.manifest, message.arrival, sizes)


class ReceivedPolicies:
    """Receives policies.

    Args:
        settings: their directory, and their maximum size.
        keeps: whether a policy's directory must be kept.
    """

    def __init__(self, settings: PolicySettings, keeps: Callable[[Path], bool]) -> None:
        self._settings, self._keeps = settings, keeps
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._lock = threading.Lock()  # one change of the directory at a time; pieces are small

    async def receive(self, requests: AsyncIterator[pb.PushPolicyRequest], pusher: Pusher) -> pb.PushPolicyResponse:
        """Receive pieces, and return what is missing.

        Args:
            requests: the announcement, then pieces.
            pusher: the team whose share it counts for.

        Raises:
            InvalidInput: no policy was announced, or a piece belongs to another file or position.
            DataCorrupted: a file has another digest than announced.
            PreconditionFailed: it is larger than a policy may be.
            Overloaded: the disk is full, and `retry_after` says when to retry; or the team's share is used up, which
                waiting does not change.
        """
        async with self._slots:
            first = await anext(aiter(requests), None)
            if first is None or first.WhichOneof("part") != "policy":
                raise InvalidInput("the first message of a push must be the policy's manifest", reason="POLICY_MISSING")
            announced = Announced.of(first.policy)
            root = downloads(self._settings)
            try:
                await asyncio.to_thread(self._admit, root, announced, pusher)
                missing = await asyncio.to_thread(self._missing, root, announced)
                if missing and sum(announced.sizes[sha] - had for sha, had in missing.items()):
                    await asyncio.to_thread(self._make_room, root, announced, missing)
                async for request in requests:
                    if request.WhichOneof("part") != "chunk":
                        raise InvalidInput("only chunks may follow the manifest", reason="POLICY_TWICE")
                    await asyncio.to_thread(self._append, root, announced, request.chunk)
                return await asyncio.to_thread(self._finish, root, announced)
            except OSError as error:
                if not disk_full(error):
                    raise
                raise _full(f"the disk of {root} is full") from error

    def _admit(self, root: Path, announced: Announced, pusher: Pusher) -> None:
        most, size = self._settings.max_download_gib, sum(announced.sizes.values())
        with self._lock:
            if not _holds(root / announced.directory, announced.digest):
                if size > most * (1 << 30):
                    raise PreconditionFailed(
                        f"the policy holds {size} bytes, over {most} GiB (policies.max_download_gib)",
                        reason="POLICY_TOO_LARGE",
                    )
                PushedShares(root, self._keeps).admit(announced.directory, announced.sizes, pusher)

    def _missing(self, root: Path, announced: Announced) -> dict[str, int]:
        """Incomplete files: the received bytes, by SHA-256."""
        pushed = root / ".pushed"
        with self._lock:
            if _holds(root / announced.directory, announced.digest):
                return {}
            pushed.mkdir(parents=True, exist_ok=True)
            known: dict[str, Path] | None = None
            missing: dict[str, int] = {}
            for sha256, size in announced.sizes.items():
                whole, part = pushed / sha256, pushed / f"{sha256}.part"
                if whole.exists():
                    continue
                if known is None:
                    known = dict(_files_of(root))
                if sha256 in known and _linked(known[sha256], whole):
                    continue
                had = part.stat().st_size if part.exists() else 0
                if had >= size:  # nothing is missing: it is empty, or we were killed before the check
                    part.touch()
                    self._whole(part, whole, sha256)
                    continue
                missing[sha256] = had
            return missing

    def _make_room(self, root: Path, announced: Announced, missing: Mapping[str, int]) -> None:
        stored = self._settings.max_stored_gib
        wanted = sum(announced.sizes[sha256] - had for sha256, had in missing.items())
        with self._lock:
            now, shares = time.time(), PushedShares(root, self._keeps)
            for path in (root / ".pushed").iterdir():
                held = path.name.partition(".")[0] in announced.sizes or (path.suffix == ENDS and shares.counts(path))
                if not held and now - path.stat().st_mtime > _FORGOTTEN:
                    path.unlink(missing_ok=True)
            idle = sorted((p for p in root.glob("v[0-9]*-*") if not self._keeps(p)), key=lambda p: p.stat().st_mtime)
            while True:
                over = _bytes(root) + wanted > stored * (1 << 30)
                if not over and shutil.disk_usage(root).free >= wanted + _SPARE:
                    return
                if not idle:
                    where = f"policies.max_stored_gib of {stored} GiB is" if over else f"the disk of {root} is"
                    raise _full(f"{where} too small for {wanted} more bytes besides the loaded policies")
                shutil.rmtree(idle[0], ignore_errors=True)
                shares.forget(idle.pop(0).name)

    def _append(self, root: Path, announced: Announced, chunk: pb.PushedChunk) -> None:
        sha256, data = chunk.sha256.hex(), chunk.data
        if sha256 not in announced.sizes:
            raise InvalidInput(f"no file of this policy has SHA-256 {sha256[:64]!r}", reason="CHUNK_OF_NO_FILE")
        whole, part = root / ".pushed" / sha256, root / ".pushed" / f"{sha256}.part"
        with self._lock:
            if whole.exists() or _holds(root / announced.directory, announced.digest):
                return  # another caller sent it
            had = part.stat().st_size if part.exists() else 0
            if chunk.offset > had:
                raise InvalidInput(
                    f"{had} bytes were received, but the piece begins at {chunk.offset}", reason="CHUNK_NOT_NEXT"
                )
            fresh = data[had - chunk.offset :]
            if had + len(fresh) > announced.sizes[sha256]:
                raise InvalidInput(f"more than the {announced.sizes[sha256]} bytes announced", reason="CHUNK_TOO_LONG")
            with part.open("ab") as file:
                file.write(fresh)
            PushedShares(root, self._keeps).came(announced.directory)
            if had + len(fresh) == announced.sizes[sha256]:
                self._whole(part, whole, sha256)

    @staticmethod
    def _whole(part: Path, whole: Path, sha256: str) -> None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if found != sha256:
            part.unlink()
            raise DataCorrupted(
                f"the received file has SHA-256 {found}, not {sha256}: send it again", reason="PUSHED_FILE_CHANGED"
            )
        part.rename(whole)

    def _finish(self, root: Path, announced: Announced) -> pb.PushPolicyResponse:
        missing = self._missing(root, announced)
        if missing:
            named = (pb.MissingFile(sha256=bytes.fromhex(sha256), offset=had) for sha256, had in missing.items())
            return pb.PushPolicyResponse(missing=named)
        final, aside = root / announced.directory, root / f".{announced.directory}"
        with self._lock:
            if not _holds(final, announced.digest):
                shutil.rmtree(aside, ignore_errors=True)
                shutil.rmtree(final, ignore_errors=True)
                for name, sha256 in sorted(announced.manifest.files.items()):
                    target = aside / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not _linked(root / ".pushed" / sha256, target):
                        raise DataCorrupted("a file was deleted meanwhile: push again", reason="PUSHED_FILE_CHANGED")
                if announced.arrival:
                    (aside / ARRIVAL).write_bytes(announced.arrival)
                with (aside / MANIFEST).open("wb") as file:
                    file.write(announced.text)
                    file.flush()
                    os.fsync(file.fileno())
                aside.rename(final)
                for sha256 in announced.sizes:
                    (root / ".pushed" / sha256).unlink(missing_ok=True)
        return pb.PushPolicyResponse(uri=f"{PUSHED}://{announced.digest}")


def pushed_directory(uri: str, root: Path) -> Path:
    """The directory of a pushed policy.

    Raises:
        InvalidInput: the uri is not one from a push.
        NotFound: it does not exist here: push it again.
    """
    digest = uri.removeprefix(f"{PUSHED}://")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise InvalidInput(f"{uri[:200]!r} is not the reply to a push", reason="BAD_URI")
    for path in root.glob(f"v[0-9]*-{digest[:12]}"):
        if _holds(path, digest):
            return path
    raise NotFound(
        f"policy {digest[:12]}... was never pushed here, or was removed: push it again", reason="POLICY_NOT_PUSHED"
    )


def _holds(directory: Path, digest: str) -> bool:
    try:
        return manifest_digest(directory) == digest
    except (ManifestError, OSError):
        return False


def _files_of(root: Path) -> Iterator[tuple[str, Path]]:
    """Files of existing policies, by SHA-256. Staging checks them again."""
    for directory in root.glob("v[0-9]*-*"):
        try:
            manifest = read_manifest(directory)
        except ManifestError:
            continue
        yield from ((sha256, directory / name) for name, sha256 in manifest.files.items())


def _linked(source: Path, target: Path) -> bool:
    """Copy a file to `target`, by a link if the file system supports it; returns whether it existed."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        pass
    except FileNotFoundError:
        return False
    except OSError:
        shutil.copyfile(source, target)
    return True


def _bytes(root: Path) -> int:
    """Bytes of all files below, each counted once."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                seen = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            found[seen.st_ino] = seen.st_size
    return sum(found.values())


def _full(why: str) -> Overloaded:
    return Overloaded(
        f"{why}; retire policies, or give the sampler more room", reason="POLICY_STORE_FULL", retry_after=5.0
    )
