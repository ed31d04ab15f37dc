"""File format: what a dataset's file is by its first bytes, so that one of another format is named as that."""

from __future__ import annotations

from pathlib import Path

from sightline.errors import InvalidInput

BOM = b"\xef\xbb\xbf"
_HEAD = 1 << 16
_WHITE = b" \t\r\n"
_MAGIC = (
    (b"\xff\xfe", "is UTF-16: write it as UTF-8"),
    (b"\xfe\xff", "is UTF-16: write it as UTF-8"),
    (b"\x1f\x8b", "is compressed by gzip: decompress it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: decompress it"),
    (b"BZh", "is compressed by bzip2: decompress it"),
    (b"\xfd7zXZ", "is compressed by xz: decompress it"),
    (b"PK\x03\x04", "is a zip archive: unpack it"),
    (b"ARROW1", "is an Arrow file: write it as Parquet, or name its directory as datasets:DIRECTORY"),
    (b"version https://git-lfs", "is only Git LFS's pointer to the file: fetch it with `git lfs pull`"),
)
_TAR = (257, b"ustar")


def is_parquet(path: Path) -> bool:
    """Whether a file is a Parquet, whatever its name.

    Raises:
        InvalidInput: DATASET_FORMAT: it is a file of a format that no pool reads.
    """
    head = _head(path)
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise _other(path, what)
    if head[_TAR[0] :].startswith(_TAR[1]):
        raise _other(path, "is a tar archive: unpack it, or, if it is a WebDataset, name datasets:ITS_DIRECTORY")
    return path.suffix == ".parquet" or head.startswith(b"PAR1")


def is_array(path: Path) -> bool:
    """Whether a JSON file is an array of objects, not one object on each line."""
    return _head(path).removeprefix(BOM).lstrip(_WHITE)[:1] == b"["


def not_lines(path: Path) -> InvalidInput | None:
    """Why no line of a file was a JSON object, if its beginning tells."""
    first = _head(path).removeprefix(BOM).lstrip(_WHITE)
    if first and not first.startswith(b"{"):
        return _other(
            path,
            "holds no JSON: write its rows as JSON, one object on each line, or as Parquet, or name its directory as "
            "datasets:DIRECTORY, which also reads CSV",
        )
    if first.splitlines()[:1] == [b"{"]:
        return _other(path, "is one JSON object: write one object on each line, or an array of objects")
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _other(path: Path, what: str) -> InvalidInput:
    return InvalidInput(f"{path} {what}", reason="DATASET_FORMAT")
