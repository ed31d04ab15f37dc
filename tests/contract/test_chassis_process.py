"""A service as a process: signals, drain, ports, the announce file, and messages when it cannot start."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from chassis_probe import SCORER, Client, Probe, ProbeSettings
from sightline.errors import Unavailable, typed_errors
from sightline_chassis.process import BindError, serving
from test_chassis_admission import health

PROBE = Path(__file__).with_name("chassis_probe.py")


class Process:
    """The probe as a process."""

    def __init__(self, folder: Path, *overrides: str, ready: bool = True) -> None:
        self.announce = folder / "run" / "probe.json"
        self.log = folder / "log.jsonl"
        flags = (f"server.announce={self.announce}", "server.notice_seconds=0", *overrides)
        with self.log.open("w") as log:
            command = [sys.executable, str(PROBE), *flags]
            self.popen = subprocess.Popen(command, stderr=log, stdout=subprocess.PIPE, text=True)
        self.addresses: dict[str, Any] = {}
        if ready:
            self.wait_until(lambda: "serving" in self.messages())
            self.addresses = json.loads(self.announce.read_text())

    def lines(self) -> list[dict[str, Any]]:
        """The log; every line must be JSON, except gRPC's own C++ lines."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def messages(self) -> list[str]:
        """The log's messages."""
        return [line["message"] for line in self.lines()]

    def wait_for(self, message: str) -> None:
        """Wait for a line of the log."""
        self.wait_until(lambda: message in self.messages())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert self.popen.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def end(self, seconds: float = 10) -> int:
        """The exit code."""
        return self.popen.wait(seconds)


@contextlib.contextmanager
def process(folder: Path, *overrides: str, ready: bool = True) -> Iterator[Process]:
    """Run the probe as a process inside the block."""
    probe = Process(folder, *overrides, ready=ready)
    try:
        yield probe
    finally:
        probe.popen.kill()
        probe.popen.wait()
        assert probe.popen.stdout is not None
        probe.popen.stdout.close()


def talk(address: str, test: Callable[[Client], Awaitable[None]]) -> None:
    """Run the test with a client of this address."""

    async def main() -> None:
        async with Client(address) as client:
            await test(client)

    asyncio.run(main())


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_sigterm_drains_what_is_in_flight(tmp_path: Path) -> None:
    with process(tmp_path, "admission.max_concurrent=1") as probe:
        assert probe.addresses["pid"] == probe.popen.pid
        assert probe.addresses["service"] == "probe"

        async def test(client: Client) -> None:
            running = asyncio.ensure_future(client.score("sleep 0.6", str(4 << 20)))
            await asyncio.sleep(0.1)
            queued = asyncio.ensure_future(client.score("sleep 0.1"))
            await asyncio.sleep(0.1)
            probe.popen.send_signal(signal.SIGTERM)
            await asyncio.to_thread(probe.wait_for, "draining")
            assert await asyncio.to_thread(health, probe.addresses["health"], "readiness") == "NOT_SERVING"
            assert await asyncio.to_thread(health, probe.addresses["health"], "liveness") == "SERVING"
            await asyncio.sleep(0.1)
            async with Client(probe.addresses["grpc"]) as other:
                with pytest.raises(Unavailable), typed_errors():
                    await other.given(timeout=5).score("ok")
            assert len((await running).image_sha256) == 4 << 20
            await queued

        talk(probe.addresses["grpc"], test)
        assert probe.end() == 0
        assert not probe.announce.exists()
        assert probe.messages()[-1] == "stopped"
        assert probe.popen.stdout is not None
        assert probe.popen.stdout.read() == "stopped\n"
        lines = {line["message"]: line for line in probe.lines()}
        assert not any(line["level"] in ("warning", "error") for line in lines.values())
        assert all({"ts", "level", "service", "logger"} <= line.keys() for line in lines.values())
        assert lines["settings"]["settings"]["admission"]["max_concurrent"] == 1
        assert lines["serving"]["grpc"] == probe.addresses["grpc"]


def test_the_drain_has_an_end(tmp_path: Path) -> None:
    with process(tmp_path, "server.drain_seconds=0.3") as probe:

        async def test(client: Client) -> None:
            call = asyncio.ensure_future(client.score("sleep 60"))
            await asyncio.sleep(0.2)
            probe.popen.send_signal(signal.SIGTERM)
            with pytest.raises(Unavailable), typed_errors():
                await call

        talk(probe.addresses["grpc"], test)
        assert probe.end(3) == 0
        assert "drain cut short" in probe.messages()


def test_a_watch_ends_when_the_service_says_so(tmp_path: Path) -> None:
    with process(tmp_path) as probe:

        async def test(client: Client) -> None:
            call = client.sample("watch")
            await call.read()
            probe.popen.send_signal(signal.SIGINT)
            await call.read()
            assert await call.code() is grpc.StatusCode.OK

        talk(probe.addresses["grpc"], test)
        assert probe.end(3) == 0
        assert "drain cut short" not in probe.messages()


def test_a_second_signal_cuts_the_drain_short_but_still_stops(tmp_path: Path) -> None:
    with process(tmp_path) as probe:

        async def test(client: Client) -> None:
            call = asyncio.ensure_future(client.score("sleep 60"))
            await asyncio.sleep(0.2)
            probe.popen.send_signal(signal.SIGINT)
            await asyncio.to_thread(probe.wait_for, "draining")
            probe.popen.send_signal(signal.SIGINT)
            with pytest.raises(grpc.RpcError):
                await call

        talk(probe.addresses["grpc"], test)
        assert probe.end(3) == 0
        assert probe.messages()[-1] == "stopped"


def test_a_third_signal_ends_a_process_that_is_stuck(tmp_path: Path) -> None:
    with process(tmp_path, "server.drain_seconds=60", "probe.stop_seconds=60") as probe:

        async def test(client: Client) -> None:
            call = asyncio.ensure_future(client.score("block 60"))
            await asyncio.sleep(0.3)
            for _ in range(3):
                probe.popen.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.1)
            assert await asyncio.to_thread(probe.end, 5) == 128 + signal.SIGTERM
            with pytest.raises(grpc.RpcError):
                await call

        talk(probe.addresses["grpc"], test)


def test_a_grpc_server_that_ends_by_itself_ends_the_process(tmp_path: Path) -> None:
    with process(tmp_path) as probe:

        async def test(client: Client) -> None:
            await asyncio.gather(client.score("crash"), return_exceptions=True)

        talk(probe.addresses["grpc"], test)
        assert probe.end(5) == 1
        assert "probe failed" in probe.messages()
        assert probe.messages()[-2] == "stopped"


def test_a_successor_keeps_its_announcement(tmp_path: Path) -> None:
    with process(tmp_path) as old, process(tmp_path) as new:
        old.popen.send_signal(signal.SIGTERM)
        assert old.end() == 0
        assert json.loads(new.announce.read_text())["pid"] == new.popen.pid


@pytest.mark.parametrize("port", ["port", "health_port", "metrics_port"])
def test_a_taken_port_is_named(tmp_path: Path, port: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        number = sock.getsockname()[1]
        with process(tmp_path, f"server.{port}={number}", ready=False) as probe:
            assert probe.end() == 1
            (error,) = [line for line in probe.lines() if line["level"] == "error"]
            assert f"cannot listen on 127.0.0.1:{number} (server.{port})" in error["message"]
            assert "exception" not in error


def test_two_services_do_not_share_a_port() -> None:
    async def main() -> None:
        settings = ProbeSettings.model_validate({"server": {"notice_seconds": 0}})
        async with serving(Probe(), settings) as at:
            for name, address in (("port", at.grpc), ("health_port", at.health), ("metrics_port", at.metrics)):
                taken = ProbeSettings.model_validate({"server": {name: address.rpartition(":")[2]}})
                with pytest.raises(BindError, match=rf"server\.{name}"):
                    async with serving(Probe(), taken):
                        pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("order", "words", "traceback"),
    [
        ("away", "the backend is away", False),
        ("bug", "probe failed", True),
        ("read-only", "probe failed: /secret: Read-only file system", True),
    ],
)
def test_a_start_that_fails_says_why_and_gives_everything_back(
    tmp_path: Path, order: str, words: str, traceback: bool
) -> None:
    with process(tmp_path, f"probe.start={order}", ready=False) as probe:
        assert probe.end() == 1
        (error,) = [line for line in probe.lines() if line["level"] == "error"]
        assert words in error["message"]
        assert ("exception" in error) is traceback
        assert probe.popen.stdout is not None
        assert probe.popen.stdout.read() == "stopped\n"
        assert not probe.announce.exists()


def test_while_it_loads_a_service_is_alive_but_not_started_and_can_be_stopped(tmp_path: Path) -> None:
    port = free_port()
    stale = tmp_path / "run" / "probe.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    with process(tmp_path, "probe.start=sleep 60", f"server.health_port={port}", ready=False) as probe:
        probe.wait_until(lambda: not stale.exists())
        at = f"127.0.0.1:{port}"
        with grpc.insecure_channel(at) as channel:
            grpc.channel_ready_future(channel).result(10)
        statuses = [health(at, name) for name in ("liveness", "startup", "readiness", "")]
        assert statuses == ["SERVING", "NOT_SERVING", "NOT_SERVING", "NOT_SERVING"]
        probe.popen.send_signal(signal.SIGTERM)
        assert probe.end(3) == 0
        assert probe.messages()[-1] == "stopped"


def test_who_calls_during_the_load_is_served_after_it() -> None:
    async def main() -> None:
        port = free_port()
        settings = ProbeSettings.model_validate(
            {"server": {"port": port, "notice_seconds": 0}, "probe": {"start": "sleep 0.5"}}
        )

        async def call() -> None:
            async with Client(f"127.0.0.1:{port}") as client:
                await asyncio.sleep(0.2)
                await client.given(timeout=5).score("ok")

        early = asyncio.ensure_future(call())
        async with serving(Probe(settings.probe), settings):
            await early

    asyncio.run(main())


@pytest.mark.field
@pytest.mark.parametrize("seconds", [2.5])  # gRPC's handshake times out after one second
def test_a_caller_without_patience_waits_for_a_service_that_loads(seconds: float) -> None:
    """It ended with UNAVAILABLE, "timed out before receiving SETTINGS frame"."""

    async def main() -> None:
        port = free_port()
        settings = ProbeSettings.model_validate(
            {"server": {"port": port, "notice_seconds": 0}, "probe": {"start": f"sleep {seconds}"}}
        )

        async def call(**options: Any) -> None:
            async with Client(f"127.0.0.1:{port}", **options) as client:
                await asyncio.sleep(0.2)
                await client.given(timeout=30).score("ok")

        early = [asyncio.ensure_future(call(**options)) for options in ({}, {"health_service": SCORER})]
        async with serving(Probe(settings.probe), settings):
            await asyncio.gather(*early)

    asyncio.run(main())


@pytest.mark.field
@pytest.mark.parametrize(("order", "held", "code"), [("away", 9, "UNAVAILABLE"), ("sleep 1", 0, "RESOURCE_EXHAUSTED")])
def test_who_waits_for_a_load_hears_how_it_ended(order: str, held: int, code: str) -> None:
    async def main() -> None:
        port = free_port()
        settings = ProbeSettings.model_validate(
            {"server": {"port": port}, "admission": {"max_queue": held}, "probe": {"start": f"later {order}"}}
        )
        async with Client(f"127.0.0.1:{port}") as client:

            async def call() -> None:
                await asyncio.sleep(0.2)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await client.given(timeout=20).score("ok")
                assert caught.value.code().name == code

            early = asyncio.ensure_future(call())
            with contextlib.suppress(Unavailable):
                async with serving(Probe(settings.probe), settings):
                    pass
            await early

    asyncio.run(main())


def test_a_failed_start_in_process_leaves_no_port() -> None:
    async def main() -> None:
        port = free_port()
        settings = ProbeSettings.model_validate({"server": {"port": port}, "probe": {"start": "bug"}})
        probe = Probe(settings.probe)
        with pytest.raises(ZeroDivisionError):
            async with serving(probe, settings):
                pass
        assert probe.stopped == 1
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))

    asyncio.run(main())
