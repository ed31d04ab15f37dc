"""Uploaded images, named by the SHA-256 of their bytes; the least recently used leave memory first, for a directory or
for good."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable

from sightline.errors import DataCorrupted, InvalidInput, NotFound, SightlineError

from sightline_chassis.images import check_size
from sightline_chassis.sections import ImageLimits, ImageStoreSettings
from sightline_chassis.spill import Spill

DIGEST_BYTES = 32


def check_digest(sha256: bytes) -> None:
    """Refuse what is no SHA-256. Raises InvalidInput."""
    if len(sha256) != DIGEST_BYTES:
        raise InvalidInput(
            f"an image's sha256 has {DIGEST_BYTES} bytes, this one {len(sha256)}: send the digest itself, not its "
            "hexadecimal text",
            reason="DIGEST_INVALID",
        )


class ImageStore:
    """A bounded store. Use it from one thread.

    An image is stored once, and is there for the teams that sent it: to any other it is as if it were not, unless
    `settings.shared`. Callers without a team ("") are one team. What a directory kept over a restart belongs to them.

    An `OrderedDict`, not cachetools: two bounds hold at once, and what leaves goes to the directory.
    """

    def __init__(self, settings: ImageStoreSettings, *, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """`on_bytes` is told the bytes in memory whenever they change."""
        self._settings, self._on_bytes = settings, on_bytes
        self._images: OrderedDict[bytes, bytes] = OrderedDict()
        self._owners: dict[bytes, set[str]] = {}
        self._bytes = 0
        self._spill = Spill(settings.spill, settings.spill_max_bytes) if settings.spill is not None else None

    def __len__(self) -> int:
        return len(self._images)

    def get(self, sha256: bytes, team: str = "") -> Callable[[], bytes]:
        """What gives the image's bytes; where they are on disk it waits for it and may raise.

        Raises NotFound where the team never uploaded the image or it has left.
        """
        check_digest(sha256)
        if not self._is_of(sha256, team):
            raise _not_found(sha256)
        content = self._images.get(sha256)
        if content is not None:
            self._images.move_to_end(sha256)
            return lambda: content
        if self._spill is None or sha256 not in self._spill:
            raise _not_found(sha256)
        spill = self._spill

        def read() -> bytes:
            try:
                return spill.read(sha256)
            except FileNotFoundError:
                raise _not_found(sha256) from None

        return read

    def close(self) -> None:
        """Finish what is being written to disk."""
        if self._spill is not None:
            self._spill.close()

    def missing(self, digests: Iterable[bytes], team: str = "") -> list[bytes]:
        """Those that are not stored for the team, in order; the others count as just used."""
        absent = []
        for sha256 in digests:
            check_digest(sha256)
            if not self._is_of(sha256, team):
                absent.append(sha256)
            elif sha256 in self._images:
                self._images.move_to_end(sha256)
            elif self._spill is None or sha256 not in self._spill:
                absent.append(sha256)
        return absent

    def put(self, sha256: bytes, content: bytes, team: str = "") -> None:
        """Store an image. Raises DataCorrupted where its bytes have another digest, InvalidInput where too large."""
        if len(content) > self._settings.max_bytes or self._settings.max_images == 0:
            raise InvalidInput(
                f"the image holds {len(content)} bytes and the whole store {self._settings.max_bytes}: send it as "
                "image.content, or raise image_store.max_bytes",
                reason="IMAGE_STORE_TOO_SMALL",
            )
        found = hashlib.sha256(content).digest()
        if found != sha256:
            raise DataCorrupted(
                f"the uploaded bytes have SHA-256 {found.hex()}, not {sha256.hex()} as stated: send it again",
                reason="DIGEST_MISMATCH",
            )
        self._store(sha256, content, team)

    def keep(self, content: bytes, team: str = "") -> bytes:
        """Store an image where it fits; its SHA-256."""
        sha256 = hashlib.sha256(content).digest()
        if len(content) <= self._settings.max_bytes and self._settings.max_images:
            self._store(sha256, content, team)
        return sha256

    def _is_of(self, sha256: bytes, team: str) -> bool:
        return self._settings.shared or team in self._owners.get(sha256, {""})

    def _store(self, sha256: bytes, content: bytes, team: str) -> None:
        self._owners.setdefault(sha256, set()).add(team)
        old = self._images.pop(sha256, None)
        self._bytes += len(content) - (len(old) if old is not None else 0)
        self._images[sha256] = content
        while self._bytes > self._settings.max_bytes or len(self._images) > self._settings.max_images:
            name, gone = self._images.popitem(last=False)
            self._bytes -= len(gone)
            if self._spill is None:
                del self._owners[name]
            else:
                self._spill.put(name, gone)
                if len(self._owners) > 2 * (len(self._images) + len(self._spill)):  # of what left the directory too
                    here = self._images.keys() | self._spill.names()
                    self._owners = {each: teams for each, teams in self._owners.items() if each in here}
        self._on_bytes(self._bytes)


def _not_found(sha256: bytes) -> NotFound:
    return NotFound(
        f"image {sha256.hex()} is not stored here (never sent, or dropped for others): send image.content or, where "
        "the service takes uploads, upload it by UploadImages",
        reason="IMAGE_NOT_FOUND",
        metadata={"sha256": sha256.hex()},
    )


class Upload:
    """Puts one image together from its pieces, within the byte limit."""

    def __init__(self, sha256: bytes, limits: ImageLimits) -> None:
        self.sha256 = sha256
        self._limits = limits
        self._pieces: list[bytes] = []
        self._bytes = 0
        self.error: SightlineError | None = None
        """Why the image is refused; its further pieces are dropped as they come."""
        try:
            check_digest(sha256)
        except InvalidInput as error:
            self.error = error

    def add(self, chunk: bytes) -> None:
        """Take the next piece."""
        self._bytes += len(chunk)
        if self.error is None and self._bytes > self._limits.max_image_bytes:
            try:
                check_size(self._bytes, self._limits)
            except InvalidInput as error:
                self.error = error
                self._pieces.clear()
        if self.error is None:
            self._pieces.append(chunk)

    def finish(self, store: ImageStore, team: str = "") -> None:
        """Store the whole image, or note why not."""
        if self.error is not None:
            return
        content = b"".join(self._pieces)
        try:
            check_size(len(content), self._limits)
            store.put(self.sha256, content, team)
        except SightlineError as error:
            self.error = error
