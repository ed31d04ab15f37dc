"""Charts: the chart rendered by the real Helm engine."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import ROOT

CHART = ROOT / "helm/sightline"
PROFILES = sorted(path.stem for path in (CHART / "profiles").glob("*.yaml"))
KUBERNETES = ("1.30.0", "1.37.0")  # the oldest that the chart supports, and the newest with available schemas
SCHEMAS = Path(__file__).parent / "chart_schemas"  # of kinds that Kubernetes itself does not define

Object = dict[str, Any]


def profile(name: str) -> Object:
    """The values of a profile."""
    values: Object = yaml.safe_load((CHART / f"profiles/{name}.yaml").read_text(encoding="utf-8"))
    return values


def render(values: Object, *, name: str = "demo", namespace: str = "align") -> list[Object]:
    """The objects that the chart renders from these values, in a stable order.

    Raises:
        Exception: the values are refused; the text names the path.
    """
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk, the Helm engine, is not installed")
    files = helm.Chart.load(str(CHART)).render(values, name=name, namespace=namespace)
    return [
        item for path in sorted(files) if path.endswith(".yaml") for item in yaml.safe_load_all(files[path]) if item
    ]


def notes(values: Object) -> str:
    """The notes that an operator sees after an installation."""
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk, the Helm engine, is not installed")
    files = helm.Chart.load(str(CHART)).render(values, name="demo", namespace="align")
    (text,) = (str(text) for path, text in files.items() if path.endswith("NOTES.txt"))
    return text


def render_by_cli(values: Object, *, name: str = "demo", namespace: str = "align") -> list[Object]:
    """The same, rendered by a `helm` on PATH; skips if there is none."""
    if (helm := shutil.which("helm")) is None:
        pytest.skip("no `helm` on PATH")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        command = [helm, "template", name, str(CHART), "-n", namespace, "-f", file.name, "--kube-version", "1.36.0"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [item for item in yaml.safe_load_all(text) if item]


@functools.cache
def profile_objects(name: str) -> list[Object]:
    """The objects of a profile, rendered once."""
    return render(profile(name))


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The object of that kind whose name has this ending.

    Raises:
        AssertionError: there is none, or more than one.
    """
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(name)]
    assert len(found) == 1, (kind, name, [item["metadata"]["name"] for item in objects if item["kind"] == kind])
    return found[0]


def pods(objects: list[Object]) -> dict[str, Object]:
    """Every pod template: "Kind/name" -> its metadata and spec. Bare pods and the trainer's Job template too."""
    found: dict[str, Object] = {}
    for item in objects:
        key = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] in ("Deployment", "StatefulSet"):
            found[key] = item["spec"]["template"]
        elif item["kind"] == "Pod":
            found[key] = item
        elif item["kind"] == "ConfigMap" and "job.yaml" in item.get("data", {}):
            job = yaml.safe_load(item["data"]["job.yaml"])
            if job["kind"] == "Job":
                found[f"Job/{item['metadata']['name']}"] = job["spec"]["template"]
    return found


def containers(pod: Object) -> list[Object]:
    """All containers of a pod, the init containers too."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def settings(objects: list[Object], component: str) -> Object:
    """The settings file that the chart renders for a service."""
    text = find(objects, "ConfigMap", f"-{component}")["data"]["settings.yaml"]
    parsed: Object = yaml.safe_load(text)
    return parsed
