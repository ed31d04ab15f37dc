"""Helm's own engine renders every profile to objects that Kubernetes accepts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CHART, KUBERNETES, PROFILES, SCHEMAS, profile, profile_objects, render, render_by_cli
from running import ROOT

GOLDEN = ROOT / "tests/golden/chart"


def test_helm_finds_nothing_wrong() -> None:
    helm = pytest.importorskip("helm_python")
    found = helm.lint(str(CHART))
    assert not found["errors"]
    assert [m["error"] for m in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_renders_to_what_it_rendered_to(name: str) -> None:
    """SIGHTLINE_GOLDEN=1 rewrites the files: read the difference before you commit it."""
    text = yaml.safe_dump_all(map(_without_plain_files, profile_objects(name)), sort_keys=True, width=120)
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("SIGHTLINE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert golden.read_text(encoding="utf-8") == text


def _without_plain_files(item: dict[str, Any]) -> dict[str, Any]:
    """The object with only the names of rules and dashboards, whose files have their own tests."""
    if item["kind"] == "PrometheusRule":
        return item | {"spec": {"groups": [group["name"] for group in item["spec"]["groups"]]}}
    if item["metadata"]["name"].endswith("-dashboard"):
        return item | {"data": sorted(item["data"])}
    return item


@pytest.mark.parametrize("name", PROFILES)
def test_the_command_line_renders_the_same(name: str) -> None:
    def keyed(objects: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
        for item in objects:  # a block of text at a document's end has its last newline from one engine only
            item.update({"data": {key: text.rstrip() for key, text in item["data"].items()}} if "data" in item else {})
        return {(item["kind"], item["metadata"]["name"]): item for item in objects}

    assert keyed(render_by_cli(profile(name))) == keyed(render(profile(name)))


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", PROFILES)
def test_kubernetes_takes_every_object(name: str, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    for item in profile_objects(name):
        own = SCHEMAS / f"{item['kind']}.json"
        if own.exists():
            jsonschema.validate(item, json.loads(own.read_text(encoding="utf-8")))
        else:
            validate.validate(item, version, strict=True)


def test_the_default_values_render() -> None:
    kinds = {item["kind"] for item in render({})}
    assert {"Deployment", "StatefulSet", "Service", "ConfigMap", "NetworkPolicy"} <= kinds


def test_every_value_is_in_the_schema_and_every_schema_key_has_a_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        return schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node

    def compare(node: dict[str, Any], value: Any, path: str) -> None:
        node = resolve(node)
        for key in node.get("properties", {}):
            assert key in value, f"{path}.{key} is in the schema, but has no default"
        for key, child in value.items() if isinstance(value, dict) else ():
            if "properties" in node:
                assert key in node["properties"], f"{path}.{key} has a default, but is not in the schema"
                compare(node["properties"][key], child, f"{path}.{key}")

    compare(schema, values, "")


def closed(node: Any, path: str = "") -> list[str]:
    """Objects of a schema that let unknown keys pass."""
    found = []
    if isinstance(node, dict):
        if "properties" in node and node.get("additionalProperties") is not False:
            found.append(path)
        for key, child in node.items():
            found += closed(child, f"{path}/{key}")
    return found


def test_the_schema_is_closed() -> None:
    assert closed(json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))) == []


TGI = {"image": {"repository": "tgi", "tag": "1"}}


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ({"scorerr": {}}, "scorerr"),
        ({"scorer": {"replicas": "two"}}, "/scorer/replicas"),
        ({"scorer": {"triton": {"mode": "inproc"}}}, "/scorer/triton/mode"),
        ({"scorer": {"image": {"tag": "latest"}}}, "/scorer/image/tag"),
        ({"scorer": {"image": {"digest": "sha256:12"}}}, "/scorer/image/digest"),
        ({"scorer": {"gpu": {"count": -1}}}, "/scorer/gpu/count"),
        ({"scorer": {"resources": {"limit": {}}}}, "limit"),
        ({"sampler": {"engine": {"kind": "sglang"}}}, "/sampler/engine/kind"),
        ({"sampler": {"pdb": {"maxUnavailable": -1}}}, "/sampler/pdb/maxUnavailable"),
        ({"trainer": {"update": {"kind": "cronjob"}}}, "/trainer/update/kind"),
        ({"tls": {"mode": "on"}}, "/tls/mode"),
        ({"models": {"clip": {"source": "ViT-B-32"}}}, "/models/clip/source"),
        ({"ports": {"grpc": 80}}, "/ports/grpc"),
        ({"scorer": {"extraEnv": {"A": {"value": "x"}}}}, "/scorer/extraEnv/A"),
        ({"networkPolicy": {"callers": {"triton": []}}}, "triton"),
        ({"networkPolicy": {"egress": {"scorer": [{"port": 443}]}}}, "/networkPolicy/egress/scorer/0"),
        ({"scorer": {"podLabels": {"app.kubernetes.io/component": "x"}}}, "app.kubernetes.io/component"),
        # The templates check what no schema can express.
        ({"scorer": {"models": {"a": {"model": "clip"}}}}, "models.clip is not defined"),
        ({"scorer": {"triton": {"mode": "external"}}}, "scorer.triton.address is required"),
        ({"sampler": {"engine": {"kind": "vllm", "deploy": False}}}, "sampler.engine.url is required"),
        ({"sampler": {"engine": {"urls": ["vllm:8000"]}}}, "/sampler/engine/urls/0"),
        (
            {"sampler": {"engine": {"kind": "tgi", "server": {**TGI, "replicas": 2}}}},
            "sampler.engine.server.replicas must be 1 with",
        ),
        (
            {"sampler": {"engine": {"kind": "tgi", "server": {**TGI, "sleep": True}}}},
            "sampler.engine.server.sleep works only with",
        ),
        (
            {"sampler": {"engine": {"kind": "tgi", "deploy": False, "urls": ["http://a:1"]}}},
            "sampler.engine.urls works only with sampler.engine.kind=vllm",
        ),
        ({"trainer": {"update": {"kind": "job"}}}, "trainer.runs.existingClaim is required"),
        ({"scorer": {"autoscaling": {"kind": "keda"}}}, "scorer.autoscaling.prometheus is required"),
        ({"scorer": {"autoscaling": {"kind": "hpa", "minReplicas": 0}}}, "scorer.autoscaling.minReplicas must be 1"),
        ({"scorer": {"autoscaling": {"minReplicas": 9}}}, "scorer.autoscaling.maxReplicas is less"),
        ({"scorer": {"defaultModel": "b"}}, "scorer.defaultModel is b, which is not in scorer.models"),
        ({"scorer": {"drainSeconds": 60}}, "scorer.terminationGracePeriodSeconds must exceed"),
        ({"sampler": {"engine": {"kind": "vllm"}}}, "sampler.engine.server.image is incomplete: set its repository"),
        ({"sampler": {"engine": {"model": "a"}}, "models": {"a": {}}}, "models.a has no weights: set its imageVolume"),
        (
            {
                "models": {"a": {"source": "hf://a/b"}},
                "trainer": {"model": "a", "update": {"kind": "job"}, "runs": {"existingClaim": "runs"}},
            },
            "models.a.existingClaim is required besides its source",
        ),
        (
            {
                "policies": {"create": False},
                "sampler": {"engine": {"kind": "vllm", "server": {"image": {"repository": "v", "tag": "1"}}}},
            },
            "policies.existingClaim is required",
        ),
        ({"tls": {"mode": "server"}}, "tls.certManager.issuerRef.name is required with tls.mode=server"),
        (
            {"auth": {"existingSecret": "t"}, "tests": {"enabled": False}},
            "tls.mode must be server or mutual with auth",
        ),
        ({"auth": {"existingSecret": "t"}}, "tests.token.existingSecret is required with auth"),
        (
            {
                "auth": {"existingSecret": "t"},
                "tests": {"token": {"existingSecret": "t"}},
                "tls": {"mode": "server", "certManager": {"issuerRef": {"name": "ca"}}},
            },
            "trainer.token.existingSecret is required with auth",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(values: dict[str, Any], seen: str) -> None:
    with pytest.raises(Exception, match=re.escape(seen)):
        render(values)


def test_the_dockerfiles_are_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    files = [*ROOT.glob("services/*/Dockerfile*")]
    assert len(files) == 4
    found = subprocess.run([str(hadolint), *map(str, files)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
