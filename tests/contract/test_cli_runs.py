"""`sightline runs` over a scripted trainer: requests, output and exit codes."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from sightline.errors import SightlineError, to_status
from sightline.runs.v1 import trainer_pb2 as pb
from sightline.runs.v1 import trainer_pb2_grpc as pb_grpc
from sightline_cli.main import app
from typer.testing import CliRunner


class Scripted(pb_grpc.RunServiceServicer):
    """Three runs on pages of two; the second one failed."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.runs = {
            "c": pb.Run(id="c", state=pb.RUN_STATE_RUNNING, recipe="bpo", iteration=1, iterations=3, policy_version=4),
            "b": pb.Run(id="b", state=pb.RUN_STATE_FAILED, recipe="bpo", error="DiskFull: no room", reason="DISK_FULL"),
            "a": pb.Run(id="a", state=pb.RUN_STATE_SUCCEEDED, recipe="clip_dpo", iteration=3, iterations=3),
        }

    def _run(self, request: Any, context: Any) -> pb.Run:
        self.requests.append(request)
        if request.run_id not in self.runs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no run {request.run_id!r}")
        return self.runs[request.run_id]

    def StartRun(self, request: pb.StartRunRequest, context: Any) -> pb.StartRunResponse:
        self.requests.append(request)
        return pb.StartRunResponse(run=pb.Run(id=request.run_id or "made", state=pb.RUN_STATE_QUEUED))

    def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=self._run(request, context))

    def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        if not request.page_token:
            return pb.ListRunsResponse(runs=[self.runs["c"], self.runs["b"]], next_page_token="a")
        return pb.ListRunsResponse(runs=[self.runs[request.page_token]])

    def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> Iterator[pb.WatchRunResponse]:
        self.requests.append(request)
        for number in range(request.from_event, 3):
            yield pb.WatchRunResponse(event=number, stage="sample", iteration=1, done=number, total=2)

    def StopRun(self, request: pb.StopRunRequest, context: Any) -> pb.StopRunResponse:
        return pb.StopRunResponse(run=self._run(request, context))

    def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        run = self._run(request, context)
        if run.state == pb.RUN_STATE_SUCCEEDED:
            error = SightlineError("all iterations of run 'a' are done", reason="RUN_SUCCEEDED")
            error.code = grpc.StatusCode.FAILED_PRECONDITION
            details = to_status(error).SerializeToString()
            context.set_trailing_metadata((("grpc-status-details-bin", details),))
            context.abort(error.code, str(error))
        return pb.ResumeRunResponse(run=run)


@pytest.fixture
def trainer() -> Iterator[tuple[Scripted, str]]:
    server, servicer = grpc.server(ThreadPoolExecutor(4)), Scripted()
    pb_grpc.add_RunServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


def runs(trainer: tuple[Scripted, str], *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["runs", *arguments, "--trainer", trainer[1]])
    return result.exit_code, result.stdout, result.stderr


def test_all_pages_are_listed(trainer: tuple[Scripted, str]) -> None:
    code, said, _ = runs(trainer, "list", "--json")
    rows = json.loads(said)
    assert code == 0
    assert [(row["id"], row["state"], row["reason"]) for row in rows] == [
        ("c", "running", ""), ("b", "failed", "DISK_FULL"), ("a", "succeeded", ""),
    ]  # fmt: skip
    assert rows[0]["policy_version"] == 4
    assert "DiskFull" in runs(trainer, "list")[1]


def test_a_file_is_sent_as_text_and_a_name_as_name(trainer: tuple[Scripted, str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\n")
    assert runs(trainer, "start", str(file), "--set", "dpo.beta=0.2", "--run", "mine", "--request", "one")[0] == 0
    code, said, _ = runs(trainer, "start", "bpo", "--json")
    assert (code, json.loads(said)["id"]) == (0, "made")
    first, second = trainer[0].requests
    assert (first.recipe_text, list(first.overrides), first.run_id, first.request_id) == (
        "name: mine\n", ["dpo.beta=0.2"], "mine", "one",
    )  # fmt: skip
    assert (second.WhichOneof("recipe"), second.recipe_name) == ("recipe_name", "bpo")
    assert second.request_id


def test_a_watch_begins_where_it_is_told_and_fails_with_its_run(trainer: tuple[Scripted, str]) -> None:
    code, said, _ = runs(trainer, "watch", "a", "--json", "--from", "1")
    assert (code, [json.loads(line)["event"] for line in said.splitlines()]) == (0, [1, 2])
    code, said, wrong = runs(trainer, "watch", "b")
    assert (code, "no room" in wrong) == (1, True)


def test_stop_and_resume(trainer: tuple[Scripted, str]) -> None:
    assert runs(trainer, "stop", "c")[0] == runs(trainer, "stop", "c", "--now")[0] == 0
    assert [request.now for request in trainer[0].requests] == [False, True]
    assert runs(trainer, "resume", "b")[0] == 0
    code, _, wrong = runs(trainer, "resume", "a")
    assert (code, "are done" in wrong) == (2, True)
    assert runs(trainer, "resume", "no-such")[0] == 2
