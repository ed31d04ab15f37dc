"""`sightline triton install`: the wheel is checked, and every service finds it."""

import hashlib
import importlib.util
import json
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sightline.errors import AlreadyExists, PreconditionFailed, Unavailable
from sightline_cli.main import app
from sightline_scorer.triton import installer
from sightline_scorer.triton.installation import Installation, TritonNotInstalled, find, own_places
from typer.testing import CliRunner

STUB = f"pytriton/tritonserver/python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that replaces NVIDIA's: it has a stub that runs, but no server."""
    file = tmp_path / "nvidia_pytriton-0.7.0-py3-none-any.whl"
    info = "nvidia_pytriton-0.7.0.dist-info"
    with zipfile.ZipFile(file, "w") as made:
        for name, text in {
            "pytriton/tritonserver/bin/tritonserver": "#!/bin/sh\n",
            f"{STUB}/triton_python_backend_stub": "#!/bin/sh\nexit 1\n",
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: nvidia-pytriton\nVersion: 0.7.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100755 << 16
            made.writestr(entry, text)
    monkeypatch.setattr(installer, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def test_it_is_installed_whole_and_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGHTLINE_TRITON_HOME", raising=False)
    home = tmp_path / "somewhere/triton"
    done = CliRunner().invoke(app, ["triton", "install", "--home", str(home), "--wheel", str(wheel), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["home"], told["fetched"], told["sha256"]) == (str(home), True, installer.SHA256)
    assert find(home).home == home
    assert [path.name for path in home.parent.iterdir()] == ["triton"], "nothing is left beside it"
    _, fetched = installer.install(home, tmp_path / "no such wheel")
    assert not fetched


@pytest.mark.parametrize("by", ["pip", "uv"])
def test_another_file_is_refused(by: str, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "SHA256", "0" * 64)
    if by == "uv":  # an environment without pip, as `uv venv` makes it
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"(?i)hash"):
        installer.install(tmp_path / "home", wheel)
    assert not (tmp_path / "home").exists()


def test_what_is_there_is_not_overwritten(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(AlreadyExists, match="something other than Triton's wheel"):
        installer.install(tmp_path / "mine", wheel)


@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [("darwin", "arm64", ("", "")), ("linux", "aarch64", ("glibc", "2.39")), ("linux", "x86_64", ("", ""))],
)
def test_other_machines_are_told_of_the_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, machine: str, libc: tuple[str, str]
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(PreconditionFailed, match=r"triton\.mode=worker"):
        installer.install(tmp_path)


def test_every_service_finds_it_where_it_is_put(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SIGHTLINE_TRITON_HOME", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "venv").mkdir()
    assert installer._own_place() == tmp_path / "venv/share/sightline/triton"
    monkeypatch.setattr("sightline_scorer.triton.installation._default_places", lambda: iter(own_places()))
    with pytest.raises(TritonNotInstalled, match="sightline triton install"):
        find()
    for place in own_places():
        found = Installation(place)
        for path, text in ((found.binary, ""), (found.stub, "#!/bin/sh\nexit 1\n")):
            path.parent.mkdir(parents=True)
            path.write_text(text)
            path.chmod(0o755)
        assert find().home in [each.resolve() for each in own_places()]


def test_the_command_names_no_index() -> None:
    text = Path(installer.__file__).read_text()
    assert "http" not in text
    assert "--index" not in text
    assert subprocess.run([*installer._installer(), "--help"], capture_output=True).returncode == 0
