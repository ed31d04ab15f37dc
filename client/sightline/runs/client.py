"""RunClient: start, watch and stop alignment runs from anywhere. Light: grpc and protobuf only."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from sightline.channel import Tls, Token, open_channel
from sightline.errors import DeadlineExceeded, typed_errors
from sightline.runs.v1 import trainer_pb2 as pb
from sightline.runs.v1 import trainer_pb2_grpc as pb_grpc

T = TypeVar("T")

_SERVICE = "sightline_trainer.v1.RunService"
# All may run twice: a start carries its request id; a stop of a run that stops is none, nor a resume of one that runs.
_RETRY = [f"{_SERVICE}/{method}" for method in ("StartRun", "GetRun", "ListRuns", "WatchRun", "StopRun", "ResumeRun")]
_WATCH_SECONDS = 3600.0


class RunClient:
    """Talks to a RunService.

    Every method raises ``sightline.errors.SightlineError`` subclasses, named for what went wrong.
    """

    def __init__(
        self, target: str, *, timeout: float = 30.0, tls: Tls | None = None, token: str | Token | None = None
    ) -> None:
        """``target`` is a gRPC target, such as ``127.0.0.1:50071`` or ``dns:///trainer:50071``; ``timeout`` is the
        deadline of each call in seconds; ``tls`` encrypts, and ``token`` is sent with every call."""
        self._channel = open_channel(target, tls=tls, token=token, retry=_RETRY, health_service=_SERVICE)
        self._stub = pb_grpc.RunServiceStub(self._channel)
        self._timeout = timeout

    def __enter__(self) -> RunClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def start(
        self,
        *,
        recipe_name: str | None = None,
        recipe_text: str | None = None,
        overrides: Sequence[str] = (),
        request_id: str | None = None,
        run_id: str = "",
    ) -> pb.Run:
        """Start a run of a recipe that the service knows, or of a recipe's text. The same ``request_id`` twice is one
        run; without one a new run starts."""
        request = pb.StartRunRequest(
            request_id=request_id or str(uuid.uuid4()),
            recipe_name=recipe_name,
            recipe_text=recipe_text,
            overrides=overrides,
            run_id=run_id,
        )
        return self._call(self._stub.StartRun, request).run

    def get(self, run_id: str) -> pb.Run:
        """Describe a run."""
        return self._call(self._stub.GetRun, pb.GetRunRequest(run_id=run_id)).run

    def list(self) -> Iterator[pb.Run]:
        """All runs, newest first, page by page."""
        token = ""
        while True:
            page = self._call(self._stub.ListRuns, pb.ListRunsRequest(page_token=token))
            yield from page.runs
            token = page.next_page_token
            if not token:
                return

    def watch(self, run_id: str, *, from_event: int = 0) -> Iterator[pb.WatchRunResponse]:
        """A run's events from a given one on, until it ends, however long that takes."""
        while True:
            request = pb.WatchRunRequest(run_id=run_id, from_event=from_event)
            try:
                with typed_errors():
                    for said in self._stub.WatchRun(request, timeout=_WATCH_SECONDS):
                        yield said
                        from_event = said.event + 1
                    return
            except DeadlineExceeded:
                continue  # from the next event on

    def stop(self, run_id: str, *, now: bool = False) -> pb.Run:
        """Stop a run after the stage under way, or now."""
        return self._call(self._stub.StopRun, pb.StopRunRequest(run_id=run_id, now=now)).run

    def resume(self, run_id: str) -> pb.Run:
        """Let a run that was stopped or has failed go on from its last finished stage.

        Raises:
            PreconditionFailed: all its iterations are done.
        """
        return self._call(self._stub.ResumeRun, pb.ResumeRunRequest(run_id=run_id)).run

    def _call(self, method: Callable[..., T], request: object) -> T:
        with typed_errors():
            return method(request, timeout=self._timeout)
