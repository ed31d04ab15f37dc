"""The live page answers this machine's browser, and no name that a stranger points to it."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from field import controls
from sightline_trainer.report.live import LiveReport, server


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    directory: Path = tmp_path_factory.mktemp("run")
    with server(LiveReport(directory)) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield served.server_port
        served.shutdown()
        thread.join()


@pytest.mark.field
@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        *controls(
            (["127.0.0.1:{port}"], 200),
            (["localhost:{port}"], 200),
            (["LOCALHOST:{port}"], 200),
            (["localhost"], 200),
            (["[::1]:{port}"], 200),
            (["127.0.0.1:8080"], 200),  # through a tunnel
        ),
        (["evil.example:{port}"], 403),
        (["evil.example"], 403),
        (["127.0.0.1.evil.example:{port}"], 403),
        (["localhost.evil.example"], 403),
        (["localhost:{port}", "evil.example"], 403),
        ([""], 403),
        ([], 403),
    ],
)
def test_only_this_machines_names_are_answered(port: int, hosts: list[str], status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("GET", "/state", skip_host=True)
    for host in hosts:
        connection.putheader("Host", host.format(port=port))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == status
    assert (b"version" in answer.read()) == (status == 200)
    connection.close()
