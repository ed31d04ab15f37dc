"""Uploaded images, named by the SHA-256 of their bytes; the least recently used leave memory first, to a directory or
for good."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable

from sightline.errors import DataCorrupted, InvalidInput, NotFound, Overloaded, SightlineError

from sightline_chassis import metrics
from sightline_chassis.image_owners import ImageOwners
from sightline_chassis.images import check_size
from sightline_chassis.sections import ImageLimits, ImageStoreSettings
from sightline_chassis.spill import Spill
from sightline_chassis.teams import ANONYMOUS

DIGEST_BYTES = 32


def check_digest(sha256: bytes) -> None:
    """Raise InvalidInput unless it is an SHA-256."""
    if len(sha256) != DIGEST_BYTES:
        raise InvalidInput(
            f"an image's sha256 has {DIGEST_BYTES} bytes, this one {len(sha256)}: send the digest itself, not its "
            "hexadecimal text",
            reason="DIGEST_INVALID",
        )


class ImageStore:
    """A bounded store. Use it from one thread.

    An image is stored once, and only the teams that sent it can see it, unless `settings.shared`. Callers without a
    team ("") count as one team. Images that a directory kept over a restart belong to them.

    A team with a bound (`TeamLimits.stored_image_bytes`) that stores more loses its own least recently used ones first.

    An `OrderedDict`, not cachetools: two bounds apply at once, and dropped images go to the directory.
    """

    def __init__(self, settings: ImageStoreSettings, *, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """`on_bytes` is called with the bytes in memory whenever they change."""
        self._settings, self._on_bytes = settings, on_bytes
        self._images: OrderedDict[bytes, bytes] = OrderedDict()
        self._owners = ImageOwners(_show)
        self._bytes = 0
        self._spill = Spill(settings.spill, settings.spill_max_bytes) if settings.spill is not None else None

    def __len__(self) -> int:
        return len(self._images)

    def get(self, sha256: bytes, team: str = "") -> Callable[[], bytes]:
        """Returns a function that gives the image's bytes; if they are on disk it waits for the disk and may raise.

        Raises NotFound if the team never uploaded the image, or if it was dropped.
        """
        check_digest(sha256)
        if not self._is_of(sha256, team):
            raise _not_found(sha256)
        self._owners.used(team, sha256)
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
        """Finish the pending writes to disk."""
        if self._spill is not None:
            self._spill.close()

    def missing(self, digests: Iterable[bytes], team: str = "") -> list[bytes]:
        """The images that are not stored for the team, in order; the others count as just used."""
        absent = []
        for sha256 in digests:
            check_digest(sha256)
            self._owners.used(team, sha256)
            if not self._is_of(sha256, team):
                absent.append(sha256)
            elif sha256 in self._images:
                self._images.move_to_end(sha256)
            elif self._spill is None or sha256 not in self._spill:
                absent.append(sha256)
        return absent

    def put(self, sha256: bytes, content: bytes, team: str = "", most: int | None = None) -> None:
        """Store an image.

        Args:
            sha256: the digest that its bytes must have.
            content: its bytes.
            team: its owner.
            most: maximum bytes that the team may store; None is unlimited.

        Raises:
            DataCorrupted: its bytes have another digest.
            InvalidInput: it is larger than the whole store.
            Overloaded: it is larger than the team's whole allowance.
        """
        if len(content) > self._settings.max_bytes or self._settings.max_images == 0:
            raise InvalidInput(
                f"the image holds {len(content)} bytes and the whole store {self._settings.max_bytes}: send it as "
                "image.content, or raise image_store.max_bytes",
                reason="IMAGE_STORE_TOO_SMALL",
            )
        if most is not None and len(content) > most:
            metrics.refused_by_team_limit(team or ANONYMOUS, "stored_image_bytes")
            raise Overloaded(
                f"the image holds {len(content)} bytes and team {team or ANONYMOUS} may have {most} stored (limit: "
                f"stored_image_bytes = {most}): send it as image.content, or have the limit raised in the tokens file",
                reason="TEAM_STORED_IMAGE_BYTES",
                metadata={"team": team or ANONYMOUS, "limit": str(most)},
            )
        found = hashlib.sha256(content).digest()
        if found != sha256:
            raise DataCorrupted(
                f"the uploaded bytes have SHA-256 {found.hex()}, not {sha256.hex()} as stated: send it again",
                reason="DIGEST_MISMATCH",
            )
        self._store(sha256, content, team, most)

    def keep(self, content: bytes, team: str = "", most: int | None = None) -> bytes:
        """Store an image if it fits; returns its SHA-256."""
        sha256 = hashlib.sha256(content).digest()
        fits = len(content) <= self._settings.max_bytes and (most is None or len(content) <= most)
        if fits and self._settings.max_images:
            self._store(sha256, content, team, most)
        return sha256

    def _is_of(self, sha256: bytes, team: str) -> bool:
        return self._settings.shared or self._owners.owns(team, sha256)

    def _store(self, sha256: bytes, content: bytes, team: str, most: int | None) -> None:
        self._owners.add(team, sha256, len(content))
        old = self._images.pop(sha256, None)
        self._bytes += len(content) - (len(old) if old is not None else 0)
        self._images[sha256] = content
        while self._bytes > self._settings.max_bytes or len(self._images) > self._settings.max_images:
            name, gone = self._images.popitem(last=False)
            self._bytes -= len(gone)
            if self._spill is None:
                self._owners.gone(name)
            else:
                self._spill.put(name, gone)
                if len(self._owners) > 2 * (len(self._images) + len(self._spill)):  # also of dropped images
                    here = self._images.keys() | self._spill.names()
                    for each in [each for each in self._owners if each not in here]:
                        self._owners.gone(each)
        for name in self._owners.over(team, most):
            self._bytes -= len(self._images.pop(name, b""))
            if self._spill is not None:
                self._spill.forget(name)
        self._on_bytes(self._bytes)


def _show(team: str, held: int) -> None:
    metrics.TEAM_STORED.labels(team or ANONYMOUS, "image_bytes").set(held)


def _not_found(sha256: bytes) -> NotFound:
    return NotFound(
        f"image {sha256.hex()} is not stored here (never sent, or evicted): send image.content or, where "
        "the service takes uploads, upload it by UploadImages",
        reason="IMAGE_NOT_FOUND",
        metadata={"sha256": sha256.hex()},
    )


class Upload:
    """Assembles one image from its pieces, within the byte limit."""

    def __init__(self, sha256: bytes, limits: ImageLimits) -> None:
        self.sha256 = sha256
        self._limits = limits
        self._pieces: list[bytes] = []
        self._bytes = 0
        self.error: SightlineError | None = None
        """Why the image is refused; its further pieces are dropped."""
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

    def finish(self, store: ImageStore, team: str = "", most: int | None = None) -> None:
        """Store the complete image, or record why not."""
        if self.error is not None:
            return
        content = b"".join(self._pieces)
        try:
            check_size(len(content), self._limits)
            store.put(self.sha256, content, team, most)
        except SightlineError as error:
            self.error = error
