"""The trainer as a service: RunService over a directory of runs."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from sightline.convert import to_message
from sightline.errors import InvalidInput, NotFound, PreconditionFailed, Unavailable
from sightline.runs import Run, RunEvent
from sightline.runs.v1 import trainer_pb2 as pb
from sightline.runs.v1 import trainer_pb2_grpc as pb_grpc
from sightline_chassis.process import run
from sightline_chassis.service import Service

from sightline_trainer.events import Event, EventReader
from sightline_trainer.run_queue import UNFINISHED, RunQueue, recipes_in
from sightline_trainer.runs import RunDirectory
from sightline_trainer.settings import TrainerSettings
from sightline_trainer.summaries import RunSummary, Summaries, readable_state

if TYPE_CHECKING:
    from sightline_trainer.report.history import History

MOST_RUNS_OF_A_PAGE = 1000
EVENTS_AT_ONCE = 500
T = TypeVar("T")


def describe(run: RunSummary) -> pb.Run:
    """A run as its directory describes it."""
    known = Run(
        id=run.id,
        state=run.state,
        recipe=run.recipe,
        iteration=run.iteration,
        iterations=run.iterations,
        policy_version=run.policy_version,
        error=run.error,
        create_time=_utc(run.created),
        update_time=_utc(run.updated),
        reason=run.reason,
    )
    return to_message(known, pb.Run)


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


class RunServicer(pb_grpc.RunServiceServicer):
    """Answers calls from the run directories; the queue does the work."""

    def __init__(self, runs: RunQueue, settings: TrainerSettings) -> None:
        self.runs = runs
        self.settings = settings
        self.summaries = Summaries()
        self.draining = False

    async def StartRun(self, request: pb.StartRunRequest, context: Any) -> pb.StartRunResponse:
        def start() -> pb.Run:
            file = None
            if request.WhichOneof("recipe") == "recipe_name":
                known = recipes_in(self.settings.recipes)
                file = known.get(request.recipe_name)
                if file is None:
                    raise NotFound(
                        f"no recipe {request.recipe_name[:100]!r}; known are {', '.join(known) or 'none'}",
                        reason="RECIPE_NOT_FOUND",
                    )
            elif not request.recipe_text:
                raise InvalidInput("name a recipe or send its text", reason="RECIPE_MISSING")
            overrides = list(request.overrides)
            return self._described(
                self.runs.submit(request.request_id, file, request.recipe_text, overrides, request.run_id)
            )

        return pb.StartRunResponse(run=await asyncio.to_thread(start))

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        run = await asyncio.to_thread(lambda: self._described(self.runs.get(request.run_id)))
        return pb.GetRunResponse(run=run)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        return await asyncio.to_thread(self._list, request)

    def _list(self, request: pb.ListRunsRequest) -> pb.ListRunsResponse:
        runs = self.runs.list()
        first = 0
        if request.page_token:
            ids = [run.id for run in runs]
            if request.page_token not in ids:
                raise InvalidInput("page_token is not from this service; start with an empty one", reason="PAGE_TOKEN")
            first = ids.index(request.page_token)
        if request.page_size < 0:
            raise InvalidInput("page_size must not be negative", reason="PAGE_SIZE")
        page = runs[first : first + min(request.page_size or self.settings.page_size, MOST_RUNS_OF_A_PAGE)]
        rest = runs[first + len(page) :]
        return pb.ListRunsResponse(runs=map(self._described, page), next_page_token=rest[0].id if rest else "")

    def _described(self, run: RunDirectory) -> pb.Run:
        return describe(self.summaries.of(run))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncIterator[pb.WatchRunResponse]:
        run, following = await asyncio.to_thread(self.runs.get, request.run_id), request.from_event
        reader = EventReader(run.events, following)
        while True:
            state = (await asyncio.to_thread(readable_state, run))["state"]  # read before the events
            events = await asyncio.to_thread(_some, reader)
            for number, event in events:
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
            if len(events) == EVENTS_AT_ONCE:
                continue
            if state not in UNFINISHED:
                return
            if self.draining:
                raise Unavailable(
                    f"the trainer is stopping; watch again from event {following}", reason="DRAINING", retry_after=5
                )
            await asyncio.sleep(0.2)

    async def StopRun(self, request: pb.StopRunRequest, context: Any) -> pb.StopRunResponse:
        run = await asyncio.to_thread(lambda: self._described(self.runs.stop(request.run_id, now=request.now)))
        return pb.StopRunResponse(run=run)

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        run = await asyncio.to_thread(lambda: self._described(self.runs.go_on(request.run_id)))
        return pb.ResumeRunResponse(run=run)

    async def ListRunPictures(self, request: pb.ListRunPicturesRequest, context: Any) -> pb.ListRunPicturesResponse:
        def read() -> pb.ListRunPicturesResponse:
            from sightline_trainer.report import answers

            found = answers.pictures(self._shown(request.run_id), request.iteration, request.limit)
            return pb.ListRunPicturesResponse(pictures=[to_message(each, pb.RunPicture) for each in found])

        return await _of_files(read)

    async def ListRunPolicies(self, request: pb.ListRunPoliciesRequest, context: Any) -> pb.ListRunPoliciesResponse:
        def read() -> pb.ListRunPoliciesResponse:
            from sightline_trainer.report import answers

            found = answers.policies(self._shown(request.run_id))
            return pb.ListRunPoliciesResponse(policies=[to_message(each, pb.RunPolicy) for each in found])

        return await _of_files(read)

    async def CompareRuns(self, request: pb.CompareRunsRequest, context: Any) -> pb.CompareRunsResponse:
        def read() -> pb.CompareRunsResponse:
            from sightline_trainer.report import answers

            one, other = (self._shown(each) for each in (request.run_id, request.other_run_id))
            return to_message(answers.compare(one, other, request.limit), pb.CompareRunsResponse)

        return await _of_files(read)

    def _shown(self, run_id: str) -> History:
        """A run whose test set callers may see: the settings may no longer allow its directory."""
        from sightline_trainer.report.history import History  # not loaded by an idle service: pictures and tables

        run = self.runs.get(run_id)
        recipe = run.recipe()
        if recipe is not None:
            self.runs.allowed.check_data({"data.test": recipe.data.test})
        return History.read(run.root)


async def _of_files(read: Callable[[], T]) -> T:
    """Read a run's files, in a thread.

    Raises:
        PreconditionFailed: RUN_UNREADABLE: their content is unexpected.
    """
    try:
        return await asyncio.to_thread(read)
    except (LookupError, TypeError, ValueError, OSError, RecursionError) as error:
        told = f"the run's files cannot be read by this version ({type(error).__name__}: {str(error)[:200]})"
        raise PreconditionFailed(told, reason="RUN_UNREADABLE") from error


def _some(reader: EventReader) -> list[tuple[int, Event]]:
    """The next events, a bounded number."""
    return list(islice(reader.read(), EVENTS_AT_ONCE))


class TrainerService(Service):
    """The trainer as a chassis service."""

    name = "trainer"
    proto_services = ("sightline_trainer.v1.RunService",)
    unadmitted = ("sightline_trainer.v1.RunService/WatchRun",)

    def __init__(self, settings: TrainerSettings) -> None:
        self.settings = settings
        self.runs = RunQueue(
            settings.runs,
            resume=settings.resume,
            connections=settings.connections,
            allowed=settings.allowed(),
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
    """Serve until SIGTERM; the current run is left unfinished and continues at the next start.

    See `sightline_chassis.process.run` for arguments and exit codes.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return run("trainer", TrainerSettings, TrainerService, config=config, overrides=overrides)
