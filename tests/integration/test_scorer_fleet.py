"""Overload, and the SDK with replicas and backends that die under load."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from scorer_models import encoded, picture
from scorer_running import CLIP, QUICK, children, shared, until
from sightline.errors import Overloaded, Unavailable, from_rpc_error
from sightline.patience import ONCE
from sightline.scorer import Outcome, Pair, ScorerClient, ScoreResult
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_cli.processes import Processes

PICTURES = [encoded(picture(60, 60, seed)) for seed in range(8)]
TEXTS = ["a red circle", "a blue square", "a green triangle", "a yellow star"]


def pairs(number: int) -> list[Pair]:
    """This many pairs, all different."""
    return [(PICTURES[n % 8] + bytes([n % 256, n // 256]), [TEXTS[n % 4]]) for n in range(number)]


def test_ten_times_too_much_is_refused_with_a_time_to_come_back() -> None:
    """Requests that fit are scored, all others are refused at once, and none is lost or gets another answer."""
    scorer = shared()[0]
    admission = scorer.settings.admission
    fits = admission.max_concurrent + admission.max_queue
    number = max(10 * admission.max_concurrent, 2 * fits)
    requests = [pb.ScoreRequest(image=pb.Image(content=image), texts=texts) for image, texts, *_ in pairs(number)]
    tritons = [pid for pid in children(os.getpid()) if b"bin/tritonserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in tritons:
        os.kill(pid, signal.SIGSTOP)  # otherwise a fast machine answers as fast as the test can ask
    try:
        calls = [scorer.stub.Score.future(request, timeout=120) for request in requests]
        until(lambda: sum(call.done() for call in calls) >= number - fits, 60)
    finally:
        for pid in tritons:
            os.kill(pid, signal.SIGCONT)
    found: Counter[str] = Counter()
    for call in calls:
        error = call.exception()
        if error is None:
            found["scored"] += 1
            continue
        refusal = from_rpc_error(error)
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED, refusal
        assert isinstance(refusal, Overloaded)
        assert refusal.retry_after is not None
        assert refusal.retry_after > 0
        found["refused"] += 1
    assert tritons
    assert found == {"scored": fits, "refused": number - fits}


def test_the_sdk_gets_everything_through_an_overload() -> None:
    scorer = shared()[0]
    admission = scorer.settings.admission
    number = 2 * (admission.max_concurrent + admission.max_queue)
    with ScorerClient(scorer.at.grpc) as client:
        outcomes = list(client.score_many(pairs(number), max_in_flight=number, timeout=240))
    assert Counter(type(outcome).__name__ for outcome in outcomes) == {"ScoreResult": number}


@contextmanager
def scripted_process() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A scorer that answers at once, in a process that the test kills."""
    program = "import scorer_scripted, time\nwith scorer_scripted.scripted() as (_, at):\n print(at, flush=True)\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", program + " time.sleep(600)"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()


def test_no_request_is_lost_with_a_replica_that_is_killed_and_comes_back_as_another() -> None:
    """Three replicas by name of their addresses; two are killed with -9 one after the other, under load."""
    with ExitStack() as stack:
        replicas = [stack.enter_context(scripted_process()) for _ in range(3)]
        target = "ipv4:" + ",".join(at for at, _ in replicas)
        client = stack.enter_context(ScorerClient(target))
        outcomes: list[Outcome] = []
        many: list[Pair] = [(PICTURES[n % 8], [f"ok {n}"]) for n in range(600)]
        for outcome in client.score_many(many, max_in_flight=32, timeout=120):
            outcomes.append(outcome)
            if len(outcomes) in (100, 300):
                replicas.pop()[1].kill()
    assert [outcome.value[0] for outcome in outcomes if isinstance(outcome, ScoreResult)] == list(range(600))


class Replica:
    """A real scorer with its Triton, as a process."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        processes = stack.enter_context(Processes(directory))
        processes.start("scorer", [*QUICK, f"models.clip.source=local-dir:{CLIP}", "triton.stop_grace_seconds=0"])
        self.at = processes.wait("scorer", seconds=600).grpc
        self.pid: int = json.loads((directory / "scorer.json").read_text())["pid"]

    def triton(self) -> int:
        """The process id of its Triton."""
        for pid in children(self.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if command[0].endswith(b"bin/tritonserver"):
                return pid
        raise AssertionError("no Triton")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with ExitStack() as stack:
        yield Replica(tmp_path_factory.mktemp("first"), stack)


@pytest.fixture
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with ExitStack() as stack:
        yield Replica(tmp_path_factory.mktemp("second"), stack)


def scored(outcomes: list[Outcome], number: int) -> list[float]:
    assert Counter(type(outcome).__name__ for outcome in outcomes) == {"ScoreResult": number}
    return [round(float(outcome.cosine[0]), 4) for outcome in outcomes if isinstance(outcome, ScoreResult)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_request_is_lost_when_triton_is_killed_under_load(first: Replica) -> None:
    many = pairs(400)
    outcomes: list[Outcome] = []
    with ScorerClient(first.at) as client:
        for outcome in client.score_many(many, max_in_flight=16, timeout=600):
            outcomes.append(outcome)
            if len(outcomes) == 50:
                os.kill(first.triton(), signal.SIGKILL)
        again = list(client.score_many(many, timeout=600))
    assert scored(outcomes, 400) == pytest.approx(scored(again, 400), abs=2e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_retries_the_failures_of_a_killed_triton_say_to_come_back(first: Replica) -> None:
    with ScorerClient(first.at) as patient:
        patient.score(PICTURES[0], TEXTS, timeout=600)
    errors: list[Outcome] = []
    with ScorerClient(first.at, patience=ONCE) as client:
        os.kill(first.triton(), signal.SIGKILL)
        for turn in range(100):
            new: list[Pair] = [(PICTURES[0], [f"a red circle {turn} {n}"]) for n in range(8)]
            errors += [outcome for outcome in client.score_many(new) if not isinstance(outcome, ScoreResult)]
            if errors:
                break
    assert errors
    for error in errors:
        assert isinstance(error, Unavailable), error


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_request_is_lost_when_one_of_two_scorers_is_killed_under_load(first: Replica, second: Replica) -> None:
    """A whole scorer behind round_robin is killed by kill -9: its Triton dies with it, and the other one takes over."""
    for replica in (first, second):
        with ScorerClient(replica.at) as client:
            client.score(PICTURES[0], TEXTS, timeout=600)
    many = [(image, [f"{texts[0]} again"]) for image, texts, *_ in pairs(400)]
    outcomes: list[Outcome] = []
    with ScorerClient(f"ipv4:{first.at},{second.at}") as client:
        for outcome in client.score_many(many, max_in_flight=16, timeout=600):
            outcomes.append(outcome)
            if len(outcomes) == 50:
                os.kill(second.pid, signal.SIGKILL)
    with ScorerClient(first.at) as survivor:
        expected = list(survivor.score_many(many, timeout=600))
    assert scored(outcomes, 400) == pytest.approx(scored(expected, 400), abs=2e-4)
