"""Fetches the nvidia-pytriton wheel and unpacks it where every service finds it.

The installer of this environment (pip, else uv) fetches it from the index that it is configured for, and refuses a file
of another SHA-256. It is written under a temporary name and renamed, so an existing installation is complete.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sightline.errors import AlreadyExists, PreconditionFailed, Unavailable

from sightline_scorer.triton.installation import Installation, TritonNotInstalled, check_that_it_runs, own_places

PACKAGE = "nvidia-pytriton"
VERSION = "0.7.0"
SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
"""SHA-256 of nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl, the only file of that version."""
_GLIBC = (2, 35)


def install(home: Path | None = None, wheel: Path | None = None) -> tuple[Installation, bool]:
    """The installation in `home`, fetched unless it exists; and whether it was fetched.

    Args:
        home: where to unpack it; default: in this Python environment, or the user's data directory.
        wheel: the wheel's file, for a machine without a package index.

    Raises:
        PreconditionFailed: TRITON_UNSUPPORTED: the wheel does not run on this machine.
        AlreadyExists: TRITON_HOME_TAKEN: something else is in `home`.
        Unavailable: TRITON_NOT_FETCHED: the installer could not fetch it, or got another file.
        TritonNotInstalled: it exists but does not run with this Python.
    """
    _check_machine()
    target = (home or _own_place()).expanduser().resolve()
    found = Installation(target)
    if found.binary.is_file():
        _check(found)
        return found, False
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AlreadyExists(
            f"{target} contains something other than Triton's wheel: name another --home", reason="TRITON_HOME_TAKEN"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _fetch(aside, wheel)
        _check(Installation(aside))
        aside.chmod(0o755)
        if target.exists():
            target.rmdir()  # it is empty
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found, True


def _check_machine() -> None:
    libc, version = platform.libc_ver()
    known = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if sys.platform == "linux" and platform.machine() == "x86_64" and libc == "glibc" and known >= _GLIBC:
        return
    here = f"{platform.system()} on {platform.machine()}" + (f" with {libc} {version}" if libc else "")
    raise PreconditionFailed(
        f"Triton's wheel is for Linux on x86_64 with glibc {_GLIBC[0]}.{_GLIBC[1]} or newer; this is {here}. Run the "
        "same towers without it: --set triton.mode=worker, or SIGHTLINE_SCORER__TRITON__MODE=worker for every command",
        reason="TRITON_UNSUPPORTED",
    )


def _check(found: Installation) -> None:
    if not found.stub.is_file():
        raise TritonNotInstalled(
            f"{PACKAGE} {VERSION} holds no Python backend stub for Python {sys.version_info.major}."
            f"{sys.version_info.minor}: use triton.mode=worker, or another Python"
        )
    check_that_it_runs(found)


def _own_place() -> Path:
    """The first writable one of our locations."""
    places = own_places()
    for place in places:
        above = next(parent for parent in place.parents if parent.exists())
        if os.access(above, os.W_OK):
            return place
    return places[-1]


def _fetch(target: Path, wheel: Path | None) -> None:
    if wheel is not None and not wheel.is_file():
        raise FileNotFoundError(2, os.strerror(2), str(wheel))
    named = f"{PACKAGE}=={VERSION}" if wheel is None else f"{PACKAGE} @ {wheel.resolve().as_uri()}"
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{named} --hash=sha256:{SHA256}\n")
        options = ["--no-deps", "--require-hashes", "--target", str(target), "--requirement", str(wanted)]
        done = subprocess.run([*_installer(), *options], capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise Unavailable(
            f"{PACKAGE} {VERSION} could not be fetched: {_last_words(done.stderr)}", reason="TRITON_NOT_FETCHED"
        )


def _installer() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-warn-conflicts", "--only-binary", ":all:"),
        ]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        raise PreconditionFailed(
            f"this Python ({sys.executable}) has neither pip nor uv to fetch Triton's wheel with: install one of them",
            reason="NO_INSTALLER",
        )
    return [uv, "pip", "install", "--quiet", "--python", sys.executable]


def _last_words(text: str) -> str:
    """Its first error and what follows, since uv says the cause after it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = (place for place, line in enumerate(lines) if line.startswith(("ERROR", "error", "×")))
    said = lines[next(errors, -1) :] or ["it said nothing"]
    return " ".join(said)[:600]
