"""Folder: where a dataset's images lie. A row names a file in it, or brings the bytes.

A dataset comes from somebody, and what its rows name is sent to a sampler and a scorer: so only plain files inside the
folder are taken, with every link followed. A device, a FIFO and a file without end are refused before they are read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput
from sightline.pictures import image_bytes

from sightline_trainer.files import write_whole

MOST_BYTES = 60 << 20
"""Of one image: no service takes a larger one (limits.max_image_bytes)."""


class Folder:
    """Images of a dataset.

    Args:
        base: relative paths begin here, and all must lie in it.
        cache: directory for images that a table holds as bytes; without one such a table is refused.
        others: further directories that paths may lead into.
    """

    def __init__(self, base: Path, cache: Path | None = None, others: Sequence[Path] = ()) -> None:
        self.base, self.cache = base, cache
        self._roots = [Path(os.path.realpath(root)) for root in (base, *others)]

    def picture(self, value: Any) -> Path | bytes:
        """A picture of a row: a path as it stands, relative to the folder, or its encoded bytes.

        Args:
            value: a path, encoded bytes, `{"bytes": ..., "path": ...}` as `datasets` stores images, a PIL image, or a
                list of one of these, as TRL's `images` are.

        Returns:
            The path, or the bytes. A path without a file fails when it is read.

        Raises:
            InvalidInput: it is none of these, lies outside of the folder, is not a plain file or too large.
        """
        if isinstance(value, list | tuple):
            if len(value) > 1:
                raise InvalidInput(f"it has {len(value)} images; exactly one is needed", reason="IMAGE_NOT_ONE")
            value = value[0] if value else None
        if isinstance(value, Mapping):
            held, path = value.get("bytes"), value.get("path")
            value = held if held is not None else path
        if value is None or value == "" or (isinstance(value, float) and value != value):
            raise InvalidInput("it has no image: the field is missing, null or empty", reason="IMAGE_MISSING")
        if isinstance(value, str):
            return self._inside(value)
        if hasattr(value, "save"):  # a PIL image
            return image_bytes(value)
        if not isinstance(value, bytes):
            raise InvalidInput(f"an image must be a path or bytes, not {type(value).__name__}", reason="DATASET_IMAGE")
        return value

    def image(self, value: Any) -> Path:
        """Where a `picture` lies; bytes are written under the cache once.

        Raises:
            InvalidInput: as `picture`, or there is no cache for bytes.
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
        path = self.base / name
        try:
            real = Path(os.path.realpath(path))
            facts = os.stat(real)
        except FileNotFoundError:
            facts = None
        except (OSError, ValueError) as error:  # a name of 300 letters, or with NUL in it
            raise InvalidInput(f"the image {name[:100]!r} cannot be read: {error}", reason="DATASET_IMAGE") from None
        if not any(real.is_relative_to(root) for root in self._roots):
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
        return path
