"""Rules, dashboards and the services' metrics, as the tests compare them."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from prometheus_client import REGISTRY
from running import ROOT

FILES = ROOT / "helm/sightline/files"
ALERTS = sorted((FILES / "alerts").glob("*.yaml"))
DASHBOARDS = sorted((FILES / "dashboards").glob("*.json"))
MODULES = (
    "sightline_chassis.metrics",
    "sightline_chassis.client_metrics",
    "sightline_scorer.metrics",
    "sightline_sampler.metrics",
    "sightline_trainer.metrics",
)
FOREIGN = ("nv_", "vllm:", "tgi_", "DCGM_FI_", "kubelet_volume_stats_", "process_", "python_")
"""What others export: Triton, vLLM, TGI, DCGM, the kubelet, and prometheus_client itself."""

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def families() -> dict[str, tuple[str, str]]:
    """Name of each metric of ours, as Prometheus shows it, to its type and help."""
    for module in MODULES:
        importlib.import_module(module)
    found = {}
    for metric in REGISTRY.collect():
        if metric.name.startswith(("sightline_", "grpc_")):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            found[name] = (metric.type, metric.documentation)
    return found


def exported() -> set[str]:
    """Names of all our series."""
    names = set()
    for name, (kind, _) in families().items():
        names |= {name.removesuffix("_total") + suffix for suffix in _SUFFIXES[kind]}
    return names


def rules() -> Iterator[dict[str, Any]]:
    """All rules of all files."""
    for path in ALERTS:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def recorded() -> set[str]:
    """Names that recording rules define."""
    return {rule["record"] for rule in rules() if "record" in rule}


def panels() -> Iterator[tuple[str, str, str]]:
    """(dashboard, panel's title, query) of every query."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield path.stem, panel["title"], target["expr"]


def plain(query: str, *, namespace: str = ".*", release: str = ".*", interval: str = "5m") -> str:
    """A dashboard's query with Grafana's variables filled in."""
    for variable, value in {"$__rate_interval": interval, "$namespace": namespace, "$release": release}.items():
        query = query.replace(variable, value)
    return query


def metrics_of(query: str) -> set[str]:
    """Names of the metrics in a PromQL query; raises if it does not parse."""
    return set(_names(promql_parser.parse(query)))


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, promql_parser.VectorSelector):
        exact = [matcher.value for matcher in node.matchers.matchers if matcher.name == "__name__"]
        yield node.name or exact[0]
        return
    for part in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
        child = getattr(node, part, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None and not isinstance(one, str | int | float):
                yield from _names(one)


def runbooks() -> set[str]:
    """Headings of docs/runbooks.md, lower case, as links name them."""
    text = Path(ROOT / "docs/runbooks.md").read_text()
    return {line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("#")}
