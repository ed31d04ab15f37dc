"""Finds the `tritonserver` of the nvidia-pytriton wheel and how to start it with this interpreter.

Only the wheel's binaries are used, never its Python layer. `sightline triton install` unpacks it (see installer.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sightline.errors import PreconditionFailed

HOME_VARIABLE = "SIGHTLINE_TRITON_HOME"
INSTALL = "sightline triton install"
_SERVER = Path("pytriton/tritonserver")
_STUB = "triton_python_backend_stub"


class TritonNotInstalled(PreconditionFailed):
    """No usable tritonserver was found; the message says where we looked and how to install it."""

    reason = "TRITON_NOT_INSTALLED"


@dataclass(frozen=True)
class Installation:
    """An unpacked wheel that fits this interpreter."""

    home: Path

    @property
    def binary(self) -> Path:
        """The server itself."""
        return self.home / _SERVER / "bin/tritonserver"

    @property
    def stub(self) -> Path:
        """The Python backend's process for this Python version."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self.home / _SERVER / "python_backend_stubs" / version / _STUB

    def make_backends(self, directory: Path) -> None:
        """Lay out a backend directory with the Python backend and the stub of this interpreter.

        The wheel keeps the stubs separately, and may be read-only, so the files are linked from our own directory.
        """
        python = directory / "python"
        python.mkdir(parents=True, exist_ok=True)
        backend = self.home / _SERVER / "backends/python"
        for file in (backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", self.stub):
            link = python / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file)

    def environment(self) -> dict[str, str]:
        """Environment for the server: this interpreter's libraries, the wheel's, and this venv first on PATH.

        The stub embeds Python and finds its packages by the first `python3` on PATH; it ignores PYTHONPATH.
        """
        libraries = [sysconfig.get_config_var("LIBDIR"), str(self.home / "nvidia_pytriton.libs")]
        if inherited := os.environ.get("LD_LIBRARY_PATH"):
            libraries.append(inherited)
        environment = dict(os.environ)
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment.pop("PYTHONHOME", None)
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait starve other processes
        return environment


def find(home: Path | None = None) -> Installation:
    """The installation to use: `home`, or $SIGHTLINE_TRITON_HOME, or the nearest `.triton`, or the directory of
    `sightline triton install`.

    Raises TritonNotInstalled.
    """
    named = home or (Path(os.environ[HOME_VARIABLE]) if os.environ.get(HOME_VARIABLE) else None)
    places = [named] if named else list(dict.fromkeys(_default_places()))
    for place in places:
        found = Installation(place.expanduser().resolve())
        if not found.binary.is_file():
            continue
        if not found.stub.is_file():
            raise TritonNotInstalled(
                f"{found.home} holds no Python backend stub for Python {sys.version_info.major}."
                f"{sys.version_info.minor}: run the scorer with one of "
                + ", ".join(sorted(path.name for path in found.stub.parents[1].glob("*")))
            )
        check_that_it_runs(found)
        return found
    raise TritonNotInstalled(
        f"no tritonserver in {', '.join(map(str, places))}. Install it with `{INSTALL}` (triton.home or "
        f"${HOME_VARIABLE} name another directory), or use a Triton that runs elsewhere: triton.mode=remote "
        "triton.address=HOST:8001, or run the towers without Triton: triton.mode=worker "
        "(SIGHTLINE_SCORER__TRITON__MODE=worker)"
    )


def check_that_it_runs(found: Installation) -> None:
    """Run the stub once without arguments, which only prints an error. Inside Triton, its failure would be a long
    silence."""
    done = subprocess.run([found.stub], env=found.environment(), capture_output=True, text=True, timeout=60)  # noqa: S603
    if done.returncode not in (0, 1):
        raise TritonNotInstalled(
            f"Triton's Python backend does not run with this Python ({sys.executable}): {done.stderr.strip()}. It "
            "needs a Python built with a shared library, libpython3.X.so, in its library directory"
        )


def _default_places() -> Iterator[Path]:
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for directory in (start, *start.parents):
            yield directory / ".triton"
    yield from own_places()


def own_places() -> list[Path]:
    """Where `sightline triton install` puts it: in this environment, or in the user's data directory."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    return [home / "sightline/triton" for home in (Path(sys.prefix) / "share", data)]
