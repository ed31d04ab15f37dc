"""The folder of a dataset's images. A row names a file in it, or holds the bytes.

A dataset may be untrusted, and the files that its rows name are sent to a sampler and a scorer. So only plain files
inside the folder are accepted, after following every link. A device, a FIFO and an endless file are refused before they
are read.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput
from sightline.integrations.columns import base64_bytes
from sightline.pictures import image_bytes

from sightline_trainer.files import write_whole

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")
"""How the base64 of a JPEG, PNG, WebP or GIF begins."""
MOST_BYTES = 60 << 20
"""Maximum bytes of an image: no service takes a larger one (limits.max_image_bytes)."""


class Folder:
    """Images of a dataset.

    Args:
        base: relative paths start here, and all paths must be inside it.
        cache: directory for images that a table stores as bytes; without it such a table is refused.
        others: more directories that paths may be in.
    """

    def __init__(self, base: Path, cache: Path | None = None, others: Sequence[Path] = ()) -> None:
        self.base, self.cache = base, cache
        self._roots = [os.path.realpath(root) for root in (base, *others)]
        self._base = os.fspath(base)
        # Of a directory's path; a pool has many images in few directories, and following links costs a call a part.
        self._real_directory = functools.lru_cache(maxsize=1024)(os.path.realpath)

    def picture(self, value: Any) -> Path | bytes:
        """A row's picture: a path relative to the folder, or its encoded bytes.

        Args:
            value: a path, encoded bytes, a data URI, `{"bytes": ..., "path": ...}` as `datasets` stores images (in
                JSON with bytes as base64), a PIL image, or a list of one of these, as TRL's `images` are.

        Returns:
            The path, or the bytes. A path without a file fails when it is read.

        Raises:
            InvalidInput: it is none of these, is outside the folder, is not a plain file or is too large.
        """
        if isinstance(value, list | tuple):
            if len(value) > 1:
                raise InvalidInput(f"it has {len(value)} images; exactly one is needed", reason="IMAGE_NOT_ONE")
            value = value[0] if value else None
        if isinstance(value, Mapping):
            held, path = value.get("bytes"), value.get("path")
            value = path if held is None else base64_bytes(held) if isinstance(held, str) else held
        if value is None or value == "" or (isinstance(value, float) and value != value):
            raise InvalidInput("it has no image: the field is missing, null or empty", reason="IMAGE_MISSING")
        if isinstance(value, str):
            return base64_bytes(value) if value[:5].lower() == "data:" else self._inside(value)
        if hasattr(value, "save"):  # a PIL image
            return image_bytes(value)
        if not isinstance(value, bytes):
            raise InvalidInput(f"an image must be a path or bytes, not {type(value).__name__}", reason="DATASET_IMAGE")
        return value

    def image(self, value: Any) -> Path:
        """The path of a `picture`; bytes are written to the cache once.

        Raises:
            InvalidInput: see `picture`; or there is no cache for bytes.
        """
        found = self.picture(value)
        if isinstance(found, Path):
            return found
        if self.cache is None:
            raise InvalidInput("an image must be a path here, not bytes", reason="DATASET_IMAGE")
        digest = hashlib.sha256(found).hexdigest()
        path = self.cache / digest[:2] / digest
        if not path.exists():
            write_whole(path, lambda aside: aside.write_bytes(found))
        return path

    def _inside(self, name: str) -> Path:
        if fault := _no_path(name):
            raise InvalidInput(f"the image {name[:100]!r} {fault}", reason="IMAGE_NO_FILE")
        try:
            real, facts = self._followed(os.path.join(self._base, name))
        except (OSError, ValueError) as error:  # a name with 300 characters, or with NUL
            raise InvalidInput(f"the image {name[:100]!r} cannot be read: {error}", reason="DATASET_IMAGE") from None
        if not any(real == root or real.startswith(os.path.join(root, "")) for root in self._roots):
            raise InvalidInput(
                f"the image {name[:100]!r} is outside {self.base}; images must be in the dataset's directory, or "
                "in the one that its reference names (?images=DIRECTORY)",
                reason="IMAGE_OUTSIDE",
            )
        if facts is not None and not stat.S_ISREG(facts.st_mode):
            raise InvalidInput(f"the image {name[:100]!r} is not a plain file", reason="IMAGE_NO_FILE")
        if facts is not None and facts.st_size > MOST_BYTES:
            raise InvalidInput(
                f"the image {name[:100]!r} holds {facts.st_size} bytes, over {MOST_BYTES}", reason="IMAGE_TOO_LARGE"
            )
        return self.base / name

    def _followed(self, path: str) -> tuple[str, os.stat_result | None]:
        """Where a path leads through all links, and what is there; None if nothing is."""
        directory, last = os.path.split(path)
        real, facts = os.path.join(self._real_directory(directory), last), None
        with suppress(FileNotFoundError):
            facts = os.lstat(real)
            if stat.S_ISLNK(facts.st_mode) or last in ("", ".", ".."):
                real, facts = os.path.realpath(path), None
                facts = os.stat(real)
        return real, facts


def is_address(text: str) -> bool:
    """Whether a text begins as `s3://` and `https://` do."""
    return _ADDRESS.match(text) is not None


def _no_path(name: str) -> str:
    """What a text is that cannot be a path, and what to do; "" if it may be one."""
    if is_address(name):
        return "is an address, not a path: download the pictures, and give their paths"
    if len(name) > 255 and name.startswith(_BASE64):
        return "is base64: put data:image/png;base64, (or jpeg, webp, gif) before it, or store the file's bytes"
    return ""
