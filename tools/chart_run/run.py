"""Run the chart without a cluster: a profile's pods in namespaces of this machine, a loop through them, `helm test`.

    make chart-run PROFILE=laptop        (as root: it makes mount and network namespaces)

Each container runs its own command, arguments, environment, config maps, secrets and volumes, as the pod's user without
privileges, on a read-only root in its own mount namespace. Each pod has a network namespace and an address. Init
containers run first, and the node calls the probes. A name server resolves Services to their ready pods, nftables
enforces NetworkPolicies, volumes are shared only as the claims say, and pods end by preStop, SIGTERM and their grace
period. Certificates and tokens are those that cert-manager and an operator would create.

Differences from a kubelet: images are this checkout and its environment; models are the playground's; engines are the
test servers with vLLM's and TGI's protocols; the API knows only Deployments and Jobs; there are no GPUs (devices are
set to cpu), one pod of each kind and two vLLMs, one node, no limits of CPU and memory, no seccomp, no process
namespaces; claims have no size; Services are names of their ready pods, headless or not; no peers of other namespaces
exist.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests")]

NAMESPACE, RELEASE = "align", "demo"
ENGINES = ("vllm", "tgi")
INSIDE = "SIGHTLINE_CHART_RUN"


def main() -> int:
    """Run a profile; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", help="laptop, single-gpu, multi-node-vllm or multi-node-tgi")
    parser.add_argument("--prompts", type=int, default=32, help="number of prompts of an iteration")
    parser.add_argument("--keep", type=Path, help="keep all files in this directory")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("only root can make mount and network namespaces")
    if INSIDE not in os.environ:
        inside = ["unshare", "-m", "-n", "--propagation", "private", sys.executable, *sys.argv]
        os.execvpe(inside[0], inside, {**os.environ, INSIDE: "1"})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # pods end with the run
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it by default
    directory = Path(options.keep or tempfile.mkdtemp(prefix="chart-run-"))
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711)
    try:
        return Run(options.profile, options.prompts, directory).go()
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)


class Run:
    """One profile."""

    def __init__(self, profile: str, prompts: int, directory: Path) -> None:
        import network
        from api import Api
        from authority import TOKEN, secrets_of
        from charts import render
        from chassis_certificates import Authority
        from node import Node
        from releases import claims, values_of
        from sightline.credentials import Tls, Token

        network.begin()
        self.values = values_of(profile, prompts)
        objects = render(self.values, name=RELEASE, namespace=NAMESPACE)
        authority = Authority("chart-run")
        secrets = secrets_of(objects, authority)
        self._authority = authority
        self.node = Node(objects, NAMESPACE, directory, claims(), secrets, authority.pem)
        self._credentials: dict[str, Any] = {}
        self._tls: Tls | None = None
        if self.values.get("tls", {}).get("mode", "disabled") != "disabled":
            signed = authority.sign("operator").write(directory, "operator")
            (directory / "ca.crt").write_bytes(authority.pem)
            self._tls = Tls(directory / "ca.crt", *signed)
            if self.values.get("auth"):
                self._credentials["token"] = Token(TOKEN)
        self._names = network.Names(self.node.lookup)
        self.began = time.monotonic()
        Api(self.node, authority, self._say)

    def go(self) -> int:
        """All of it."""
        from callers import score_over_http
        from containers import tail
        from pods import PodFailed

        tests = {item["metadata"]["name"]: item for item in self.node.of_kind("Pod")}
        try:
            self._up(self.node.templates())
            self._strangers()
            self._loop()
            self._again()
            if any("gateway" in pod.name for pod in self.node.pods.values()):
                self._say(f"HTTP gateway: {score_over_http(self._pod_of('gateway'), self._authority.pem)}")
            for name, item in tests.items():
                pod = self.node.pod(name, item)
                code = pod.run()
                self._say(f"helm test: {name} ended with {code}: {pod.log().splitlines()[-1]}")
                if code:
                    raise PodFailed(f"{name} failed:\n{pod.log()}")
                self.node.remove(name)
            self._down()
        except PodFailed as error:
            self._say(f"FAILED: {error}")
            return 1
        except BaseException:
            for pod in self.node.pods.values():
                for running in pod.containers:
                    print(f"--- {pod.name}/{running.name}\n{tail(running.log)}", flush=True)
            raise
        finally:
            for pod in self.node.pods.values():
                pod.kill()
        return 0

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def _up(self, templates: dict[str, Any]) -> None:
        """Start pods at once, as a cluster does, and wait until all are ready."""
        from pods import PodFailed

        failures: list[BaseException] = []

        def bring_up(pod: Any) -> None:
            try:
                pod.begin()
                pod.until_ready(400)
                pod.watch()
                self._say(f"pod {pod.name} ({pod.address}) is ready: {', '.join(one.name for one in pod.containers)}"
                          + "".join(f"; {said}" for said in pod.said))  # fmt: skip
            except BaseException as error:
                failures.append(error)

        pods = [self.node.pod(name, template) for name, template in templates.items()]
        threads = [threading.Thread(target=bring_up, args=(pod,)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0] if isinstance(failures[0], PodFailed) else RuntimeError(str(failures[0])) from failures[0]

    def _pod_of(self, component: str) -> Any:
        return next(pod for pod in self.node.pods.values() if pod.labels["app.kubernetes.io/component"] == component)

    def _strangers(self) -> None:
        """Check from a foreign pod in the same namespace which ports the NetworkPolicies close."""
        from pods import PodFailed

        closed = bool(self.node.of_kind("NetworkPolicy"))
        stranger = self.node.pod("stranger", {"metadata": {"labels": {"app": "stranger"}}, "spec": {}})
        for pod in [pod for pod in self.node.pods.values() if pod.ready]:
            for port in (one for container in pod.spec["containers"] for one in container["ports"]):
                reached = stranger.reaches(pod.address, port["containerPort"])
                if reached == closed:
                    what = "reaches" if reached else "does not reach"
                    raise PodFailed(f"a stranger {what} {pod.name}:{port['name']}")
        stranger.kill()
        self.node.remove("stranger")
        self._say(f"a stranger's pod reaches {'nothing: NetworkPolicies are on' if closed else 'all: they are off'}")

    def _shown(self, component: str) -> dict[str, Any]:
        """Arguments of a client that calls a pod of a component by its address, as through a forwarded port."""
        if self._tls is None:
            return {}
        named = f"{RELEASE}-sightline-{component}.{NAMESPACE}.svc"
        return {**self._credentials, "tls": replace(self._tls, server_name=named)}

    def _port(self) -> int:
        return int(self.values.get("ports", {}).get("grpc", 50051))

    def _loop(self) -> None:
        """Two iterations, started by name as an operator does through a forwarded port."""
        from pods import PodFailed
        from sightline.runs import RunClient

        with RunClient(f"{self._pod_of('trainer').address}:{self._port()}", **self._shown("trainer")) as client:
            run = client.start(recipe_name="loop", run_id="first")
            last = ""
            for said in client.watch(run.id):
                if said.stage != last:
                    last = said.stage
                    self._say(f"loop: iteration {said.iteration}, {said.stage}")
            run = client.get(run.id)
        if run.error or run.state != "succeeded":
            raise PodFailed(f"the run ended {run.state}: {run.error}\n{self._pod_of('trainer').log()}")
        self._policies(2)

    def _policies(self, version: int) -> None:
        """Check that the sampler's policy is proved and active."""
        from pods import PodFailed
        from sightline.sampler import SamplerClient

        with SamplerClient(f"{self._pod_of('sampler').address}:{self._port()}", **self._shown("sampler")) as client:
            known = client.policies()
        for policy in known.policies:
            shown = policy.arrival
            proof = "" if shown is None else f", off by {shown.gap:.1e} nats, correlation {shown.correlation:.3f}"
            self._say(
                f"policy {policy.version} of run {policy.run_id or '-'}: {policy.state}{proof}, {policy.uri[:60]}"
            )
        active = known.active
        if active.version != version or active.arrival is None or not active.arrival.passed:
            raise PodFailed(f"policy {version} is not proved and active at the sampler")

    def _again(self) -> None:
        """Replace the sampler's pod as a rolling update does: never two on one volume, and the policy is restored."""
        from pods import PodFailed

        pod = self._pod_of("sampler")
        codes = pod.stop()
        self.node.remove(pod.name)
        if set(codes.values()) != {0}:
            raise PodFailed(f"{pod.name} did not end by SIGTERM: {codes}")
        self._say(f"rolling update: {pod.name} ended by SIGTERM: {codes}")
        shutil.rmtree(pod.root)
        self._up({pod.name: pod.template})
        self._policies(2)

    def _down(self) -> None:
        from pods import PodFailed

        codes: dict[str, dict[str, int | None]] = {}

        def stop(pod: Any) -> None:
            codes[pod.name] = pod.stop()

        pods = list(self.node.pods.values())
        threads = [threading.Thread(target=stop, args=(pod,)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for pod in pods:
            self._say(f"{pod.name} ended: {codes[pod.name]}, {pod.restarts} restarts")
        ended = [(name, code) for each in codes.values() for name, code in each.items()]
        # A server of tests that leaves by the signal has ended by it too; ours say 0.
        wrong = [each for each in ended if each[1] not in (0, *([-signal.SIGTERM] if each[0] in ENGINES else []))]
        if wrong or any(pod.restarts for pod in pods):
            raise PodFailed("a container was restarted, or had to be killed")


if __name__ == "__main__":
    sys.exit(main())
