"""Fetch a directory of weights into a local one, complete and checked; for an init container before a service starts.

    python -m sightline_chassis.fetch hf://ORG/REPO@REVISION /models/clip --sha256 open_clip_model.safetensors=HEX
    python -m sightline_chassis.fetch s3://models/llava-1.5-7b-hf /models/llava

Any URL that fsspec knows works (`s3://` needs s3fs, `hf://` huggingface_hub). Run it again to continue: a file with the
right size (and the right SHA-256, if one is given) is not fetched twice. A file is written under a temporary name and
renamed, so a file that exists is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sightline.errors import NotFound, PreconditionFailed, SightlineError

from sightline_chassis.remote_directory import RemoteDirectory

MOST_BYTES = 500 << 30


def fetch(source: str, directory: Path, sha256: Mapping[str, str], *, most_bytes: int = MOST_BYTES) -> list[str]:
    """Fetch all files below `source`.

    Args:
        source: a directory, as a URL that fsspec knows.
        directory: where to write the files; created if it does not exist.
        sha256: file, relative to the source -> its SHA-256 in hexadecimal. Other files are not checked.
        most_bytes: maximum of all files together.

    Returns:
        The files that were fetched, relative to the source, without those that existed already.

    Raises:
        NotFound: the source is empty, or lacks a file that `sha256` names.
        PreconditionFailed: it is too large; if the storage reports sizes, nothing is fetched.
        SightlineError: as `RemoteDirectory`.
    """
    remote = RemoteDirectory(source)
    sizes = remote.sizes()
    if not sizes:
        raise NotFound(
            f"{source} contains no files; check the address and this account's read access", reason="FILE_NOT_FOUND"
        )
    if missing := sorted(set(sha256) - set(sizes)):
        raise NotFound(f"{source} has no {', '.join(missing)}, for which a SHA-256 was given", reason="FILE_NOT_FOUND")
    if (total := sum(size or 0 for size in sizes.values())) > most_bytes:
        raise PreconditionFailed(
            f"{source} holds {total} bytes, but at most {most_bytes} may be fetched: raise --max-gib",
            reason="FILE_TOO_LARGE",
        )
    fetched, left = [], most_bytes
    for name, size in sorted(sizes.items()):
        target = directory / name
        if not _there(target, size, sha256.get(name)):
            left -= remote.fetch(name, target, most_bytes=left, sha256=sha256.get(name))
            fetched.append(name)
    return fetched


def _there(target: Path, size: int | None, sha256: str | None) -> bool:
    if not target.is_file() or (size is not None and target.stat().st_size != size):
        return False
    if sha256 is None:
        return size is not None
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: returns 0 if all files are complete, otherwise 1 with a line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m sightline_chassis.fetch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", help="URL of a directory: hf://, s3://, https://, file://, ...")
    parser.add_argument("directory", type=Path, help="where to write the files")
    parser.add_argument("--sha256", metavar="FILE=HEX", action="append", default=[], help="allowed file names")
    parser.add_argument(
        "--max-gib", type=float, default=MOST_BYTES / (1 << 30), help="maximum GiB of all files (default %(default)g)"
    )
    options = parser.parse_args(arguments)
    digests = dict(entry.split("=", 1) for entry in options.sha256)
    try:
        fetched = fetch(options.source, options.directory, digests, most_bytes=int(options.max_gib * (1 << 30)))
    except (SightlineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(fetched)} files fetched into {options.directory}; {len(digests)} checked by SHA-256")
    return 0


if __name__ == "__main__":
    sys.exit(main())
