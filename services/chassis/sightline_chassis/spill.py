"""Images that left the store's memory, in a directory: bounded; the least recently used are dropped first.

Files are named by their SHA-256 and verified when they are read. A restarted service finds them again; a directory
belongs to one service.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sightline.errors import DataCorrupted

logger = logging.getLogger(__name__)
_NAME = re.compile(r"[0-9a-f]{64}")
_MOST_ON_THE_WAY = 64 * 2**20  # bytes that may wait for a slow disk; more are dropped


class Spill:
    """A directory of images, written by its own thread.

    The index of its files is an `OrderedDict`, not cachetools: a file is removed under two locks, not at the moment at
    which another is added.

    Args:
        directory: created if it does not exist.
        max_bytes: maximum of all images in it.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self._on_the_way: dict[bytes, bytes] = {}
        self._lock = threading.Lock()  # guards the fields above; never held during disk access
        self._files = threading.Lock()  # guards the directory's names and their index together
        self._bytes = 0
        directory.mkdir(parents=True, exist_ok=True)
        found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name) and path.is_file()]
        for path in sorted(found, key=lambda path: path.stat().st_mtime):
            self._sizes[bytes.fromhex(path.name)] = path.stat().st_size
        self._bytes = sum(self._sizes.values())
        self._shrink()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="spill")

    def __len__(self) -> int:
        with self._lock:
            return len(self._sizes) + len(self._on_the_way)

    def __contains__(self, sha256: bytes) -> bool:
        with self._lock:
            if sha256 in self._sizes:
                self._sizes.move_to_end(sha256)
                return True
            return sha256 in self._on_the_way

    def names(self) -> set[bytes]:
        """The SHA-256 of all images here; none counts as used."""
        with self._lock:
            return {*self._sizes, *self._on_the_way}

    def put(self, sha256: bytes, content: bytes) -> None:
        """Store an image; returns at once."""
        with self._lock:
            if sha256 in self._sizes or sha256 in self._on_the_way or len(content) > self._max_bytes:
                return
            if sum(map(len, self._on_the_way.values())) + len(content) > _MOST_ON_THE_WAY:
                return
            self._on_the_way[sha256] = content
        self._pool.submit(self._write, sha256, content)

    def read(self, sha256: bytes) -> bytes:
        """An image's bytes; may wait for the disk. Raises FileNotFoundError, or DataCorrupted if they changed."""
        with self._lock:
            waiting = self._on_the_way.get(sha256)
        if waiting is not None:
            return waiting
        try:
            content = self._path(sha256).read_bytes()
        except FileNotFoundError:
            self._forget(sha256, gone=True)
            raise
        if hashlib.sha256(content).digest() != sha256:
            self._forget(sha256)
            raise DataCorrupted(
                f"the stored file of image {sha256.hex()} has changed: upload it again", reason="DIGEST_MISMATCH"
            )
        return content

    def forget(self, sha256: bytes) -> None:
        """Drop an image; returns at once."""
        with self._lock:
            if sha256 not in self._sizes and sha256 not in self._on_the_way:
                return
        self._pool.submit(self._forget, sha256)

    def close(self) -> None:
        """Finish writing."""
        self._pool.shutdown(wait=True)

    def _path(self, sha256: bytes) -> Path:
        return self._directory / sha256.hex()

    def _write(self, sha256: bytes, content: bytes) -> None:
        aside = self._path(sha256).with_suffix(".part")
        try:
            aside.write_bytes(content)
            with self._files:
                os.replace(aside, self._path(sha256))
                with self._lock:
                    self._on_the_way.pop(sha256, None)
                    self._sizes[sha256] = len(content)
                    self._bytes += len(content)
        except OSError as error:  # a full disk fails an upload, not the service
            logger.warning("an image could not be spilled", extra={"why": str(error)})
            with self._lock:
                self._on_the_way.pop(sha256, None)
            aside.unlink(missing_ok=True)
        self._shrink()

    def _shrink(self) -> None:
        while True:
            with self._lock:
                if self._bytes <= self._max_bytes:
                    return
                oldest = next(iter(self._sizes))
            self._forget(oldest)

    def _forget(self, sha256: bytes, *, gone: bool = False) -> None:
        """Drop an image; with `gone` only if its file does not exist (it may have been stored again)."""
        with self._files:
            if gone and self._path(sha256).exists():
                return
            with self._lock:
                self._bytes -= self._sizes.pop(sha256, 0)
            self._path(sha256).unlink(missing_ok=True)
