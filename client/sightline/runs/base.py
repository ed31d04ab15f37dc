"""The common part of the trainer's clients, sync and async; `sightline.base` explains the pattern."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sightline.base import BaseClient, Flow, Rpc
from sightline.convert import from_message
from sightline.errors import DeadlineExceeded, SightlineError
from sightline.patience import Tries
from sightline.runs.types import Run, RunComparison, RunEvent, RunPicture, RunPolicy
from sightline.runs.v1 import trainer_pb2 as pb
from sightline.runs.v1 import trainer_pb2_grpc as pb_grpc

_WATCH_SECONDS = 3600.0


class BaseRunClient(BaseClient):
    """Builds requests and reads answers; the client makes the calls.

    All calls are safe to repeat: a start carries its request id, stopping a stopping run does nothing, and so does
    resuming a running one.
    """

    _SERVICE = "sightline_trainer.v1.RunService"
    _STUB = pb_grpc.RunServiceStub

    def _start(
        self,
        recipe_name: str | None,
        recipe_text: str | None,
        overrides: Sequence[str],
        request_id: str | None,
        run_id: str,
        timeout: float | None,
    ) -> Flow[Run]:
        request = pb.StartRunRequest(
            request_id=request_id or str(uuid.uuid4()),
            recipe_name=recipe_name,
            recipe_text=recipe_text,
            overrides=overrides,
            run_id=run_id,
        )
        return from_message((yield Rpc("StartRun", request, timeout)).run, Run)

    def _get(self, run_id: str, timeout: float | None) -> Flow[Run]:
        return from_message((yield Rpc("GetRun", pb.GetRunRequest(run_id=run_id), timeout)).run, Run)

    def _page(self, token: str, timeout: float | None) -> Flow[tuple[list[Run], str]]:
        page = yield Rpc("ListRuns", pb.ListRunsRequest(page_token=token), timeout)
        return [from_message(run, Run) for run in page.runs], page.next_page_token

    def _stop(self, run_id: str, now: bool, timeout: float | None) -> Flow[Run]:
        return from_message((yield Rpc("StopRun", pb.StopRunRequest(run_id=run_id, now=now), timeout)).run, Run)

    def _resume(self, run_id: str, timeout: float | None) -> Flow[Run]:
        return from_message((yield Rpc("ResumeRun", pb.ResumeRunRequest(run_id=run_id), timeout)).run, Run)

    def _pictures(self, run_id: str, iteration: int, limit: int, timeout: float | None) -> Flow[list[RunPicture]]:
        request = pb.ListRunPicturesRequest(run_id=run_id, iteration=iteration, limit=limit)
        answer = yield Rpc("ListRunPictures", request, timeout)
        return [from_message(picture, RunPicture) for picture in answer.pictures]

    def _policies(self, run_id: str, timeout: float | None) -> Flow[list[RunPolicy]]:
        answer = yield Rpc("ListRunPolicies", pb.ListRunPoliciesRequest(run_id=run_id), timeout)
        return [from_message(policy, RunPolicy) for policy in answer.policies]

    def _compare(self, run_id: str, other_run_id: str, limit: int, timeout: float | None) -> Flow[RunComparison]:
        request = pb.CompareRunsRequest(run_id=run_id, other_run_id=other_run_id, limit=limit)
        return from_message((yield Rpc("CompareRuns", request, timeout)), RunComparison)

    def _watched(self, run_id: str, from_event: int) -> Watching:
        def start(number: int) -> Any:
            request = pb.WatchRunRequest(run_id=run_id, from_event=number)
            return self._method("WatchRun")(request, timeout=_WATCH_SECONDS)

        return Watching(start, from_event, Tries(self.patience, budget=self._budget))


class Watching:
    """A watch over all its calls: a call that broke or timed out is followed by one that starts at the next event."""

    def __init__(self, start: Any, from_event: int, tries: Tries) -> None:
        self._start, self._next, self._tries = start, from_event, tries

    def call(self) -> Any:
        """The request for events from the next one on."""
        return self._start(self._next)

    def event(self, message: pb.WatchRunResponse) -> RunEvent:
        """What came."""
        self._tries.progressed()
        self._next = message.event + 1
        return from_message(message, RunEvent)

    def wait_after(self, error: SightlineError) -> float:
        """Seconds until the next call; raises the error if there is none."""
        if isinstance(error, DeadlineExceeded):
            self._tries.progressed()
            return 0.0  # the service is there and has no events yet, however long that lasts
        return self._tries.wait_after(error)
