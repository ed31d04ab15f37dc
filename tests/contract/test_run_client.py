"""RunClient over a scripted service: deadlines, and watches that continue."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from sightline.errors import Unavailable
from sightline.patience import ONCE
from sightline.runs import (
    AsyncRunClient,
    MetricChange,
    RecipeDifference,
    Run,
    RunClient,
    RunComparison,
    RunEvent,
    RunPicture,
    RunPolicy,
    RunText,
    TextSpan,
)
from sightline.runs import base as module
from sightline.runs.v1 import trainer_pb2 as pb
from sightline.runs.v1 import trainer_pb2_grpc as pb_grpc

EPOCH = datetime.fromtimestamp(0, UTC)


class Scripted(pb_grpc.RunServiceServicer):
    """A run of five events; a watch gets two of them, then nothing for a long time."""

    def __init__(self) -> None:
        self.watched_from: list[int] = []
        self.metadata: list[dict[str, Any]] = []
        self.deadlines: list[float] = []
        self.away = 0

    def _note(self, context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())

    def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        self._note(context)
        run = pb.Run(id=request.run_id, state=pb.RUN_STATE_RUNNING, policy_version=2)
        run.create_time.FromJsonString("2026-11-26T09:08:07.25Z")
        return pb.GetRunResponse(run=run)

    def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        if request.page_token:
            return pb.ListRunsResponse(runs=[pb.Run(id="c")])
        return pb.ListRunsResponse(runs=[pb.Run(id="a"), pb.Run(id="b")], next_page_token="c")

    def StartRun(self, request: pb.StartRunRequest, context: Any) -> pb.StartRunResponse:
        return pb.StartRunResponse(run=pb.Run(recipe=request.recipe_name, state=pb.RUN_STATE_QUEUED))

    def StopRun(self, request: pb.StopRunRequest, context: Any) -> pb.StopRunResponse:
        return pb.StopRunResponse(run=pb.Run(state=pb.RUN_STATE_STOPPED if request.now else pb.RUN_STATE_RUNNING))

    def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        return pb.ResumeRunResponse(run=pb.Run(state=pb.RUN_STATE_QUEUED))

    def ListRunPictures(self, request: pb.ListRunPicturesRequest, context: Any) -> pb.ListRunPicturesResponse:
        text = pb.RunText(text="a cat", wrong_spans=[pb.TextSpan(start=2, end=5)], wrong=["cat"])
        picture = pb.RunPicture(prompt_id=f"{request.run_id}/{request.iteration}/{request.limit}", image=b"png")
        picture.before.CopyFrom(text)
        picture.after.CopyFrom(pb.RunText(text="a dog", reward=0.0, tokens=2))
        picture.change = pb.PICTURE_CHANGE_BETTER
        return pb.ListRunPicturesResponse(pictures=[picture])

    def ListRunPolicies(self, request: pb.ListRunPoliciesRequest, context: Any) -> pb.ListRunPoliciesResponse:
        policy = pb.RunPolicy(version=2, parent_version=1, kind="lora", iteration=3, manifest_sha256=b"\xab" * 32)
        return pb.ListRunPoliciesResponse(policies=[policy])

    def CompareRuns(self, request: pb.CompareRunsRequest, context: Any) -> pb.CompareRunsResponse:
        return pb.CompareRunsResponse(
            recipe=[pb.RecipeDifference(key="dpo.beta", one="0.1")],
            metrics=[pb.MetricChange(metric="cover", one=0.5, change=0.0, clear=True)],
            unpaired=f"{request.run_id} and {request.other_run_id}",
        )

    def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> Iterator[pb.WatchRunResponse]:
        self._note(context)
        self.watched_from.append(request.from_event)
        for number in range(request.from_event, 5)[:2]:
            yield pb.WatchRunResponse(event=number, state=pb.RUN_STATE_RUNNING)
        if self.away:
            self.away -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        if request.from_event < 3:
            grpc_wait(context)


def grpc_wait(context: Any) -> None:
    """Send nothing until the caller has gone."""
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


def watched(kind: str, target: str, **options: Any) -> list[int]:
    """All events of a run, from the sync or the async client."""

    async def run() -> list[int]:
        async with AsyncRunClient(target, **options) as client:
            return [said.event async for said in client.watch("run")]

    if kind == "async":
        return asyncio.run(run())
    with RunClient(target, **options) as client:
        return [said.event for said in client.watch("run")]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_watch_goes_on_from_the_next_event_when_its_time_is_up(
    scripted: tuple[Scripted, str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    servicer, target = scripted
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.3)
    assert watched(kind, target) == [0, 1, 2, 3, 4]
    assert servicer.watched_from == [0, 2, 4]


def test_every_call_has_a_deadline_and_the_token(scripted: tuple[Scripted, str]) -> None:
    servicer, target = scripted
    with RunClient(target, timeout=7, token="a-token") as client:
        assert client.get("run").id == "run"
        next(client.watch("run"))
    assert [metadata["authorization"] for metadata in servicer.metadata] == ["Bearer a-token"] * 2
    assert 0 < servicer.deadlines[0] <= 7.1
    assert 0 < servicer.deadlines[1] < 4000


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_watch_outlives_a_trainer_that_is_away(scripted: tuple[Scripted, str], kind: str) -> None:
    servicer, target = scripted
    servicer.away = 3
    assert watched(kind, target) == [0, 1, 2, 3, 4]
    assert servicer.watched_from == [0, 2, 4, 5]
    servicer.away = 1
    with pytest.raises(Unavailable, match="away"):
        watched(kind, target, patience=ONCE)


def test_results_are_typed(scripted: tuple[Scripted, str]) -> None:
    async def run() -> tuple[Run, list[Run], Run]:
        async with AsyncRunClient(scripted[1]) as client:
            return await client.get("run"), [each async for each in client.list()], await client.start(recipe_name="x")

    with RunClient(scripted[1]) as client:
        got, listed, started = client.get("run"), list(client.list()), client.start(recipe_name="x")
        assert client.stop("run", now=True).state == "stopped"
        assert client.resume("run").state == "queued"
        assert next(client.watch("run")) == RunEvent(0, EPOCH, "running", 0, "", 0, 0, {}, "")
    assert asyncio.run(run()) == (got, listed, started)
    created = datetime(2026, 11, 26, 9, 8, 7, 250000, tzinfo=UTC)
    assert got == Run("run", "running", "", 0, 0, 2, "", created, EPOCH, "")
    assert [each.id for each in listed] == ["a", "b", "c"]
    assert (started.recipe, started.state) == ("x", "queued")


def test_pictures_policies_and_comparisons_are_typed(scripted: tuple[Scripted, str]) -> None:
    async def run() -> tuple[Any, Any, Any]:
        async with AsyncRunClient(scripted[1]) as client:
            return (
                await client.pictures("run", 3, limit=5),
                await client.policies("run"),
                await client.compare("a", "b"),
            )

    with RunClient(scripted[1]) as client:
        pictures, policies, compared = (
            client.pictures("run", 3, limit=5),
            client.policies("run"),
            client.compare("a", "b"),
        )
    assert asyncio.run(run()) == (pictures, policies, compared)
    before = RunText("a cat", None, 0, (TextSpan(2, 5),), ("cat",), ())
    assert pictures == [RunPicture("run/3/5", b"png", before, RunText("a dog", 0.0, 2, (), (), ()), "better")]
    assert policies == [RunPolicy(2, 1, "lora", 3, "ab" * 32)]
    assert compared == RunComparison(
        (RecipeDifference("dpo.beta", "0.1", None),),
        (MetricChange("cover", 0.5, None, 0.0, None, None, True),),
        "a and b",
        (),
    )
