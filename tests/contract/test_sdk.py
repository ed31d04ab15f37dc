"""The SDK is light: in a venv with only the base package, importing the clients loads nothing heavy."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from sightline import *
import sightline.integrations.openrlhf, sightline.integrations.trl, sightline.integrations.verl
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
# Requirements of the `sightline` command; the clients import none of them.
COMMAND = {
    "typer", "rich", "annotated-doc", "annotated-types", "click", "markdown-it-py", "mdurl", "pydantic",
    "pydantic-core", "pydantic_core", "pygments", "shellingham", "typing-inspection",
}  # fmt: skip

HEAVY = {
    "torch", "torchvision", "transformers", "tritonclient", "PIL", "open_clip", "pydantic", "yaml", "prometheus_client",
    "datasets", "pyarrow", "trl", "peft", "typer", "rich", "pandas",
}  # fmt: skip


def test_public_names() -> None:
    import sightline
    import sightline.runs
    import sightline.sampler
    import sightline.scorer

    for package in (sightline, sightline.runs, sightline.sampler, sightline.scorer):
        assert sorted(package.__all__) == sorted(set(package.__all__))
        assert all(getattr(package, name) is not None for name in package.__all__)
    clients = {f"{kind}{service}Client" for kind in ("", "Async") for service in ("Scorer", "Sampler", "Run")}
    assert clients | {"Patience", "Tls", "Token"} <= set(sightline.__all__)


def test_the_clients_have_the_same_names_and_defaults() -> None:
    import sightline

    shared = {"target", "timeout", "patience", "tls", "token"}
    forms = set()
    for service in ("Scorer", "Sampler", "Run"):
        plain, twin = (getattr(sightline, f"{kind}{service}Client") for kind in ("", "Async"))
        parameters = inspect.signature(plain).parameters
        forms.add(tuple((name, parameters[name].default) for name in sorted(shared)))
        assert shared <= parameters.keys() <= shared | {"swap_timeout", "run_id"}
        assert inspect.signature(twin).parameters == parameters
        for name in (name for name in dir(plain) if not name.startswith("_")):
            of_plain, of_twin = getattr(plain, name), getattr(twin, name)
            assert inspect.signature(of_plain).parameters == inspect.signature(of_twin).parameters, name
    assert len(forms) == 1


def test_clients_load_nothing_heavy_where_everything_is_installed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert HEAVY.isdisjoint(json.loads(done.stdout))


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_clients_import_in_a_fresh_venv(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", ROOT / "constraints.txt", ROOT], check=True)
    done = subprocess.run([venv / "bin/python", "-c", SCRIPT], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert HEAVY.isdisjoint(json.loads(done.stdout))
    listed = subprocess.run(
        [venv / "bin/python", "-m", "pip", "list", "--format=json"], check=True, capture_output=True
    )
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert names <= {
        "sightline", "grpcio", "protobuf", "googleapis-common-protos", "numpy", "typing_extensions",
        "typing-extensions", "pip", "setuptools", *COMMAND,
    }  # fmt: skip
    sightline = venv / "bin/sightline"
    for command, says in (("--help", "doctor"), ("version", "0.2"), ("score --help", "scorer")):
        told = subprocess.run([sightline, *command.split()], check=True, capture_output=True, text=True, cwd=tmp_path)
        assert says in told.stdout
    more = subprocess.run([sightline, "demo"], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (more.returncode, more.stdout, "sightline[playground]" in more.stderr) == (2, "", True)
