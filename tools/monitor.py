"""`make monitor`: the services with mTLS and tokens, a short playground loop, and Prometheus beside them.

It checks that:

1. A run of one iteration goes through, trainer to sampler and scorer over mTLS with tokens.
2. Every panel of every dashboard has a series in a real Prometheus that scraped the services.
3. A team at ten times its limit gets its limit, another team is served, and health answers (with its latency reported).
4. After two faults (Triton is killed again and again; the sampler is killed), their three alerts arrive at a webhook,
   through the shipped rules (with shortened times) and an Alertmanager.

It writes benchmarks/results/monitor.json and monitor-series.txt (the names of all series scraped).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]  # shared with benchmarks and tests

import yaml  # noqa: E402
from alert_path import Prometheus, missing  # noqa: E402
from chassis_certificates import Authority  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from harness import RESULTS, Row, tree, write  # noqa: E402
from monitoring import ALERTS, panels, plain  # noqa: E402
from rich.console import Console  # noqa: E402
from sightline.channel import Tls, open_channel  # noqa: E402
from sightline.errors import from_rpc_error  # noqa: E402
from sightline.runs import RunClient  # noqa: E402
from sightline.scorer.v1 import scorer_pb2 as pb  # noqa: E402
from sightline.scorer.v1 import scorer_pb2_grpc  # noqa: E402
from sightline_chassis.server import Addresses  # noqa: E402
from sightline_chassis.tokens import hash_of, make_token  # noqa: E402
from sightline_cli.processes import Processes  # noqa: E402
from sightline_cli.run import with_data  # noqa: E402
from sightline_trainer.recipe import load_recipe  # noqa: E402

SERVICES = ("scorer", "sampler", "trainer")
TEXTS_PER_MINUTE = 600
FLOOD_SECONDS = 20.0
START_SECONDS = 600.0  # a service may start slowly on a busy machine
SMALL = [
    "iterations=1", "data.train=playground:align?count=48&seed=1", "data.test=playground:test?count=24&seed=2",
    "data.prompts_per_iteration=32", "evaluation.prompts=24", "sampling.candidates=4", "threads=1",
    "dpo.batch_size=8",
]  # fmt: skip


class Secrets:
    """Certificates and tokens of all services and teams."""

    def __init__(self, root: Path) -> None:
        authority = Authority("monitor")
        self.ca = root / "ca.crt"
        self.ca.write_bytes(authority.pem)
        self.certificate, self.key = authority.sign("sightline").write(root, "sightline")
        self.tls = Tls(self.ca, self.certificate, self.key)
        self.tokens = {team: make_token() for team in ("trainer", "operator", "calm", "flood")}
        limits = {"flood": {"texts_per_minute": TEXTS_PER_MINUTE}}
        teams = {
            name: {"tokens": [hash_of(token)], "limits": limits.get(name, {})} for name, token in self.tokens.items()
        }
        self.file = root / "teams.yaml"
        self.file.write_text(yaml.safe_dump({"teams": teams}))
        self.trainer_token = root / "trainer-token"
        self.trainer_token.write_text(self.tokens["trainer"])

    def settings(self) -> list[str]:
        """Flags of a service."""
        tls = {"mode": "mutual", "certificate": str(self.certificate), "key": str(self.key), "client_ca": str(self.ca)}
        return [f"server.tls={json.dumps(tls)}", f"auth.tokens_file={self.file}"]

    def connection(self, address: str) -> str:
        """How the trainer reaches a service."""
        tls = {"root": str(self.ca), "certificate": str(self.certificate), "key": str(self.key)}
        return json.dumps({"address": address, "tls": tls, "token_file": str(self.trainer_token)})

    @contextlib.contextmanager
    def scorer(self, address: str, team: str) -> Iterator[scorer_pb2_grpc.ScorerServiceStub]:
        """A plain stub without our retries."""
        with open_channel(address, tls=self.tls, token=self.tokens[team]) as channel:
            yield scorer_pb2_grpc.ScorerServiceStub(channel)


def start(processes: Processes, secrets: Secrets, runs: Path, data: Path) -> dict[str, Addresses]:
    """All three services."""
    quiet = {"OMP_NUM_THREADS": "1"}
    weights = ROOT / "playground/weights"
    flags = secrets.settings()
    patient = f"triton.start_timeout_seconds={START_SECONDS:.0f}"
    processes.start("scorer", [*flags, patient, f"models.clip.source=local-dir:{weights / 'clip'}"], environment=quiet)
    processes.start("sampler", [*flags, f"engine.model={weights / 'llava'}", "engine.threads=1"], environment=quiet)
    at = {name: processes.wait(name, seconds=START_SECONDS) for name in ("scorer", "sampler")}
    known = [f"connections.{name}={secrets.connection(at[name].grpc)}" for name in ("scorer", "sampler")]
    processes.start("trainer", [*flags, f"runs={runs}", f"data_roots=[{data}]", *known], environment=quiet)
    return at | {"trainer": processes.wait("trainer", seconds=START_SECONDS)}


def loop(trainer: str, secrets: Secrets, data: Path) -> str:
    """A run of one iteration, watched to its end."""
    recipe = with_data(load_recipe(ROOT / "recipes/clip_dpo.yaml", SMALL), data)
    text = yaml.safe_dump(recipe.model_dump(mode="json"))
    with RunClient(trainer, tls=secrets.tls, token=secrets.tokens["operator"]) as client:
        run = client.start(recipe_text=text, run_id="monitor")
        for _ in client.watch(run.id):
            pass
        run = client.get(run.id)
    if run.error:
        raise SystemExit(f"the run failed: {run.error}")
    return f"policy {run.policy_version} after {run.iteration} iteration"


def a_request(data: Path, texts: int) -> pb.ScoreRequest:
    """One playground image with texts."""
    image = next(data.rglob("*.png")).read_bytes()
    return pb.ScoreRequest(image=pb.Image(content=image), texts=[f"a red square and {n} circles" for n in range(texts)])


class Team(threading.Thread):
    """Send a request at a steady rate and count the outcomes."""

    def __init__(self, stub: Any, request: pb.ScoreRequest, per_second: float, seconds: float) -> None:
        super().__init__(daemon=True)
        self.outcomes: Counter[str] = Counter()
        self._stub, self._request, self._pause, self._end = stub, request, 1 / per_second, time.monotonic() + seconds
        self._calls: list[Any] = []

    def run(self) -> None:
        due = time.monotonic()
        while due < self._end:
            self._calls.append(self._stub.Score.future(self._request, timeout=30))
            due += self._pause
            time.sleep(max(0.0, due - time.monotonic()))
        for call in self._calls:
            error = call.exception()
            self.outcomes["OK" if error is None else from_rpc_error(error).reason] += 1


def health_latencies(address: str, while_true: Callable[[], bool]) -> list[float]:
    """Seconds of each check of readiness, one after another, sorted."""
    latencies = []
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while while_true():
            asked = time.perf_counter()
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            latencies.append(time.perf_counter() - asked)
            if reply.status != health_pb2.HealthCheckResponse.SERVING:
                raise SystemExit("the scorer was not ready under load")
            time.sleep(0.02)
    return sorted(latencies)


def overload(at: Addresses, secrets: Secrets, data: Path) -> list[Row]:
    """Run one team at ten times its limit and one within its limit, and check health meanwhile."""
    texts = 10
    request = a_request(data, texts)
    per_second = 10 * TEXTS_PER_MINUTE / 60 / texts
    began = time.monotonic()
    before = health_latencies(at.health, lambda: time.monotonic() - began < 10)
    began = time.monotonic()
    with secrets.scorer(at.grpc, "flood") as theirs, secrets.scorer(at.grpc, "calm") as ours:
        flood, calm = Team(theirs, request, per_second, FLOOD_SECONDS), Team(ours, request, 2, FLOOD_SECONDS)
        flood.start()
        calm.start()
        latencies = health_latencies(at.health, flood.is_alive)
        flood.join()
        calm.join()
    allowed = TEXTS_PER_MINUTE * (1 + (time.monotonic() - began) / 60) / texts
    served = calm.outcomes["OK"] / sum(calm.outcomes.values())
    detail = {"seconds": FLOOD_SECONDS, "offered": sum(flood.outcomes.values()), "outcomes": dict(flood.outcomes)}
    health = {
        "checks": len(latencies),
        "p50_ms": statistics.median(latencies) * 1000,
        "max_ms": latencies[-1] * 1000,
        "p99_ms_before_the_flood": _p99(before),
        "load_average": os.getloadavg()[0],
    }
    return [
        Row("flood_served_over_allowed", flood.outcomes["OK"] / allowed, "ratio", "lower", 1.0,
            "the limit of texts by the minute, at ten times of which a team sends", detail),
        Row("calm_served", served, "share", "higher", 1.0, "all calls of another team meanwhile", dict(calm.outcomes)),
        Row("health_p99_under_10x", _p99(latencies), "ms", "lower", 50.0,
            "the issue's bound", health),
    ]  # fmt: skip


def _p99(latencies: list[float]) -> float:
    return latencies[int(len(latencies) * 0.99)] * 1000


def dashboards(prometheus: Prometheus, began: float) -> tuple[int, list[str]]:
    """Queries of all panels, and those without a series."""
    empty, count = [], 0
    for board, title, query in panels():
        count += 1
        if not prometheus.query_range(plain(query, namespace="monitor", release="demo", interval="10s"), began):
            empty.append(f"{board}: {title}: {query}")
    return count, empty


def keep_killing_triton(at: Addresses, pid: int, secrets: Secrets, data: Path, stop: threading.Event) -> None:
    """Kill the scorer's Triton whenever it runs, and call the scorer meanwhile."""
    request = a_request(data, 2)
    with secrets.scorer(at.grpc, "calm") as stub:
        while not stop.is_set():
            for child in tree([pid]) - {pid}:
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text().startswith("tritonserver"):
                        os.kill(child, signal.SIGKILL)
            request.texts[0] = f"scored never before {time.monotonic()}"
            stub.Score.future(request, timeout=2).exception()
            stop.wait(0.1)


def main() -> int:
    """Run all checks; see the module."""
    console = Console()
    if missing():
        console.print(
            f"not installed: {', '.join(missing())} (Debian: apt-get install prometheus prometheus-alertmanager)"
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="sightline-monitor-") as scratch:
        return _main(Path(scratch), console)


def _main(root: Path, console: Console) -> int:
    secrets = Secrets(root)
    with Processes(root / "services") as processes:
        console.print("starting scorer, sampler and trainer with mTLS and tokens, and Prometheus")
        at = start(processes, secrets, root / "runs", root / "data")
        targets = {
            at[name].metrics: {"namespace": "monitor", "release": "demo", "component": name, "pod": f"{name}-0"}
            for name in SERVICES
        }
        with Prometheus(root / "prometheus", targets, ALERTS) as prometheus:
            return _watched(console, at, secrets, root, prometheus)


def _watched(console: Console, at: dict[str, Addresses], secrets: Secrets, root: Path, prometheus: Prometheus) -> int:
    began = time.time()
    console.print(f"the loop: {loop(at['trainer'].grpc, secrets, root / 'data')}")
    rows = overload(at["scorer"], secrets, root / "data")
    time.sleep(3)
    count, empty = dashboards(prometheus, began)
    rows.append(Row("panels_with_series", (count - len(empty)) / count, "share", "higher", 1.0,
                    "queries of all dashboards", {"queries": count, "empty": empty}))  # fmt: skip
    for line in empty:
        console.print(f"[red]no series[/red] {line}")
    stop = threading.Event()
    arguments = (at["scorer"], _pid(root, "scorer"), secrets, root / "data", stop)
    trouble = threading.Thread(target=keep_killing_triton, args=arguments, daemon=True)
    trouble.start()
    paths = [
        _arrived(console, prometheus, name, pod)
        for name, pod in (("SightlineBackendDown", {"pod": "scorer-0"}), ("SightlineGrpcHighErrorRate", {}))
    ]
    stop.set()
    trouble.join()
    os.kill(_pid(root, "sampler"), signal.SIGKILL)
    paths.append(_arrived(console, prometheus, "SightlineTargetAbsent", {"component": "sampler"}))
    rows.append(Row("alerts_arrived", sum(paths) / len(paths), "share", "higher", 1.0,
                    "rule, Alertmanager, webhook"))  # fmt: skip
    names = [name for name in prometheus.names() if name.startswith(("sightline", "grpc_"))]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "monitor-series.txt").write_text("\n".join(names) + "\n")
    console.print(f"{len(names)} names of series: benchmarks/results/monitor-series.txt")
    write("monitor", rows)
    result = RESULTS / "monitor.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"command": "make monitor"}, indent=2) + "\n")
    return 0 if not empty and all(paths) else 1


def _pid(root: Path, service: str) -> int:
    return int(json.loads((root / f"services/{service}.json").read_text())["pid"])


def _arrived(console: Console, prometheus: Prometheus, name: str, labels: dict[str, str]) -> bool:
    try:
        alert, seconds = prometheus.alert(name, 90, **labels)
    except TimeoutError as error:
        console.print(f"[red]{error}[/red]")
        return False
    console.print(f"alert at the webhook after {seconds:.1f} s: [bold]{name}[/bold] {alert['annotations']['summary']}")
    return True


if __name__ == "__main__":
    sys.exit(main())
