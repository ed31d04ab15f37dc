"""Live: the page of a run that is going on, served on loopback; it loads itself again when there is more to see."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sightline_trainer.events import Event, EventReader
from sightline_trainer.report.history import History
from sightline_trainer.report.page import PICTURES, page
from sightline_trainer.runs import RunDirectory


class LiveReport:
    """What is served of one run: the page, made anew when an evaluation ended, and where the run stands."""

    def __init__(self, directory: Path, *, pictures: int = PICTURES) -> None:
        self.run = RunDirectory(directory)
        self.pictures = pictures
        self._lock = threading.Lock()
        self._page: tuple[str, str] = ("", "")
        self._events = EventReader(self.run.events)
        self._last = Event(stage="start")

    def version(self) -> str:
        """What changes when the page would."""
        done = sum(1 for _ in (self.run.root / "iterations").glob("*/evaluation.json"))
        return f"{done}-{self.run.state().get('state', 'queued')}"

    def html(self) -> str:
        """The page as of now."""
        with self._lock:
            version = self.version()
            if self._page[0] != version:
                history = History.read(self.run.root)
                self._page = version, page([history], pictures=self.pictures, live=version)
            return self._page[1]

    def state(self) -> dict[str, Any]:
        """`{"version", "line", "done", "total"}`."""
        with self._lock:
            for _, event in self._events.read():
                self._last = event
            last = self._last
        state = self.run.state().get("state", "queued")
        where = f"iteration {last.iteration}" if last.iteration else "base model"
        line = f"{state}: {where}, {last.stage}" if state == "running" else str(state)
        moving = state == "running" and last.stage not in ("iteration", "end")
        return {
            "version": self.version(),
            "line": f"{line} {last.done} of {last.total}" if moving and last.total else line,
            "done": last.done,
            "total": last.total if moving else 0,
        }


def server(report: LiveReport, port: int = 0) -> ThreadingHTTPServer:
    """An HTTP server of the report on loopback; the caller runs and closes it. `port` 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not _is_ours(self.headers.get_all("Host") or []):
                self._send(403, "text/plain; charset=utf-8", "this page is for http://127.0.0.1 and http://localhost\n")
            elif self.path == "/":
                self._send(200, "text/html; charset=utf-8", report.html())
            elif self.path == "/state":
                self._send(200, "application/json", json.dumps(report.state()))
            else:
                self._send(404, "text/plain; charset=utf-8", "there is / and /state\n")

        def _send(self, code: int, kind: str, text: str) -> None:
            data = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _is_ours(hosts: list[str]) -> bool:
    """Whether a request was meant for us. A page of another site may have its name point to this machine (DNS
    rebinding): a browser then sends that name, and would show that page what we answer."""
    if len(hosts) != 1:
        return False
    name, colon, port = hosts[0].strip().lower().rpartition(":")
    if not colon or hosts[0].endswith("]"):
        name, port = hosts[0].strip().lower(), "80"
    return name in ("127.0.0.1", "localhost", "[::1]") and port.isdecimal()
