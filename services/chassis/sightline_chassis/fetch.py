"""Fetch a directory of weights into a local one, whole and checked, as an init container does before a service starts.

    python -m sightline_chassis.fetch hf://ORG/REPO@REVISION /models/clip --sha256 open_clip_model.safetensors=HEX
    python -m sightline_chassis.fetch s3://models/llava-1.5-7b-hf /models/llava

Any URL that fsspec knows will do (`s3://` needs s3fs, `hf://` huggingface_hub). Run again, it goes on: a file that is
there with the right size, and the right SHA-256 where one is given, is not fetched twice. A file is written aside and
renamed, so one that exists is whole.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from sightline.errors import DataCorrupted, InvalidInput, NotFound, SightlineError

CHUNK = 8 << 20


def fetch(source: str, directory: Path, sha256: Mapping[str, str]) -> list[str]:
    """Fetch all files below `source`.

    Args:
        source: a directory, as a URL that fsspec knows.
        directory: where the files go; made if it is not there.
        sha256: file, relative to the source -> its SHA-256 in hexadecimal. Files that are not named are not checked.

    Returns:
        The files that were fetched, relative to the source; those that were there already are left out.

    Raises:
        NotFound: the source holds no file, or not one that `sha256` names.
        DataCorrupted: a file has another digest than it should; it is not left behind.
        InvalidInput: fsspec does not know the URL's scheme, or a package for it is missing.
    """
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(source)
    except (ValueError, ImportError) as error:
        raise InvalidInput(f"{source}: {error}", reason="SCHEME_UNKNOWN") from error
    sizes = {_relative(path, root): facts["size"] for path, facts in system.find(root, detail=True).items()}
    if not sizes:
        raise NotFound(f"{source} holds no files; is the address right, and may this account read it?")
    if missing := sorted(set(sha256) - set(sizes)):
        raise NotFound(f"{source} has no {', '.join(missing)}, of which a SHA-256 was given", reason="FILE_NOT_FOUND")
    fetched = []
    for name, size in sorted(sizes.items()):
        target = directory / name
        if _there(target, size, sha256.get(name)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.part")
        digest = hashlib.sha256()
        with system.open(f"{root.rstrip('/')}/{name}", "rb") as remote, aside.open("wb") as local:
            while block := remote.read(CHUNK):
                digest.update(block)
                local.write(block)
            local.flush()
            os.fsync(local.fileno())
        if digest.hexdigest() != sha256.get(name, digest.hexdigest()):
            aside.unlink()
            raise DataCorrupted(
                f"{source}: {name} has SHA-256 {digest.hexdigest()}, not {sha256[name]}", reason="DIGEST_MISMATCH"
            )
        aside.replace(target)
        fetched.append(name)
    return fetched


def _relative(path: str, root: str) -> str:
    """A file's path below the root; refuses one that would leave the target directory."""
    name = PurePosixPath(path).relative_to(PurePosixPath(root))
    if ".." in name.parts or name.is_absolute():
        raise InvalidInput(f"{path}: not below {root}")
    return str(name)


def _there(target: Path, size: int | None, sha256: str | None) -> bool:
    if not target.is_file() or (size is not None and target.stat().st_size != size):
        return False
    if sha256 is None:
        return size is not None
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 when everything is there, 1 and a line on stderr when not."""
    parser = argparse.ArgumentParser(prog="python -m sightline_chassis.fetch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", help="URL of a directory: hf://, s3://, https://, file://, ...")
    parser.add_argument("directory", type=Path, help="where the files go")
    parser.add_argument("--sha256", metavar="FILE=HEX", action="append", default=[], help="what a file must be")
    options = parser.parse_args(arguments)
    digests = dict(entry.split("=", 1) for entry in options.sha256)
    try:
        fetched = fetch(options.source, options.directory, digests)
    except (SightlineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(fetched)} files fetched into {options.directory}; {len(digests)} checked by SHA-256")
    return 0


if __name__ == "__main__":
    sys.exit(main())
