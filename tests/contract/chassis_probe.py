"""A small real service for the chassis' tests: the text of a request tells it what to do.

As a program: `python chassis_probe.py [section.key=value ...]` serves it as a process.
"""

import asyncio
import collections
import contextlib
import copy
import errno
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from prometheus_client import REGISTRY
from pydantic import Field
from sightline.channel import open_aio_channel
from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline.sampler.v1 import sampler_pb2 as sampler
from sightline.sampler.v1 import sampler_pb2_grpc as sampler_grpc
from sightline.scorer.v1 import scorer_pb2 as scorer
from sightline.scorer.v1 import scorer_pb2_grpc as scorer_grpc
from sightline_chassis import logs
from sightline_chassis.process import Addresses, serve, serving
from sightline_chassis.service import Service
from sightline_chassis.settings import Section, ServiceSettings, load_settings

SCORER = "sightline_scorer.v1.ScorerService"
SAMPLER = "sightline_sampler.v1.SamplerService"


class BehaviourSettings(Section):
    """How the probe starts and stops."""

    start: str = Field(default="", description="Order done by start().")
    stop_seconds: float = Field(default=0, ge=0, description="How long stop() takes.")


class ProbeSettings(ServiceSettings):
    """Settings of the probe."""

    probe: BehaviourSettings = Field(default=BehaviourSettings(), description="How it behaves.")


class Probe(Service):
    """Obeys orders; `seen` counts the orders that started, `ended` records how each ended."""

    name = "probe"
    proto_services = (SCORER, SAMPLER)
    unadmitted = (f"{SCORER}/FindMissingImages",)

    def __init__(self, behaviour: BehaviourSettings | None = None) -> None:
        self.behaviour = behaviour or BehaviourSettings()
        self.seen: collections.Counter[str] = collections.Counter()
        self.ended: list[str] = []
        self.why: str | None = None
        self.beyond_help: str | None = None
        self.draining = asyncio.Event()
        self.stopped = 0

    async def start(self) -> None:
        """Obey the order in the settings, if there is one."""
        if self.behaviour.start:
            await self.obey(self.behaviour.start, None)

    def register(self, server: grpc.aio.Server) -> None:
        """Register the scorer's and the sampler's service."""
        self.server = server
        scorer_grpc.add_ScorerServiceServicer_to_server(_Scorer(self), server)
        sampler_grpc.add_SamplerServiceServicer_to_server(_Sampler(self), server)

    async def ready(self) -> str | None:
        """The value set in the settings."""
        if self.why == "raise":
            raise RuntimeError("no backend")
        return self.why

    def broken(self) -> str | None:
        """The value set in the settings."""
        return self.beyond_help

    async def drain(self) -> None:
        """End all watches."""
        self.draining.set()

    async def stop(self) -> None:
        """Stop slowly."""
        await asyncio.sleep(self.behaviour.stop_seconds)
        self.stopped += 1
        print("stopped", flush=True)

    async def obey(self, order: str, context: Any) -> None:
        """Obey an order: a word, and a number for some words."""
        word, _, rest = order.partition(" ")
        self.seen[word] += 1
        try:
            match word:
                case "sleep":
                    await asyncio.sleep(float(rest))
                case "later":
                    await asyncio.sleep(0.7)
                    await self.obey(rest, context)
                case "block":
                    time.sleep(float(rest))
                case "refuse":
                    raise InvalidInput("no such thing", reason="NO_SUCH_THING", metadata={"given": "x"})
                case "long":
                    raise PreconditionFailed("界" * 20_000, metadata={"facts": "é" * 20_000})
                case "away":
                    raise Unavailable("the backend is away", retry_after=0.3)
                case "flaky":
                    if self.seen[word] < int(rest):
                        raise Unavailable("not yet")
                case "bug":
                    raise ZeroDivisionError("a secret of the service")
                case "full":
                    raise OSError(errno.ENOSPC, "No space left on device", "/secret")
                case "full-inside":
                    raise RuntimeError("safetensors: I/O error: No space left on device (os error 28)")
                case "read-only":
                    raise OSError(errno.EROFS, "Read-only file system", "/secret")
                case "cancelled":
                    task = asyncio.create_task(asyncio.sleep(9))
                    task.cancel()
                    await task
                case "group":
                    async with asyncio.TaskGroup() as group:
                        group.create_task(asyncio.sleep(60))
                        group.create_task(self.obey("refuse", context))
                case "abort":
                    await context.abort(grpc.StatusCode.ABORTED, "by hand")
                case "abort-twice":
                    with contextlib.suppress(Exception):
                        await context.abort(grpc.StatusCode.ABORTED, "by hand")
                    raise ValueError("afterwards")
                case "code":
                    context.set_code(grpc.StatusCode.OUT_OF_RANGE)
                    context.set_details("by code")
                case "crash":
                    self.crash = asyncio.create_task(self.server.stop(None))
                case "watch":
                    await self.draining.wait()
            self.ended.append(f"{word} done")
        except asyncio.CancelledError:
            self.ended.append(f"{word} cancelled")
            raise


class _Scorer(scorer_grpc.ScorerServiceServicer):
    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    async def Score(self, request: scorer.ScoreRequest, context: Any) -> Any:
        await self._probe.obey(request.texts[0], context)
        if request.texts[0] == "wrong type":
            return "a string"
        return scorer.ScoreResponse(image_sha256=bytes(int(request.texts[1]) if len(request.texts) > 1 else 0))

    async def ScoreStream(self, items: AsyncIterator[scorer.ScoreStreamRequest], context: Any) -> AsyncIterator[Any]:
        async for item in items:
            await self._probe.obey(item.request.texts[0], context)
            yield scorer.ScoreStreamResponse(id=item.id)

    async def UploadImages(self, pieces: AsyncIterator[scorer.UploadImagesRequest], context: Any) -> Any:
        async for piece in pieces:
            await self._probe.obey(piece.chunk.decode(), context)
        return scorer.UploadImagesResponse()

    async def FindMissingImages(self, request: Any, context: Any) -> Any:
        return scorer.FindMissingImagesResponse(sha256=[logs.request_id.get().encode()])

    # ListModels stays as in the generated servicer.


class _Sampler(sampler_grpc.SamplerServiceServicer):
    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    async def Sample(self, request: sampler.SampleRequest, context: Any) -> AsyncIterator[Any]:
        try:
            for _ in range(request.num_candidates):
                yield sampler.SampleResponse()
            await self._probe.obey(request.prompt, context)
            yield sampler.SampleResponse()
        finally:
            self._probe.ended.append("generator closed")

    async def GetPolicy(self, request: Any, context: Any) -> Any:
        raise NotImplementedError("torch says that often")


class Client:
    """Stubs of the probe over one channel; `score("order")` is the shortest call."""

    def __init__(self, target: str, **options: Any) -> None:
        self.channel = open_aio_channel(target, **options)
        self.call: dict[str, Any] = {}
        self.scorer = scorer_grpc.ScorerServiceStub(self.channel)
        self.sampler = sampler_grpc.SamplerServiceStub(self.channel)

    def given(self, **call: Any) -> "Client":
        """The same client, with timeout or metadata for each call."""
        same = copy.copy(self)
        same.call = call
        return same

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    def score(self, order: str, *texts: str) -> Any:
        """A unary call."""
        return self.scorer.Score(scorer.ScoreRequest(texts=[order, *texts]), **self.call)

    def sample(self, order: str, count: int = 1) -> Any:
        """A server stream of `count` messages, then the order, then one more message."""
        return self.sampler.Sample(sampler.SampleRequest(prompt=order, num_candidates=count), **self.call)

    def upload(self, *orders: str) -> Any:
        """A client stream."""
        return self.scorer.UploadImages(
            iter([scorer.UploadImagesRequest(chunk=o.encode()) for o in orders]), **self.call
        )

    def converse(self, *orders: str) -> Any:
        """A bidirectional stream."""
        requests = [scorer.ScoreRequest(texts=[order]) for order in orders]
        items = [scorer.ScoreStreamRequest(id=i, request=request) for i, request in enumerate(requests)]
        return self.scorer.ScoreStream(iter(items), **self.call)


@contextlib.asynccontextmanager
async def probing(**sections: dict[str, Any]) -> AsyncIterator[tuple[Probe, Client, Addresses]]:
    """The probe, served in this process, and a client of it."""
    sections["server"] = {"notice_seconds": 0, "drain_seconds": 2, **sections.get("server", {})}
    settings = ProbeSettings.model_validate(sections)
    probe = Probe(settings.probe)
    async with serving(probe, settings) as at, Client(at.grpc) as client:
        yield probe, client, at


async def eventually(condition: Any, seconds: float = 5) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        await asyncio.sleep(0.01)


def growth(name: str, **labels: str) -> Callable[[], dict[str, int]]:
    """A function that returns the growth of each series of the metric with these labels, by its other labels."""
    before = _values(name, labels)
    return lambda: {
        key: value - before.get(key, 0) for key, value in _values(name, labels).items() if value != before.get(key, 0)
    }


def _values(name: str, labels: dict[str, str]) -> dict[str, int]:
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples if sample.name == name]
    return {
        " ".join(value for key, value in sorted(sample.labels.items()) if key not in labels): int(sample.value)
        for sample in samples
        if labels.items() <= sample.labels.items()
    }


if __name__ == "__main__":
    chosen = load_settings(ProbeSettings, service="probe", overrides=sys.argv[1:])
    sys.exit(serve(Probe(chosen.probe), chosen))
