"""The wheel contains what it needs: recipes, models, protos, chart; the demo runs in an empty directory."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from running import ROOT
from sightline_scorer.triton.installation import find

UV = Path(sys.executable).with_name("uv")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution as `pip install sightline` gets it."""
    out = tmp_path_factory.mktemp("wheel")
    command = [UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*command, "--out-dir", out, ROOT], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with the wheel, and all other packages from this one."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, venv], check=True)
    python = venv / "bin/python"
    subprocess.run([UV, "pip", "install", "--quiet", "--no-deps", "--python", python, wheel], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "below.pth").write_text(sysconfig.get_path("purelib"))  # editable installs there are not followed
    return venv / "bin"


def needed(wheel: Path) -> set[Distribution]:
    """The packages that `pip install` of a wheel without extras installs: its requirements, theirs, and so on."""
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        todo = Parser().parsestr(file.read(metadata).decode()).get_all("Requires-Dist", [])
    found: dict[str, Distribution] = {}
    while todo:
        wanted = Requirement(todo.pop())
        if wanted.name not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found[wanted.name] = distribution(wanted.name)
            todo += found[wanted.name].requires or []
    return set(found.values())


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with only the wheel and its requirements without extras."""
    venv = tmp_path_factory.mktemp("base")
    subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, venv], check=True)
    install = [UV, "pip", "install", "--quiet", "--no-deps", "--python", venv / "bin/python"]
    subprocess.run([*install, wheel], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    for each in needed(wheel):
        parts = {Path(file).parts for file in each.files or []}
        for name in {part[0] for part in parts if part[0] not in ("..", "__pycache__")}:
            below = [part[1] for part in parts if part[0] == name and len(part) > 1]
            source = Path(str(each.locate_file(name)))
            if name == "google":  # several distributions lie in it
                (site / name).mkdir(exist_ok=True)
                for inside in set(below):
                    (site / name / inside).symlink_to(source / inside)
            else:
                (site / name).symlink_to(source)
    return venv / "bin"


def run(installed: Path, directory: Path, *arguments: str) -> str:
    """Output of a command of the installed wheel, run in a directory."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["SIGHTLINE_TRITON_HOME"] = str(find().home)
    done = subprocess.run(
        [installed / "sightline", *arguments], cwd=directory, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_every_file_of_the_checkout(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for inside, beside in {
        "sightline_trainer/recipes": "recipes",
        "sightline_playground/weights": "playground/weights",
        "sightline/protos": "protos",
        "sightline_cli/chart": "helm/sightline",
    }.items():
        tracked = subprocess.run(
            ["git", "-C", ROOT, "ls-files", beside], capture_output=True, text=True, check=True
        ).stdout.split()
        assert tracked
        assert {f"{inside}{file.removeprefix(beside)}" for file in tracked} <= held
    assert "sightline/py.typed" in held


def test_the_base_install_answers_in_an_empty_directory(base: Path, tmp_path: Path) -> None:
    assert "Usage: sightline" in run(base, tmp_path, "--help")
    assert run(base, tmp_path, "version").strip()
    assert "pip install 'sightline[scorer]'" in run(base, tmp_path, "doctor", "--json")
    code = (
        "import importlib.util as i; print([n for n in ('torch', 'PIL', 'yaml', 'httpx', 'fastapi') if i.find_spec(n)])"
    )
    found = subprocess.run([base / "python", "-I", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    refused = subprocess.run([base / "sightline", "demo"], cwd=tmp_path, capture_output=True, text=True)
    assert (refused.returncode, "pip install 'sightline[playground]'" in refused.stderr) == (2, True), refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_recipes_go_by_name_anywhere(installed: Path, tmp_path: Path) -> None:
    assert "clip_dpo" in run(installed, tmp_path, "recipe", "list")
    assert run(installed, tmp_path, "recipe", "copy", "povid", "mine.yaml").strip() == "mine.yaml"
    assert (tmp_path / "mine.yaml").read_bytes() == (ROOT / "recipes/povid.yaml").read_bytes()
    assert "playground:llava" in run(installed, tmp_path, "recipe", "show", "clip_dpo")


@pytest.mark.timeout(600)
def test_the_demo_ends_with_its_table_in_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    out = run(installed, tmp_path, "demo", "--quick")
    assert "CHAIR" in out
    assert (tmp_path / "runs/demo/metrics.json").is_file()
    assert (tmp_path / "runs/demo/report.html").is_file()
