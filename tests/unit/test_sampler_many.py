"""Many pairs through the sampler's SDK, over a gRPC server that answers as the test orders."""

import asyncio
import io
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_server import abort, listening
from sightline.errors import DeadlineExceeded, InvalidInput, Overloaded, SightlineError, Unavailable
from sightline.patience import Patience
from sightline.sampler import AsyncSamplerClient, Outcome, Pair, SamplerClient, Samples
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.v1 import sampler_pb2_grpc

NAME = "sightline_sampler.v1.SamplerService"
PICTURE = b"no image, but the scripted sampler does not look"


class Scripted(sampler_pb2_grpc.SamplerServiceServicer):
    """A prompt is an order: "ok ..."; "broken N", N times after its first candidate; "full" for 25 s; "refuse";
    "sleep SECONDS". A candidate's text is the prompt."""

    def __init__(self) -> None:
        self.asked: dict[str, list[pb.SampleRequest]] = defaultdict(list)
        self.running = self.most_running = self.cancelled = 0
        self._lock = threading.Lock()

    def Sample(self, request: pb.SampleRequest, context: Any) -> Iterator[pb.SampleResponse]:
        with self._lock:
            self.asked[request.prompt].append(request)
            tries = len(self.asked[request.prompt])
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            yield from self._sample(request, context, tries)
        except SightlineError as error:
            abort(context, error)
        finally:
            with self._lock:
                self.running -= 1

    def _sample(self, request: pb.SampleRequest, context: Any, tries: int) -> Iterator[pb.SampleResponse]:
        order, _, argument = request.prompt.partition(" ")
        if order == "refuse":
            raise InvalidInput("refused", reason="PROMPT_TOO_LONG")
        if order == "full":
            raise Overloaded("full", retry_after=25)
        if order == "sleep":
            for _ in range(int(float(argument) * 100)):
                if not context.is_active():
                    with self._lock:
                        self.cancelled += 1
                    return
                time.sleep(0.01)
        for index in request.indices or range(request.num_candidates):
            ended = pb.FINISH_REASON_EOS
            yield pb.SampleResponse(candidate=pb.Candidate(index=index, text=request.prompt, finish_reason=ended))
            if order == "broken" and tries <= int(argument):
                raise Unavailable("broken", retry_after=0.01)
        yield pb.SampleResponse(summary=pb.SampleSummary(engine="scripted"))


@pytest.fixture
def there() -> Iterator[tuple[Scripted, str]]:
    servicer = Scripted()
    with listening(sampler_pb2_grpc.add_SamplerServiceServicer_to_server, servicer, NAME) as address:
        yield servicer, address


@pytest.fixture(params=["sync", "async"])
def many(request: pytest.FixtureRequest, there: tuple[Scripted, str]) -> Callable[..., list[Outcome]]:
    """`sample_many` through the sync and the async client."""

    def through_sync(*args: Any, **options: Any) -> list[Outcome]:
        with SamplerClient(there[1]) as client:
            return list(client.sample_many(*args, **options))

    def through_async(*args: Any, **options: Any) -> list[Outcome]:
        async def run() -> list[Outcome]:
            async with AsyncSamplerClient(there[1]) as client:
                return [outcome async for outcome in client.sample_many(*args, **options)]

        return asyncio.run(run())

    return through_sync if request.param == "sync" else through_async


def test_many_come_in_order_each_with_its_own_outcome(many: Callable[..., list[Outcome]]) -> None:
    pairs: list[Any] = [(PICTURE, f"ok {n}") if n % 3 else (None, "refuse") for n in range(30)]
    pairs[4] = (PICTURE, "sleep 0.2")
    pairs[5] = ("/nowhere/at/all.png", "ok 5")
    pairs[7] = (PICTURE, "ok 7", {"n": -1})
    pairs[8] = (PICTURE, 8)
    pairs[10] = ([PICTURE, 17], "ok 10")
    seen: list[tuple[int, int | None]] = []
    outcomes = many(pairs, 2, max_in_flight=8, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(n + 1, 30) for n in range(30)]
    for n, outcome in enumerate(outcomes):
        if n in (5, 7, 8, 10) or n % 3 == 0:
            assert isinstance(outcome, InvalidInput), n
        else:
            assert isinstance(outcome, Samples)
            assert [candidate.text for candidate in outcome.candidates] == [pairs[n][1]] * 2


def test_options_of_a_pair_come_before_those_of_all(
    there: tuple[Scripted, str], many: Callable[..., list[Outcome]]
) -> None:
    own = {"n": 3, "seed": 9, "temperature": 0.0, "request_id": "mine"}
    pairs = [(PICTURE, "ok all"), (PICTURE, "ok own", own), (None, "ok none", None), (None, "ok empty", {})]
    many(pairs, 2, seed=1, top_k=5, request_id="run")
    found = {prompt: request for prompt, (request,) in there[0].asked.items()}
    assert [found[pair[1]].num_candidates for pair in pairs] == [2, 3, 2, 2]
    assert [found[pair[1]].seed for pair in pairs] == [1, 9, 1, 1]
    assert [found[pair[1]].params.temperature for pair in pairs] == [1, 0, 1, 1]
    assert [found[pair[1]].params.top_k for pair in pairs] == [5] * 4
    assert [found[pair[1]].request_id for pair in pairs] == ["run-0", "mine", "run-2", "run-3"]
    assert [found[pair[1]].HasField("image") for pair in pairs] == [True, True, False, False]
    assert own == {"n": 3, "seed": 9, "temperature": 0.0, "request_id": "mine"}


def test_an_option_that_there_is_not_is_a_type_error(many: Callable[..., list[Outcome]]) -> None:
    with pytest.raises(TypeError, match="temprature"):
        many([(PICTURE, "ok 1")], 2, temprature=1.0)


def test_what_breaks_off_is_asked_for_again_as_sample_does(
    there: tuple[Scripted, str], many: Callable[..., list[Outcome]]
) -> None:
    first, second = many([(PICTURE, "broken 2"), (PICTURE, "ok 1")], 4, seed=3)
    assert isinstance(first, Samples)
    assert isinstance(second, Samples)
    assert [candidate.index for candidate in first.candidates] == [0, 1, 2, 3]
    asked = there[0].asked["broken 2"]
    assert [list(request.indices) for request in asked] == [[], [1, 2, 3], [2, 3]]
    assert len({request.request_id for request in asked}) == 1
    assert len(there[0].asked["ok 1"]) == 1


def test_a_pair_that_runs_out_of_patience_or_time_fails_alone(there: tuple[Scripted, str]) -> None:
    slow = (PICTURE, "sleep 60", {"timeout": 0.3})
    pairs: list[Pair] = [slow, (PICTURE, "broken 9"), (PICTURE, "ok 1")]
    with SamplerClient(there[1], patience=Patience(seconds=0)) as client:
        late, broken, fine = client.sample_many(pairs, 4)
    assert isinstance(late, DeadlineExceeded)
    assert isinstance(broken, Unavailable)
    assert isinstance(fine, Samples)


def test_a_picture_of_pillow_may_recur(there: tuple[Scripted, str], many: Callable[..., list[Outcome]]) -> None:
    """Its first use loads it from its file, and no two threads may do that at once."""
    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((300, 300), 50).save(file, "PNG")
    picture = Image.open(file)
    assert all(isinstance(outcome, Samples) for outcome in many([(picture, f"ok {n}") for n in range(20)], 1))
    assert len({request.image.content for (request,) in there[0].asked.values()}) == 1


def test_no_more_than_asked_for_is_in_flight_or_read(there: tuple[Scripted, str]) -> None:
    read = 0

    def pairs() -> Iterator[Pair]:
        nonlocal read
        for n in itertools.count():
            read += 1
            yield (PICTURE, f"sleep 0.0{n % 2}")

    async def run() -> None:
        async with AsyncSamplerClient(there[1]) as client:
            outcomes = client.sample_many(pairs(), 1, max_in_flight=5)
            for done in range(1, 31):
                assert isinstance(await anext(outcomes), Samples)
                assert read - done <= 5
            await outcomes.aclose()  # type: ignore[attr-defined]

    with SamplerClient(there[1]) as client:
        for done, outcome in enumerate(itertools.islice(client.sample_many(pairs(), 1, max_in_flight=5), 30), 1):
            assert isinstance(outcome, Samples)
            assert read - done <= 5
    read = 0
    asyncio.run(run())
    assert there[0].most_running < 2 * 5  # a client gets its answer a moment before the handler ends


LEFT: list[Pair] = [(PICTURE, "ok 1"), *[(PICTURE, "sleep 60")] * 6, (PICTURE, "full")]


def test_who_stops_listening_stops_the_calls(there: tuple[Scripted, str]) -> None:
    others = set(threading.enumerate())
    with SamplerClient(there[1]) as client:
        outcomes = client.sample_many(LEFT, 1, max_in_flight=8)
        next(outcomes)
        _eventually(lambda: len(there[0].asked["sleep 60"]) == 6 and there[0].asked["full"])
        outcomes.close()  # type: ignore[attr-defined]
        _eventually(lambda: there[0].cancelled == 6)
        # Nor does the thread that waits until the service is no longer full.
        _eventually(lambda: not any(one.name.startswith("in_order") for one in set(threading.enumerate()) - others))


def test_an_async_listener_that_leaves_stops_the_calls(there: tuple[Scripted, str]) -> None:
    async def run() -> None:
        async with AsyncSamplerClient(there[1]) as client:
            outcomes = client.sample_many(LEFT, 1, max_in_flight=8)
            await anext(outcomes)
            await asyncio.to_thread(_eventually, lambda: len(there[0].asked["sleep 60"]) == 6)
            await outcomes.aclose()  # type: ignore[attr-defined]
            await asyncio.to_thread(_eventually, lambda: there[0].cancelled == 6)

    asyncio.run(run())


def _eventually(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
