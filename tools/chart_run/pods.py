"""Pods: init containers, containers, probes as a kubelet calls them, restarts, SIGTERM with grace."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import network
from api import HOST, account_files
from containers import Mount, Running, Spec, start, tail
from grpc_health.v1 import health_pb2, health_pb2_grpc
from images import image_of


class PodFailed(RuntimeError):
    """A pod did not start, or failed."""


class Pod:
    """One pod.

    Args:
        name: its name.
        template: metadata and spec.
        number: makes its address.
        node: gives volumes and secrets.
    """

    def __init__(self, name: str, template: Spec, number: int, node: Any) -> None:
        self.name, self.template, self._node = name, template, node
        self.labels: dict[str, str] = template["metadata"].get("labels", {})
        self._pause = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
        time.sleep(0.1)
        self.address = network.connect(number, self._pause.pid)
        self.spec = {**template["spec"], "address": self.address, "hostname": name, "namespace": node.namespace}
        self.root: Path = node.directory / "pods" / name
        self.containers: list[Running] = []
        self.ready = False
        self.restarts = 0
        self.said: list[str] = []
        self._volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        self._stopping = threading.Event()

    def begin(self) -> None:
        """Run the init containers in order, then start the containers.

        Raises:
            PodFailed: an init container ended with an error.
        """
        for container in self.spec.get("initContainers", []):
            running = self._start(container)
            code = running.process.wait(600)
            if code:
                raise PodFailed(f"{self.name}/{container['name']} ended with {code}:\n{tail(running.log)}")
            self.said.append(f"init {container['name']}")
        self.containers = [self._start(container) for container in self.spec["containers"]]

    def run(self) -> int:
        """Run a pod to completion; its exit status."""
        self.begin()
        code = self.containers[0].process.wait(300)
        self._pause.kill()
        return code

    def reaches(self, address: str, port: int) -> bool:
        """Whether a connection from this pod's network succeeds within three seconds."""
        inside = ["nsenter", "-t", str(self._pause.pid), "-n", "timeout", "3", "bash", "-c"]
        connect = f"</dev/tcp/{address}/{port}"
        return subprocess.run([*inside, connect], capture_output=True, check=False).returncode == 0

    def log(self) -> str:
        """The end of its first container's log."""
        return tail(self.containers[0].log) if self.containers else ""

    def until_ready(self, seconds: float) -> None:
        """Probe until every container is ready; restart containers that ended or failed their startup probe.

        Raises:
            PodFailed: it is not ready in time, or was restarted too often.
        """
        deadline = time.monotonic() + seconds
        waiting = list(self.spec["containers"])
        startup = {container["name"]: container["startupProbe"]["failureThreshold"] for container in waiting}
        while waiting and time.monotonic() < deadline:
            for container in list(waiting):
                self._revive(container)
                if self._probe(container, "startup"):
                    if self._probe(container, "readiness") and self._probe(container, "liveness"):
                        waiting.remove(container)
                else:
                    startup[container["name"]] -= 1
                    if not startup[container["name"]]:
                        raise PodFailed(f"{self.name}/{container['name']} failed its startup probe:\n{self.log()}")
            time.sleep(1)
        if waiting:
            names = ", ".join(container["name"] for container in waiting)
            raise PodFailed(f"{self.name}: {names} not ready in {seconds:.0f} s:\n{self.log()}")
        self.ready = True

    def watch(self) -> None:
        """Probe at the probes' own periods while the pod runs; restart a container that fails its liveness probe."""
        for container in self.spec["containers"]:
            threading.Thread(target=self._watch, args=(container,), daemon=True).start()

    def _watch(self, container: Spec) -> None:
        failures = {"readiness": 0, "liveness": 0}
        while not self._stopping.wait(container["readinessProbe"]["periodSeconds"]):
            for kind in failures:
                failures[kind] = 0 if self._probe(container, kind) else failures[kind] + 1
            if failures["readiness"] >= container["readinessProbe"].get("failureThreshold", 3):
                self.ready = False
            elif not failures["readiness"]:
                self.ready = True
            if failures["liveness"] >= container["livenessProbe"].get("failureThreshold", 3):
                next(one for one in self.containers if one.name == container["name"]).process.kill()
            if not self._stopping.is_set():
                self._revive(container)

    def stop(self) -> dict[str, int | None]:
        """Remove the pod from its Services, then preStop, SIGTERM, and SIGKILL after the grace period; exit
        statuses."""
        self.ready = False
        self._stopping.set()
        began, grace = time.monotonic(), self.spec["terminationGracePeriodSeconds"]
        codes: dict[str, int | None] = {}

        def end(container: Spec, running: Running) -> None:
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            time.sleep(sleep)
            codes[running.name] = running.stop(max(grace - (time.monotonic() - began), 1))

        threads = [
            threading.Thread(target=end, args=pair)
            for pair in zip(self.spec["containers"], self.containers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.kill()
        return codes

    def kill(self) -> None:
        """Kill all processes of the pod."""
        self._stopping.set()
        for running in self.containers:
            with contextlib.suppress(ProcessLookupError):
                running.process.kill()
            running.process.wait()
        self._pause.kill()
        self._pause.wait()

    def _revive(self, container: Spec) -> None:
        for index, running in enumerate(self.containers):
            if running.name == container["name"] and running.process.poll() is not None:
                self.restarts += 1
                if self.restarts > 5:
                    raise PodFailed(f"{self.name}/{running.name} was restarted too often:\n{tail(running.log)}")
                self.said.append(f"{running.name} ended with {running.process.returncode}")
                self.containers[index] = self._start(container)

    def _start(self, container: Spec) -> Running:
        image = image_of(container["image"])
        command = [*container.get("command", image.entrypoint), *container.get("args", [])]
        environment = dict(image.environment)
        for entry in container.get("env", []):
            environment[entry["name"]] = entry["value"] if "value" in entry else self._node.value(entry["valueFrom"])
        mounts = [self._mount(mount) for mount in container.get("volumeMounts", [])]
        if self.spec.get("automountServiceAccountToken"):
            environment |= {"KUBERNETES_SERVICE_HOST": HOST, "KUBERNETES_SERVICE_PORT": "443"}
            account = self.spec["serviceAccountName"]
            files = account_files(self.root / "account", account, self._node.namespace, self._node.ca)
            mounts.append(Mount(files, "/var/run/secrets/kubernetes.io/serviceaccount", True))
        scratch = self.root / container["name"]
        return start(
            container, self.spec, pause=self._pause.pid, command=command, environment=environment, mounts=mounts,
            scratch=scratch,
        )  # fmt: skip

    def _mount(self, mount: Spec) -> Mount:
        volume = self._volumes.get(mount["name"])
        if volume is None:
            volume = {"persistentVolumeClaim": {"claimName": f"{mount['name']}-{self.name}"}}  # of the StatefulSet
        source, read_only = self._node.volume(self, volume)
        return Mount(source / mount.get("subPath", ""), mount["mountPath"], read_only or mount.get("readOnly", False))

    def _probe(self, container: Spec, kind: str) -> bool:
        probe = container[f"{kind}Probe"]
        seconds = probe.get("timeoutSeconds", 1)
        if "grpc" in probe:
            return _grpc_probe(f"{self.address}:{probe['grpc']['port']}", probe["grpc"]["service"], seconds)
        how = "httpGet" if "httpGet" in probe else "tcpSocket"
        port = probe[how]["port"]
        if isinstance(port, str):
            port = next(one["containerPort"] for one in container["ports"] if one["name"] == port)
        if how == "tcpSocket":
            with contextlib.suppress(OSError), socket.create_connection((self.address, port), seconds):
                return True
            return False
        try:
            with urllib.request.urlopen(
                f"http://{self.address}:{port}{probe['httpGet']['path']}", timeout=seconds
            ) as got:
                return 200 <= got.status < 400
        except OSError:
            return False


def _grpc_probe(address: str, service: str, seconds: float) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            asked = health_pb2.HealthCheckRequest(service=service)
            got = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=seconds)
        except grpc.RpcError:
            return False
    return bool(got.status == health_pb2.HealthCheckResponse.SERVING)


def prepared(directory: Path, user: int, fill: Callable[[Path], None] = lambda path: None) -> Path:
    """A directory of the node that belongs to the pods' group."""
    if not directory.exists():
        directory.mkdir(parents=True)
        fill(directory)
        for path in (directory, *directory.rglob("*")):
            shutil.chown(path, user, user)
            path.chmod(0o770 if path.is_dir() else 0o440)
    return directory
