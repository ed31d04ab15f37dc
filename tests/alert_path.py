"""The path of an alert: a Prometheus, an Alertmanager and a webhook on loopback; `make monitor` uses it too."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

PROGRAMS = ("prometheus", "prometheus-alertmanager")


def missing() -> list[str]:
    """Programs that are not installed; Debian's packages prometheus and prometheus-alertmanager have them."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def hurried(rules: str) -> str:
    """The text of shipped rules with times short enough for a demonstration; the rest is unchanged."""
    text = re.sub(r"\bfor: \w+", "for: 2s", rules)
    text = re.sub(r"\[6h\]", "[10m]", text)
    text = re.sub(r"\[\d+[mhd]\]", "[20s]", text)
    return re.sub(r"offset \w+", "offset 20s", text)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Webhook:
    """Keeps the alerts that an Alertmanager sends."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.alerts += body["alerts"]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class Prometheus:
    """Scrapes targets each second, evaluates rules, and sends alerts to a webhook. A context manager.

    Args:
        directory: for configuration, data and logs.
        targets: "host:port" of /metrics -> labels of the target.
        rules: files as they are shipped; their times are shortened.
    """

    def __init__(self, directory: Path, targets: Mapping[str, Mapping[str, str]], rules: Sequence[Path]) -> None:
        self.directory = directory
        self.webhook = Webhook()
        self.url = f"http://127.0.0.1:{free_port()}"
        self._alertmanager = f"127.0.0.1:{free_port()}"
        self._processes: list[subprocess.Popen[bytes]] = []
        directory.mkdir(parents=True, exist_ok=True)
        names = []
        for path in rules:
            (directory / path.name).write_text(hurried(path.read_text()))
            names.append(path.name)
        scrape = [{"targets": [address], "labels": dict(labels)} for address, labels in targets.items()]
        self._write(
            "prometheus.yml",
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                "rule_files": names,
                "alerting": {"alertmanagers": [{"static_configs": [{"targets": [self._alertmanager]}]}]},
                "scrape_configs": [{"job_name": "sightline", "static_configs": scrape}],
            },
        )
        times = {"group_wait": "1s", "group_interval": "1s", "repeat_interval": "1h"}
        self._write(
            "alertmanager.yml",
            {
                "route": {"receiver": "webhook", "group_by": ["alertname"], **times},
                "receivers": [{"name": "webhook", "webhook_configs": [{"url": self.webhook.url}]}],
            },
        )

    def __enter__(self) -> Prometheus:
        where = self.directory
        self._start("prometheus-alertmanager", "--config.file=alertmanager.yml", f"--storage.path={where}/alerts",
                    f"--web.listen-address={self._alertmanager}", "--cluster.listen-address=")  # fmt: skip
        self._start("prometheus", "--config.file=prometheus.yml", f"--storage.tsdb.path={where}/data",
                    f"--web.listen-address={self.url.removeprefix('http://')}")  # fmt: skip
        for url in (f"{self.url}/-/ready", f"http://{self._alertmanager}/-/ready"):
            self._wait(url)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(20)
        self.webhook.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an instant query returns."""
        return self._get("query", query=expression)["result"]  # type: ignore[no-any-return]

    def query_range(self, expression: str, start: float, step: float = 2.0) -> list[dict[str, Any]]:
        """Series of a query from a time until now."""
        return self._get("query_range", query=expression, start=start, end=time.time(), step=step)["result"]  # type: ignore[no-any-return]

    def names(self) -> list[str]:
        """Names of all metrics that were scraped or recorded."""
        return self._get("label/__name__/values")  # type: ignore[no-any-return]

    def alert(self, name: str, seconds: float, **labels: str) -> tuple[dict[str, Any], float]:
        """Wait until the webhook receives a firing alert with these labels; return it and the seconds that it took.

        Raises:
            TimeoutError: it did not come.
        """
        start, wanted = time.monotonic(), {"alertname": name, **labels}
        while time.monotonic() - start < seconds:
            for alert in list(self.webhook.alerts):
                if alert["status"] == "firing" and wanted.items() <= alert["labels"].items():
                    return alert, time.monotonic() - start
            time.sleep(0.2)
        firing = [series["metric"] for series in self.query("ALERTS")]
        raise TimeoutError(f"{name} did not arrive within {seconds:g} s; alerts now: {firing}")

    def _get(self, path: str, **query: Any) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as reply:
            return json.load(reply)["data"]

    def _write(self, name: str, tree: Any) -> None:
        (self.directory / name).write_text(yaml.safe_dump(tree))

    def _start(self, *command: str) -> None:
        log = (self.directory / f"{command[0]}.log").open("wb")
        with log:
            self._processes.append(subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log))

    def _wait(self, url: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
