"""The trainer as a service: RunService over a directory of runs."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from sightline.convert import to_message
from sightline.errors import InvalidInput, NotFound, Unavailable
from sightline.runs import Run, RunEvent
from sightline.runs.v1 import trainer_pb2 as pb
from sightline.runs.v1 import trainer_pb2_grpc as pb_grpc
from sightline_chassis.process import run
from sightline_chassis.service import Service

from sightline_trainer.events import EventReader
from sightline_trainer.files import read_json
from sightline_trainer.run_queue import UNFINISHED, RunQueue, recipes_in
from sightline_trainer.runs import RunDirectory
from sightline_trainer.settings import TrainerSettings

MOST_RUNS_OF_A_PAGE = 1000


def describe(run: RunDirectory) -> pb.Run:
    """A run as its directory tells it."""
    state, recipe = run.state(), run.recipe()
    rows = read_json(run.metrics) or []
    known = Run(
        id=run.id,
        state=state["state"],
        recipe=recipe.name if recipe else "",
        iteration=max(0, len(rows) - 1),
        iterations=recipe.iterations if recipe else 0,
        policy_version=int(rows[-1]["policy_version"]) if rows else 0,
        error=state.get("error", ""),
        create_time=_utc(state["created"]),
        update_time=_utc(state["updated"]),
        reason=state.get("reason", ""),
    )
    return to_message(known, pb.Run)


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


class RunServicer(pb_grpc.RunServiceServicer):
    """Answers from the run directories; the queue does the work."""

    def __init__(self, runs: RunQueue, settings: TrainerSettings) -> None:
        self.runs = runs
        self.settings = settings
        self.draining = False

    async def StartRun(self, request: pb.StartRunRequest, context: Any) -> pb.StartRunResponse:
        file, text = None, request.recipe_text
        if request.WhichOneof("recipe") == "recipe_name":
            known = recipes_in(self.settings.recipes)
            file = known.get(request.recipe_name)
            if file is None:
                raise NotFound(
                    f"no recipe {request.recipe_name!r}; known are {', '.join(known) or 'none'}",
                    reason="RECIPE_NOT_FOUND",
                )
        elif not text:
            raise InvalidInput("name a recipe or send its text", reason="RECIPE_MISSING")
        run = await asyncio.to_thread(
            self.runs.submit, request.request_id, file, text, list(request.overrides), request.run_id
        )
        return pb.StartRunResponse(run=describe(run))

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=describe(self.runs.get(request.run_id)))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        runs = self.runs.list()
        first = 0
        if request.page_token:
            ids = [run.id for run in runs]
            if request.page_token not in ids:
                raise InvalidInput("page_token is not of this service; begin with an empty one", reason="PAGE_TOKEN")
            first = ids.index(request.page_token)
        page = runs[first : first + min(request.page_size or self.settings.page_size, MOST_RUNS_OF_A_PAGE)]
        rest = runs[first + len(page) :]
        return pb.ListRunsResponse(runs=map(describe, page), next_page_token=rest[0].id if rest else "")

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncIterator[pb.WatchRunResponse]:
        run, following = self.runs.get(request.run_id), request.from_event
        reader = EventReader(run.events, following)
        while True:
            state = run.state()["state"]  # before the events: what ended the run is in them
            for number, event in reader.read():
                following = number + 1
                known = RunEvent(
                    event=number,
                    time=_utc(event.time),
                    state=state,
                    iteration=event.iteration,
                    stage=event.stage,
                    done=event.done,
                    total=event.total,
                    metrics=event.metrics,
                    message=event.message,
                )
                yield to_message(known, pb.WatchRunResponse)
            if state not in UNFINISHED:
                return
            if self.draining:
                raise Unavailable(
                    f"the trainer stops; watch again from event {following}", reason="DRAINING", retry_after=5
                )
            await asyncio.sleep(0.2)

    async def StopRun(self, request: pb.StopRunRequest, context: Any) -> pb.StopRunResponse:
        run = await asyncio.to_thread(self.runs.stop, request.run_id, now=request.now)
        return pb.StopRunResponse(run=describe(run))

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        return pb.ResumeRunResponse(run=describe(await asyncio.to_thread(self.runs.go_on, request.run_id)))


class TrainerService(Service):
    """The chassis' view of the trainer."""

    name = "trainer"
    proto_services = ("sightline_trainer.v1.RunService",)
    unadmitted = ("sightline_trainer.v1.RunService/WatchRun",)

    def __init__(self, settings: TrainerSettings) -> None:
        self.settings = settings
        self.runs = RunQueue(
            settings.runs,
            resume=settings.resume,
            connections=settings.connections,
            launchers=settings.launchers,
        )
        self.servicer = RunServicer(self.runs, settings)

    async def start(self) -> None:
        await asyncio.to_thread(self.runs.start)

    def register(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_RunServiceServicer_to_server(self.servicer, server)

    async def ready(self) -> str | None:
        return self.broken()

    def broken(self) -> str | None:
        return None if self.runs.alive() else "the thread that runs the loop has ended"

    async def drain(self) -> None:
        self.servicer.draining = True

    async def stop(self) -> None:
        await asyncio.to_thread(self.runs.close)


def main(config: Path | None, overrides: Sequence[str]) -> int:
    """Serve until SIGTERM; the run under way is left unfinished and goes on at the next start.

    See `sightline_chassis.process.run` for arguments and exit codes.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return run("trainer", TrainerSettings, TrainerService, config=config, overrides=overrides)
