"""RunClient over a scripted service: deadlines, and watches that go on."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from sightline.runs import RunClient
from sightline.runs import client as module
from sightline.runs.v1 import trainer_pb2 as pb
from sightline.runs.v1 import trainer_pb2_grpc as pb_grpc


class Scripted(pb_grpc.RunServiceServicer):
    """A run of five events, of which a watch hears two before nothing comes for long."""

    def __init__(self) -> None:
        self.watched_from: list[int] = []
        self.metadata: list[dict[str, Any]] = []
        self.deadlines: list[float] = []

    def _note(self, context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())

    def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        self._note(context)
        return pb.GetRunResponse(run=pb.Run(id=request.run_id))

    def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> Iterator[pb.WatchRunResponse]:
        self._note(context)
        self.watched_from.append(request.from_event)
        for number in range(request.from_event, 5)[:2]:
            yield pb.WatchRunResponse(event=number)
        if request.from_event < 3:
            grpc_wait(context)


def grpc_wait(context: Any) -> None:
    """Says nothing until the caller has gone."""
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait(10)


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, str]]:
    server, servicer = grpc.server(ThreadPoolExecutor(4)), Scripted()
    pb_grpc.add_RunServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_watch_goes_on_from_the_next_event_when_its_time_is_up(
    scripted: tuple[Scripted, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer, target = scripted
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.3)
    with RunClient(target) as client:
        assert [said.event for said in client.watch("run")] == [0, 1, 2, 3, 4]
    assert servicer.watched_from == [0, 2, 4]


def test_every_call_has_a_deadline_and_the_token(scripted: tuple[Scripted, str]) -> None:
    servicer, target = scripted
    with RunClient(target, timeout=7, token="a-token") as client:
        assert client.get("run").id == "run"
        next(client.watch("run"))
    assert [metadata["authorization"] for metadata in servicer.metadata] == ["Bearer a-token"] * 2
    assert 0 < servicer.deadlines[0] <= 7.1
    assert 0 < servicer.deadlines[1] < 4000
