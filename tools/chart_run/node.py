"""The node: objects of the release, volumes behind claims, secrets, Services' names."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import network
from containers import Spec
from pods import Pod, PodFailed, prepared

Fill = Callable[[Path], None]


class Node:
    """Runs pods of a rendered release.

    Args:
        objects: what the chart rendered.
        namespace: of the release.
        directory: for all files of the pods.
        claims: contents of the users' own claims, by name.
        secrets: files of the users' own Secrets, by name.
        ca: certificate of the authority that the API is signed by.
    """

    def __init__(
        self,
        objects: Sequence[Spec],
        namespace: str,
        directory: Path,
        claims: dict[str, Fill],
        secrets: dict[str, dict[str, bytes]],
        ca: bytes,
    ) -> None:
        self.ca = ca
        self._rolling, self._filling = threading.Lock(), threading.Lock()
        self.objects, self.namespace, self.directory = objects, namespace, directory
        self._claims, self._secrets = claims, secrets
        self.pods: dict[str, Pod] = {}
        self._numbers = self.rollouts = 0
        self.user = 10001

    def of_kind(self, kind: str) -> list[Spec]:
        """Objects of a kind."""
        return [item for item in self.objects if item["kind"] == kind]

    def pod(self, name: str, template: Spec) -> Pod:
        """A new pod with its address, not yet started."""
        self._numbers += 1
        made = self.pods[name] = Pod(name, template, self._numbers, self)
        self._enforce()
        return made

    def remove(self, name: str) -> None:
        """Forget a pod that has ended."""
        del self.pods[name]
        self._enforce()

    def templates(self) -> dict[str, Spec]:
        """Pods that the release's workloads ask for, by name."""
        found = {}
        for item in [*self.of_kind("Deployment"), *self.of_kind("StatefulSet")]:
            name, spec = item["metadata"]["name"], item["spec"]
            for index in range(spec.get("replicas", 1)):
                suffix = str(index) if item["kind"] == "StatefulSet" else f"7d9c-{index}"
                found[f"{name}-{suffix}"] = spec["template"]
        return found

    def roll_out(self, deployment: str, patch: Spec) -> None:
        """Patch the environment of a Deployment's container, and replace its pods: old ones go before new ones come."""
        (item,) = (one for one in self.of_kind("Deployment") if one["metadata"]["name"] == deployment)
        template = item["spec"]["template"]
        for change in patch["spec"]["template"]["spec"]["containers"]:
            container = next(one for one in template["spec"]["containers"] if one["name"] == change["name"])
            environment = {entry["name"]: entry for entry in [*container["env"], *change["env"]]}
            container["env"] = list(environment.values())
        with self._rolling:
            for name in [name for name in self.pods if name.startswith(f"{deployment}-")]:
                self.pods[name].stop()
                self.remove(name)
                self.rollouts += 1
                fresh = self.pod(f"{deployment}-{self.rollouts}", template)
                fresh.begin()
                fresh.until_ready(300)
                fresh.watch()

    def lookup(self, name: str) -> list[str] | None:
        """Addresses behind a Service's name: of its pods that are ready."""
        if name == "kubernetes.default.svc.cluster.local":
            return [network.NODE]
        for service in self.of_kind("Service"):
            full = f"{service['metadata']['name']}.{self.namespace}.svc.cluster.local"
            for pod in list(self.pods.values()):
                if name == f"{pod.name}.{full}":
                    return [pod.address]
            if name == full:
                selector = service["spec"]["selector"].items()
                return [pod.address for pod in list(self.pods.values()) if pod.ready and selector <= pod.labels.items()]
        return None

    def value(self, source: Spec) -> str:
        """An environment variable's value by reference."""
        if "secretKeyRef" in source:
            return self._secret(source["secretKeyRef"]["name"])[source["secretKeyRef"]["key"]].decode()
        raise LookupError(f"no value from {source}")

    def volume(self, pod: Pod, volume: Spec) -> tuple[Path, bool]:
        """The directory behind a volume, and whether it is read-only."""
        with self._filling:  # pods start at once, and share claims
            return self._volume(pod, volume)

    def _volume(self, pod: Pod, volume: Spec) -> tuple[Path, bool]:
        own = pod.root / "volumes" / volume.get("name", "")
        if "emptyDir" in volume:
            prepared(own, self.user)
            own.chmod(0o777)
            return own, False
        if "configMap" in volume:
            data = self._config_map(volume["configMap"]["name"])
            return prepared(own, self.user, lambda path: _write(path, data)), True
        if "secret" in volume:
            data = self._secret(volume["secret"]["secretName"])
            return prepared(own, self.user, lambda path: _write(path, data)), True
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]
            name = claim["claimName"]
            asked = {item["metadata"]["name"] for item in self.of_kind("PersistentVolumeClaim")}
            asked |= {
                f"{template['metadata']['name']}-{pod_name}"
                for item in self.of_kind("StatefulSet")
                for template in item["spec"].get("volumeClaimTemplates", [])
                for pod_name in self.templates()
                if pod_name.startswith(item["metadata"]["name"] + "-")
            }
            if name not in asked and name not in self._claims:
                raise PodFailed(f"{pod.name} waits for the claim {name}, which does not exist")
            fill = self._claims.get(name, lambda path: None)
            return prepared(self.directory / "claims" / name, self.user, fill), claim.get("readOnly", False)
        raise LookupError(f"no volume of {volume}")

    def _config_map(self, name: str) -> dict[str, bytes]:
        for item in self.of_kind("ConfigMap"):
            if item["metadata"]["name"] == name:
                return {key: text.encode() for key, text in (item.get("data") or {}).items()}
        raise PodFailed(f"no ConfigMap {name}")

    def _secret(self, name: str) -> dict[str, bytes]:
        for item in self.of_kind("Secret"):
            if item["metadata"]["name"] == name:
                return {key: base64.b64decode(text) for key, text in item["data"].items()}
        if name not in self._secrets:
            raise PodFailed(f"no Secret {name}")
        return self._secrets[name]

    def _enforce(self) -> None:
        pods: list[tuple[str, Any]] = [(pod.address, pod.labels) for pod in self.pods.values()]
        network.sh("nft", "-f", "-", text=network.rules(self.of_kind("NetworkPolicy"), pods))


def _write(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).write_bytes(content)
