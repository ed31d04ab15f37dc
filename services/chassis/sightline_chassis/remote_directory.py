"""A directory at any URL that fsspec knows: lists its files and fetches each completely, within a bound."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

from sightline.errors import DataCorrupted, InvalidInput, NotFound, PreconditionFailed, SightlineError, Unavailable

_CHUNK = 8 << 20


class RemoteDirectory:
    """Blocks; use it outside an event loop.

    Args:
        url: the directory's, such as `s3://models/llava` (needs s3fs) or `hf://ORG/REPO@REVISION`.

    Raises:
        InvalidInput: fsspec does not know the scheme, or a package for it is missing.
        Unavailable: the storage fails, here and in all methods.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._files, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise InvalidInput(
                f"{url} cannot be opened: {error}; check the URL, and that the package for its scheme is installed",
                reason="BAD_URI",
            ) from error
        except Exception as error:  # every file system has its own errors
            raise self._unavailable(error) from error
        self._root = str(root).rstrip("/")

    def sizes(self) -> dict[str, int | None]:
        """All files below it, by relative path, with their bytes if the storage knows them.

        Raises:
            InvalidInput: a name points outside the directory.
        """
        try:
            found = self._files.find(self._root, detail=True)
        except Exception as error:
            raise self._unavailable(error) from error
        return {self._name(path): facts["size"] for path, facts in found.items()}

    def fetch(self, name: str, to: Path, *, most_bytes: int, sha256: str | None = None) -> int:
        """Copy one file; returns its bytes. It is written under a temporary name, synced and renamed: a file that
        exists is complete.

        Raises:
            NotFound: it does not exist.
            PreconditionFailed: it holds more than `most_bytes`; the rest is not fetched.
            DataCorrupted: it has another digest; the copy is deleted.
        """
        to.parent.mkdir(parents=True, exist_ok=True)
        aside, digest, size = to.with_name(f".{to.name}.part"), hashlib.sha256(), 0
        try:
            with self._files.open(f"{self._root}/{name}", "rb") as source, aside.open("wb") as out:
                while block := source.read(_CHUNK):
                    size += len(block)
                    if size > most_bytes:
                        raise PreconditionFailed(
                            f"{self.url}/{name} is larger than the {most_bytes} bytes that may still be fetched: "
                            "raise the limit",
                            reason="FILE_TOO_LARGE",
                        )
                    digest.update(block)
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
            if sha256 is not None and digest.hexdigest() != sha256:
                raise DataCorrupted(
                    f"{self.url}/{name} has SHA-256 {digest.hexdigest()}, not {sha256}", reason="DIGEST_MISMATCH"
                )
            aside.replace(to)
        except SightlineError:
            raise
        except FileNotFoundError:
            raise NotFound(f"{self.url}/{name} does not exist: check the URL", reason="FILE_NOT_FOUND") from None
        except Exception as error:
            raise self._unavailable(error) from error
        finally:
            aside.unlink(missing_ok=True)
        return size

    def put(self, name: str, content: bytes) -> None:
        """Write a file into the directory."""
        try:
            with self._files.open(f"{self._root}/{name}", "wb") as out:
                out.write(content)
        except Exception as error:
            raise self._unavailable(error) from error

    def _name(self, path: str) -> str:
        name = PurePosixPath(path).relative_to(PurePosixPath(self._root))
        if ".." in name.parts or name.is_absolute():
            raise InvalidInput(f"{path} is outside {self._root}", reason="BAD_URI")
        return str(name)

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(f"{self.url} cannot be reached: {error}", reason="STORAGE_UNAVAILABLE")
