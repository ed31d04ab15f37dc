"""A stream of candidates continues with the missing ones if the service is away or full."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from sightline.errors import Overloaded, SightlineError, Unavailable
from sightline.patience import Patience, Tries
from sightline.sampler import AsyncSampleStream, SampleStream
from sightline.sampler.v1 import sampler_pb2 as pb


class Call:
    """Candidates of these indices, then an error or the summary."""

    def __init__(self, indices: list[int], error: SightlineError | None) -> None:
        self._indices, self._error = indices, error

    def __iter__(self) -> Iterator[pb.SampleResponse]:
        for index in self._indices:
            ended = pb.FINISH_REASON_EOS
            yield pb.SampleResponse(candidate=pb.Candidate(index=index, policy_version=3, finish_reason=ended))
        if self._error is not None:
            raise self._error
        yield pb.SampleResponse(summary=pb.SampleSummary(policy_version=3))

    async def __aiter__(self) -> AsyncIterator[pb.SampleResponse]:
        for response in self:
            yield response

    def cancel(self) -> None:
        """There is nothing to cancel."""


class Service:
    """Answers calls in order, as the test orders."""

    def __init__(self, *errors: SightlineError) -> None:
        self.errors = list(errors)
        self.asked: list[pb.SampleRequest] = []

    def start(self, request: pb.SampleRequest, seconds: float) -> Call:
        self.asked.append(request)
        missing = list(request.indices) or list(range(request.num_candidates))
        return Call(missing[:1], self.errors.pop(0)) if self.errors else Call(missing, None)


def candidates(kind: type, service: Service, patience: float = 30) -> list[int]:
    stream = kind(service.start, pb.SampleRequest(num_candidates=4), Tries(Patience(seconds=patience), 60))

    async def run() -> list[int]:
        return [candidate.index async for candidate in stream]

    return [one.index for one in stream] if kind is SampleStream else asyncio.run(run())


@pytest.mark.parametrize("kind", [SampleStream, AsyncSampleStream])
def test_what_is_missing_is_asked_for_when_the_service_is_back_or_has_room(kind: type) -> None:
    service = Service(Overloaded("full", retry_after=0.01), Unavailable("away"), Overloaded("full", retry_after=0.01))
    assert candidates(kind, service) == [0, 1, 2, 3]
    assert [list(request.indices) for request in service.asked] == [[], [1, 2, 3], [2, 3], [3]]
    assert {request.policy.exact for request in service.asked[1:]} == {3}


@pytest.mark.parametrize("kind", [SampleStream, AsyncSampleStream])
@pytest.mark.parametrize(
    ("error", "patience"),
    [
        (Overloaded("too large"), 30),  # without a time to wait, because a retry would not help
        (Overloaded("over its limit", retry_after=40), 30),
        (Overloaded("full", retry_after=0.01), 0),
        (Unavailable("away"), 0),
    ],
)
def test_what_no_wait_helps_is_told_at_once(kind: type, error: SightlineError, patience: float) -> None:
    service = Service(error)
    with pytest.raises(type(error), match=error.message):
        candidates(kind, service, patience)
    assert len(service.asked) == 1


@pytest.mark.parametrize("kind", [SampleStream, AsyncSampleStream])
def test_a_stream_that_is_closed_while_it_waits_asks_no_more(kind: type) -> None:
    service = Service(Overloaded("full", retry_after=0.3))
    stream = kind(service.start, pb.SampleRequest(num_candidates=4), Tries(Patience(seconds=30), 60))
    threading.Timer(0.1, stream.close).start()

    async def run() -> None:
        async for _ in stream:
            pass

    with pytest.raises(Overloaded, match="full"):
        list(stream) if kind is SampleStream else asyncio.run(run())
    assert len(service.asked) == 1


def test_a_stream_that_is_closed_while_it_waits_does_not_wait_on() -> None:
    service = Service(Overloaded("full", retry_after=23))
    stream = SampleStream(service.start, pb.SampleRequest(num_candidates=4), Tries(Patience(seconds=30), 60))
    threading.Timer(0.1, stream.close).start()
    began = time.monotonic()
    with pytest.raises(Overloaded, match="full"):
        list(stream)
    assert time.monotonic() - began < 10
