"""The manifest of a policy directory: the trainer writes it, and the sampler checks it before it loads anything.

    policies/v000007/
      adapter_config.json          any files, in sub-directories too
      adapter_model.safetensors
      manifest.json                written last: a directory without it is half-written
      arrival.json                 the result of a sampler's probes, written by the sampler; not part of the policy

Writing is crash-safe: every file and directory is fsynced before the manifest is renamed into place, so a reader that
sees `manifest.json` sees complete files (also over NFS).

Errors are `ManifestError`, which names the file and has a `reason` for programs:

    MISSING_DIRECTORY   the directory does not exist
    HALF_WRITTEN        no manifest.json
    BAD_MANIFEST        manifest.json is not JSON of the right shape
    MISSING_FILE        a file that the manifest names is missing
    EXTRA_FILE          a file exists that the manifest does not name
    CHANGED_FILE        a file's SHA-256 differs from the manifest's
    NO_FILES            the directory holds nothing but its manifest
    UNSAFE_NAME         a name points outside the directory, or is not a plain file
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import json
import os
import re
import stat
import struct
import threading
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, cast, get_args

from sightline.picture_rule import PICTURE_RULE

Kind = Literal["lora", "merged", "full"]
Reason = Literal[
    "MISSING_DIRECTORY",
    "HALF_WRITTEN",
    "BAD_MANIFEST",
    "MISSING_FILE",
    "EXTRA_FILE",
    "CHANGED_FILE",
    "NO_FILES",
    "UNSAFE_NAME",
]

MANIFEST: Final = "manifest.json"
ARRIVAL: Final = "arrival.json"
FORMAT: Final = 1
_OURS: Final = frozenset({MANIFEST, ARRIVAL})  # not part of the policy
_WRITING: Final = ".writing"
_MOST_BYTES: Final = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """A policy directory does not match its manifest; `file` is the file at fault, `reason` is for programs."""

    def __init__(self, reason: Reason, file: str, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.file = file


@dataclasses.dataclass(frozen=True)
class PolicyManifest:
    """What a policy is and where it comes from.

    Attributes:
        version: the policy's number; it only grows and is never reused. 0 is the base model and has no manifest.
        parent_version: the policy it was trained from.
        kind: "lora" (a PEFT adapter on the base model), "merged" or "full" (a whole checkpoint).
        base_digest: `model_digest` of the base model that it belongs to.
        run_id: the run that made it.
        iteration: the iteration of that run.
        picture_rule: version of the rule by which its training read pictures; "" if the manifest names none, as in
            Sightline 0.1.0.
        metrics: more facts, as JSON values.
        files: SHA-256 of each file by its name within the directory; filled by `write_manifest`.
        created: time of writing, ISO 8601 in UTC; filled by `write_manifest`.
    """

    version: int
    parent_version: int
    kind: Kind
    base_digest: str
    run_id: str = ""
    iteration: int = 0
    picture_rule: str = PICTURE_RULE
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    created: str = ""

    def __post_init__(self) -> None:
        if self.version < 1:
            raise ValueError(f"version must be at least 1 (0 is the base model), not {self.version}")
        if not 0 <= self.parent_version < self.version:
            raise ValueError(f"parent_version must be in 0..{self.version - 1}, not {self.parent_version}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {self.kind!r}")
        if not _SHA256.fullmatch(self.base_digest):
            raise ValueError(f"base_digest must be a SHA-256 in lower-case hexadecimal, not {self.base_digest!r}")
        if self.iteration < 0:
            raise ValueError(f"iteration must not be negative, not {self.iteration}")


def policy_dirname(version: int) -> str:
    """The name of a policy's directory: `v000007` for version 7."""
    if version < 0:
        raise ValueError(f"version must not be negative, not {version}")
    return f"v{version:06d}"


def write_manifest(directory: str | os.PathLike[str], manifest: PolicyManifest) -> PolicyManifest:
    """Turn the directory into a policy: digest every file, sync all to disk, then write the manifest.

    Args:
        directory: holds the policy's files, all written and closed.
        manifest: what the policy is; its `files` and `created` are filled in here.

    Returns:
        The manifest as written.

    Raises:
        ManifestError: the directory does not exist, is empty, or holds something that is not a plain file.
    """
    root = Path(directory)
    names = [name for name in _names(root) if name not in _OURS]
    if not names:
        raise ManifestError("NO_FILES", MANIFEST, f"{root} has no files: save the policy there before its manifest")
    files = {name: _sha256(root / name, sync=True) for name in names}
    for folder in sorted({(root / name).parent for name in names}, reverse=True):
        _sync_directory(folder)
    created = manifest.created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    done = dataclasses.replace(manifest, files=files, created=created)
    _write(root / MANIFEST, {"format": FORMAT, **dataclasses.asdict(done)})
    _sync_directory(root)
    _sync_directory(root.resolve().parent)
    return done


def write_arrival(directory: str | os.PathLike[str], report: Mapping[str, Any]) -> Path:
    """Write the probes' result beside a policy's manifest; returns the file. The last of several writers wins.

    Raises:
        OSError: the directory cannot be written.
    """
    return _write(Path(directory) / ARRIVAL, report)


def read_arrival(directory: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """What `write_arrival` wrote; None if there is no readable file."""
    try:
        report = json.loads(_plain(Path(directory) / ARRIVAL, _MOST_BYTES))
    except (ManifestError, OSError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


def read_manifest(directory: str | os.PathLike[str]) -> PolicyManifest:
    """Read the manifest without looking at the files.

    Raises:
        ManifestError: MISSING_DIRECTORY, HALF_WRITTEN, BAD_MANIFEST or UNSAFE_NAME.
    """
    root = Path(directory)
    if not os.path.isdir(root):  # never raises, for any name
        raise ManifestError(
            "MISSING_DIRECTORY", str(root), f"{root} is not a directory: name the directory of a policy"
        )
    try:
        text = _plain(root / MANIFEST, _MOST_BYTES)
    except FileNotFoundError:
        raise ManifestError("HALF_WRITTEN", MANIFEST, f"{root} has no {MANIFEST}: the policy is half-written") from None
    except OSError as error:
        raise ManifestError("BAD_MANIFEST", MANIFEST, f"{root / MANIFEST} cannot be read: {error}") from None
    return parse_manifest(text, str(root / MANIFEST))


def parse_manifest(text: bytes, named: str = MANIFEST) -> PolicyManifest:
    """Read the bytes of a manifest; `named` is for messages.

    Raises:
        ManifestError: BAD_MANIFEST.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested too deeply
        raise ManifestError("BAD_MANIFEST", MANIFEST, f"{named} cannot be read: {error}") from None
    try:
        return _manifest_of(tree)
    except (TypeError, ValueError) as error:
        raise ManifestError("BAD_MANIFEST", MANIFEST, f"{named}: {error}") from None


def verify(directory: str | os.PathLike[str]) -> PolicyManifest:
    """Check that the directory holds exactly the files of its manifest, each with its SHA-256.

    Returns:
        The manifest.

    Raises:
        ManifestError: see the module's list; `file` names the first file at fault.
    """
    manifest = read_manifest(directory)
    root = Path(directory)
    there = set(_names(root)) - _OURS
    for name in sorted(manifest.files):
        if name not in there:
            raise ManifestError("MISSING_FILE", name, f"{root / name} is missing: the manifest names it")
    extra = sorted(there - set(manifest.files))
    if extra:
        raise ManifestError("EXTRA_FILE", extra[0], f"the manifest does not name {root / extra[0]}: remove it")
    for name, digest in sorted(manifest.files.items()):
        found = _sha256(root / name)
        if found != digest:
            raise ManifestError(
                "CHANGED_FILE", name, f"{root / name} has SHA-256 {found}, but the manifest says {digest}"
            )
    return manifest


def manifest_digest(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of the manifest file, hexadecimal. The manifest holds its files' digests, so this identifies the
    policy."""
    return hashlib.sha256(_plain(Path(directory) / MANIFEST, _MOST_BYTES)).hexdigest()


def model_digest(directory: str | os.PathLike[str]) -> str:
    """One SHA-256 for the weights of a model directory, hexadecimal.

    Over the files `*.safetensors` (or, if there are none, `*.bin`) directly in the directory, sorted by name, it
    covers: the name's length and bytes, the content's length and its SHA-256. Configuration and tokenizer do not count.

    Raises:
        ManifestError: the directory does not exist or holds no weights.
    """
    root = Path(directory)
    if not os.path.isdir(root):  # never raises, for any name
        raise ManifestError(
            "MISSING_DIRECTORY", str(root), f"{root} is not a directory: name the directory of a policy"
        )
    files = sorted(root.glob("*.safetensors")) or sorted(root.glob("*.bin"))
    if not files:
        raise ManifestError("NO_FILES", "*.safetensors", f"{root} contains no weights (*.safetensors or *.bin)")
    total = hashlib.sha256()
    for file in files:
        name = file.name.encode()
        total.update(struct.pack("<QQ", len(name), file.stat().st_size))
        total.update(name)
        total.update(bytes.fromhex(_sha256(file.resolve())))  # hubs store their files as links
    return total.hexdigest()


def _manifest_of(tree: Any) -> PolicyManifest:
    if not isinstance(tree, dict):
        raise TypeError(f"must be a mapping, not a {type(tree).__name__}")
    tree = dict(tree)
    if (found := tree.pop("format", None)) != FORMAT:
        raise ValueError(f"format {found!r} is unknown (this release reads {FORMAT})")
    types: dict[str, type] = {"version": int, "parent_version": int, "iteration": int, "files": dict, "metrics": dict}
    known = {field.name for field in dataclasses.fields(PolicyManifest)}
    for name in ("version", "parent_version", "kind", "base_digest", "files"):
        if name not in tree:
            raise ValueError(f"{name} is missing")
    for name, value in tree.items():
        if name not in known:
            raise ValueError(f"{name} is unknown")
        if not isinstance(value, types.get(name, str)) or isinstance(value, bool):
            raise TypeError(f"{name} has a value of the wrong type: {value!r}")
    for name, digest in tree["files"].items():
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or str(PurePosixPath(name)) != name:
            raise ValueError(f"file name {name!r} points outside the directory")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f"file {name!r} has no SHA-256")
    if not tree["files"]:
        raise ValueError("names no files")
    return PolicyManifest(**cast(dict[str, Any], {"picture_rule": "", **tree}))


def _names(root: Path) -> Iterator[str]:
    """Names of all files under `root`, with slashes, sorted. Links and other special files are refused."""
    if not os.path.isdir(root):  # never raises, for any name
        raise ManifestError(
            "MISSING_DIRECTORY", str(root), f"{root} is not a directory: name the directory of a policy"
        )
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if _is_aside(name):  # another writer may rename it into place before we look
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ManifestError("UNSAFE_NAME", name, f"{path} is not a plain file")
        if path.is_file():
            yield name


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """A plain file, opened without blocking: a FIFO put in its place would block until it is written to.

    Raises:
        ManifestError: UNSAFE_NAME; it is a link, FIFO, device or directory.
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise ManifestError("UNSAFE_NAME", path.name, f"{path} is not a plain file") from None
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ManifestError("UNSAFE_NAME", path.name, f"{path} is not a plain file")
        yield file


def _plain(path: Path, most: int) -> bytes:
    with _opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ManifestError("BAD_MANIFEST", path.name, f"{path} holds over {most} bytes")
    return content


def _sha256(path: Path, *, sync: bool = False) -> str:
    with _opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return digest


def _is_aside(name: str) -> bool:
    return name.endswith(_WRITING) and name.startswith(tuple(f".{ours}." for ours in _OURS))


def _write(path: Path, tree: Mapping[str, Any]) -> Path:
    """Write a whole file, at first under this thread's own name: the samplers of a fleet prove a policy at the same
    time."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{_WRITING}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(tree, file, indent=2, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        return aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # we may not open the parent; the rename itself is done
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
