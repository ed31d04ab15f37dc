"""A scorer run as a process of its own, with the playground's CLIP: what happens when its Triton is killed, hangs or is
poisoned, when it is asked for more than its queue holds, and when it is killed itself."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import scorer_models
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scorer_models import Reference, encoded, picture
from scorer_running import CLIP, QUICK, RunningScorer, alive, children, until
from sightline.errors import DeadlineExceeded, SightlineError, Unavailable, from_rpc_error
from sightline.scorer import Outcome, ScorerClient
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.v1 import scorer_pb2_grpc

GOOD = encoded(picture())
NUMBERS = itertools.count()
SERVING = health_pb2.HealthCheckResponse.SERVING
SETTINGS = [
    *QUICK,
    "probe.every_seconds=0.5",
    "probe.timeout_seconds=2",
    "triton.hung_after_seconds=20",  # a busy machine takes ten to load a tower again
    "triton.start_timeout_seconds=400",
    "triton.text_batch=1",
    "triton.max_queue=8",
]


class Process:
    """`sightline serve scorer` with the playground's CLIP."""

    def __init__(self, directory: Path) -> None:
        announce = directory / "scorer.json"
        self.log = directory / "scorer.log"
        command = [sys.executable, "-m", "sightline_cli", "serve", "scorer"]
        for setting in (*SETTINGS, f"models.playground.source=local-dir:{CLIP}", f"server.announce={announce}"):
            command += ["--set", setting]
        with self.log.open("wb") as log:
            environment = {**os.environ, "TMPDIR": str(directory)}
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        began = time.monotonic()
        until(lambda: announce.exists() or self.popen.poll() is not None, 400)
        assert self.popen.poll() is None, self.log.read_text()
        self.start_seconds = time.monotonic() - began
        self.at = json.loads(announce.read_text())
        self.work = list(directory.glob("sightline-scorer-*"))
        self.channel = grpc.insecure_channel(self.at["grpc"])
        self.stub: Any = scorer_pb2_grpc.ScorerServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(grpc.insecure_channel(self.at["health"]))

    def named(self, name: str) -> list[int]:
        """Descendants whose command line holds `name`."""
        found = []
        for pid in children(self.popen.pid):
            try:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if arguments[0].endswith(name.encode()):
                found.append(pid)
        return found

    def outcome(
        self, texts: Sequence[str] = (), seconds: float = 10, image: bytes = GOOD
    ) -> pb.ScoreResponse | SightlineError:
        """The outcome of one Score without retries; by default of a text that was never scored before."""
        texts = texts or [f"a cat {next(NUMBERS)}"]
        request = pb.ScoreRequest(image=pb.Image(content=image), texts=texts)
        try:
            answer: pb.ScoreResponse = self.stub.Score(request, timeout=seconds)
            return answer
        except grpc.RpcError as error:
            return from_rpc_error(error)

    def works(self) -> bool:
        return isinstance(self.outcome(), pb.ScoreResponse)

    def says(self, service: str = "readiness") -> bool:
        """Whether health says SERVING."""
        return bool(self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status == SERVING)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("scorer"))
    yield process
    if process.popen.poll() is None:
        process.popen.kill()
        process.popen.wait()


def test_scores_of_the_playgrounds_clip_are_open_clips(scorer: Process) -> None:
    texts = ["a red circle", "There is a blue square left of a green triangle.", "a red circle and a yellow star"]
    reference = Reference(CLIP)
    for image in (picture(48, 48), picture(100, 60, seed=1)):
        outcome = scorer.outcome(texts, image=encoded(image))
        assert isinstance(outcome, pb.ScoreResponse)
        expected = reference.cosines(image, texts)
        np.testing.assert_allclose([score.cosine for score in outcome.scores], expected, atol=1e-4)


def test_a_hangup_reloads_the_models_and_does_not_end_the_service(scorer: Process) -> None:
    os.kill(scorer.popen.pid, signal.SIGHUP)
    for _ in range(5):
        assert scorer.works()
    (model,) = scorer.stub.ListModels(pb.ListModelsRequest(), timeout=5).models
    assert (model.version, model.state) == (1, pb.MODEL_STATE_READY)


def test_a_full_queue_is_overload_and_says_when_to_try_again(scorer: Process) -> None:
    def request(number: int) -> pb.ScoreRequest:
        texts = [f"a red circle {number} {part}" for part in range(4)]
        return pb.ScoreRequest(image=pb.Image(content=GOOD), texts=texts)

    calls = [scorer.stub.Score.future(request(number), timeout=20) for number in range(60)]
    errors = [from_rpc_error(call.exception()) for call in calls if call.exception() is not None]
    assert 0 < len(errors) < 60
    for error in errors:
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKEND_QUEUE_FULL")
        assert error.retry_after is not None
    assert scorer.works()


def test_no_request_waits_for_the_batchers_timer(scorer: Process) -> None:
    """With a queue policy, Triton's batcher forgets one request in forty until its timer of 500 ms fires."""
    seconds = []
    for _ in range(200):
        began = time.monotonic()
        assert scorer.works()
        seconds.append(time.monotonic() - began)
    assert sum(0.45 < value < 0.6 for value in seconds) <= 1, sorted(seconds)[-10:]


def test_triton_killed_in_mid_request(scorer: Process) -> None:
    """UNAVAILABLE with RetryInfo at once, and scores again within 30 s; the SDK returns scores or this error."""
    before = scorer.outcome(["a red cat"])
    assert isinstance(before, pb.ScoreResponse)
    outcomes: list[pb.ScoreResponse | SightlineError] = []
    clients_outcomes: list[Outcome] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            outcomes.append(scorer.outcome())

    def clients_load() -> None:
        with ScorerClient(scorer.at["grpc"]) as client:
            pairs = ((GOOD, [f"a client's cat {next(NUMBERS)}"]) for _ in iter(stop.is_set, True))
            clients_outcomes.extend(client.score_many(pairs, timeout=120, max_in_flight=1))

    threads = [threading.Thread(target=load), threading.Thread(target=load), threading.Thread(target=clients_load)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    (triton,) = scorer.named("bin/tritonserver")
    os.kill(triton, signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: not scorer.says(), 3)
    assert not scorer.says("sightline_scorer.v1.ScorerService")
    assert scorer.says("liveness")
    assert scorer.stub.ListModels(pb.ListModelsRequest(), timeout=5).models
    with ScorerClient(scorer.at["grpc"]) as client:  # of whose items none has failed alone
        assert len(client.embed([GOOD], ["a client's cat"], timeout=120).text_matrix()) == 1
    stop.set()
    for thread in threads:
        thread.join()
    errors = [outcome for outcome in outcomes if isinstance(outcome, SightlineError)]
    assert errors
    for error in errors:
        assert error.code is grpc.StatusCode.UNAVAILABLE, error
        assert error.reason in ("BACKEND_LOST", "BACKEND_DOWN")
        assert error.retry_after
        assert "try again" in error.message
    for outcome in clients_outcomes:
        assert isinstance(outcome, Unavailable) or len(outcome) == 1  # type: ignore[arg-type]
    limit = max(30, 2 * scorer.start_seconds)  # if a busy machine took longer to start, it gets more time
    until(scorer.works, killed + limit - time.monotonic())
    after = scorer.outcome(["a red cat"])
    assert isinstance(after, pb.ScoreResponse)
    assert after.scores[0].cosine == pytest.approx(before.scores[0].cosine, abs=1e-6)
    until(scorer.says, 3)
    assert scorer.named("bin/tritonserver") != [triton]


def test_a_tower_killed_alone(scorer: Process) -> None:
    """Triton restarts a stub by itself; the request that it interrupted gets an error that asks for a retry."""
    stub = next(pid for pid in scorer.named("triton_python_backend_stub") if b"clip_text" in _command(pid))
    os.kill(stub, signal.SIGKILL)
    error = scorer.outcome(seconds=30)
    if isinstance(error, SightlineError):
        assert error.code is grpc.StatusCode.UNAVAILABLE, error
        assert error.retry_after
    until(scorer.works, max(30, 2 * scorer.start_seconds))
    until(scorer.says, 5)


def test_a_text_is_scored_whose_towers_parent_was_killed(scorer: Process) -> None:
    """The fork with the text tower dies with the image tower's process; the text's own process then loads it."""
    parent = min(pid for pid in scorer.named("triton_python_backend_stub") if b"clip_image" in _command(pid))
    (fork,) = children(parent)
    os.kill(parent, signal.SIGKILL)
    until(lambda: not alive(fork), 30)
    until(scorer.works, max(60, 4 * scorer.start_seconds))
    until(scorer.says, 5)
    before, after = scorer.outcome(["a blue cat"]), scorer.outcome(["a blue cat", "a green dog"])
    assert isinstance(before, pb.ScoreResponse)
    assert isinstance(after, pb.ScoreResponse)
    assert after.scores[0].cosine == pytest.approx(before.scores[0].cosine, abs=1e-6)


def test_a_triton_that_hangs_turns_the_service_not_serving_and_is_replaced(scorer: Process) -> None:
    (triton,) = scorer.named("bin/tritonserver")
    os.kill(triton, signal.SIGSTOP)
    try:
        error = scorer.outcome(seconds=1)
        assert isinstance(error, SightlineError)
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: not scorer.says(), 8)
        until(lambda: not alive(triton), 60)
    finally:
        if alive(triton):
            os.kill(triton, signal.SIGCONT)
    until(scorer.works, max(30, 2 * scorer.start_seconds))
    until(scorer.says, 5)


def test_a_guard_killed_by_force_takes_triton_and_its_towers_along(scorer: Process) -> None:
    everything = children(scorer.popen.pid)
    (guard,) = [pid for pid in everything if b"guard.py" in _command(pid)]
    os.kill(guard, signal.SIGKILL)
    until(lambda: not any(map(alive, everything)), 5)
    until(scorer.works, max(30, 2 * scorer.start_seconds))


def test_a_triton_comes_back_whose_files_a_cleaner_took(scorer: Process) -> None:
    """Cleaners of temporary files take what is some days old; a Triton that then died never came back."""
    (work,) = scorer.work
    (triton,) = scorer.named("bin/tritonserver")
    shutil.rmtree(work)
    assert scorer.works()
    os.kill(triton, signal.SIGKILL)
    until(lambda: not alive(triton), 5)
    until(scorer.works, max(30, 2 * scorer.start_seconds))
    assert (work / "repository/clip_text/config.pbtxt").is_file()


def test_nothing_is_left_of_a_scorer_killed_by_force(scorer: Process) -> None:
    everything = children(scorer.popen.pid)
    assert scorer.named("bin/tritonserver")
    assert len(scorer.named("triton_python_backend_stub")) == 3  # the text tower's own, and the fork that works for it
    shared = f"sightline_{scorer.popen.pid}_"
    (work,) = scorer.work
    assert [name for name in os.listdir("/dev/shm") if name.startswith(shared)]
    scorer.popen.kill()
    scorer.popen.wait()
    until(lambda: not any(map(alive, everything)), 10)
    assert [name for name in os.listdir("/dev/shm") if name.startswith(shared)] == []
    until(lambda: not work.exists(), 5)


@pytest.mark.slow
def test_a_poisoned_model_is_not_served(tmp_path: Path) -> None:
    """Weights with a NaN are refused at the start, with the reason, and no process is left."""
    import torch
    from safetensors.torch import load_file, save_file

    model = scorer_models.tiny(tmp_path / "model")
    weights = load_file(model / "open_clip_model.safetensors")
    weights["visual.proj"][0, 0] = torch.nan
    save_file(weights, model / "open_clip_model.safetensors")
    before = set(children(os.getpid()))
    with pytest.raises(SightlineError, match="not finite"):
        RunningScorer(f"models.tiny.source={model}")
    until(lambda: not any(map(alive, set(children(os.getpid())) - before)), 10)


def test_a_tower_out_of_memory_is_told_and_gone_without_a_restart(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo while there is no memory; scores again as soon as there is some."""
    model, work, full = scorer_models.tiny(tmp_path / "model"), tmp_path / "work", tmp_path / "full"
    starved = f"import torch\n    if os.path.exists({str(full)!r}): torch.empty(1 << 55)"  # more memory than there is
    threading.Thread(target=_tamper, args=(work / "repository/clip_text/1/model.py", starved)).start()
    running = RunningScorer(f"models.tiny.source={model}", f"triton.work_dir={work}")
    try:
        triton = running.service.triton.pid  # type: ignore[attr-defined]
        assert len(running.score(GOOD, ["a cat"]).scores) == 1
        full.touch()
        with pytest.raises(grpc.RpcError) as caught:
            running.score(GOOD, ["a dog"])
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKEND_OUT_OF_MEMORY"), error
        assert error.retry_after
        assert "model.py" not in error.message  # no traceback for strangers
        full.unlink()
        assert len(running.score(GOOD, ["a dog"]).scores) == 1
        assert running.service.triton.pid == triton  # type: ignore[attr-defined]
    finally:
        running.stop()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningScorer, Callable[[float], object]]]:
    """A scorer, and a function that slows its text tower by seconds for each batch (of one text)."""
    directory = tmp_path_factory.mktemp("slow")
    model, work, delay = scorer_models.tiny(directory / "model"), directory / "work", directory / "delay"

    def slower(seconds: float) -> None:
        (directory / "new").write_text(str(seconds))
        (directory / "new").replace(delay)

    slower(0)
    sleep = f"import time; time.sleep(float(open({str(delay)!r}).read()))"
    threading.Thread(target=_tamper, args=(work / "repository/clip_text/1/model.py", sleep)).start()
    running = RunningScorer(
        f"models.tiny.source={model}",
        f"triton.work_dir={work}",
        "triton.request_timeout_seconds=3",
        "triton.text_batch=1",
        "triton.max_queue=4",
        "probe.every_seconds=0.5",
    )
    triton = running.service.triton.pid  # type: ignore[attr-defined]
    try:
        yield running, slower
        assert running.service.triton.pid == triton, "it was slow, not hung"  # type: ignore[attr-defined]
    finally:
        running.stop()


@pytest.mark.slow
def test_a_slow_tower_gives_late_scores_and_holds_nobody_past_his_deadline(
    slow: tuple[RunningScorer, Callable[[float], object]],
) -> None:
    """Those who wait get scores or DEADLINE_EXCEEDED by their own deadlines, those beyond the queue RESOURCE_EXHAUSTED
    with RetryInfo at once; what is known needs no tower; the service stays ready."""
    running, slower = slow
    known = running.score(GOOD, ["a known cat"])
    slower(1)
    try:
        began = time.monotonic()
        assert len(running.score(GOOD, ["a slow cat"]).scores) == 1
        assert time.monotonic() - began > 1

        began = time.monotonic()
        calls = []
        for number in range(12):
            request = pb.ScoreRequest(image=pb.Image(content=GOOD), texts=[f"a waiting cat {number}"])
            calls.append(running.stub.Score.future(request, timeout=2.5))
        assert running.score(GOOD, ["a known cat"], seconds=2.5).scores == known.scores
        errors = [from_rpc_error(call.exception()) for call in calls if call.exception() is not None]
        assert time.monotonic() - began < 2.5 + 2
        refused = [error for error in errors if error.reason == "BACKEND_QUEUE_FULL"]
        assert {error.code for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(error.retry_after for error in refused)
        late = [error for error in errors if error not in refused]
        assert {error.code for error in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert 4 <= 12 - len(refused) <= 6  # the queue, and whom a slow machine sends when it has moved on
        assert len(late) < 12 - len(refused)  # some came in time
        assert _ready(running)
    finally:
        slower(0)


def test_a_tower_slower_than_its_time_limit_is_told_and_comes_back(
    slow: tuple[RunningScorer, Callable[[float], object]],
) -> None:
    """DEADLINE_EXCEEDED that names the tower, after triton.request_timeout_seconds, not the caller's; NOT_SERVING until
    it is faster again, without a restart. The SDK asks again until the deadline, and no longer."""
    running, slower = slow
    assert len(running.score(GOOD, ["a cat in time"]).scores) == 1
    slower(5)
    try:
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            running.score(GOOD, ["a late cat"], seconds=60)
        assert 2.5 < time.monotonic() - began < 3 + 2
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "BACKEND_TIMEOUT"), error
        assert "clip_text did not answer within 3 s" in error.message
        until(lambda: not _ready(running), 10)

        began = time.monotonic()
        with ScorerClient(f"ipv4:{running.at.grpc}") as client, pytest.raises(SightlineError) as seen:
            client.score(GOOD, ["a client's late cat"], timeout=5)
        assert time.monotonic() - began < 5 + 2
        assert isinstance(seen.value, Unavailable | DeadlineExceeded)
    finally:
        slower(0)
    until(lambda: _ready(running), 30)
    assert len(running.score(GOOD, ["a cat in time again"]).scores) == 1


@pytest.mark.slow
def test_a_triton_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error contains the end of Triton's log; here its models cannot be loaded."""
    model = scorer_models.tiny(tmp_path / "model")
    work = tmp_path / "work"
    threading.Thread(target=_spoil, args=(work / "repository/clip_text/1/model.py",)).start()
    with pytest.raises(SightlineError, match="spoilt on purpose") as caught:
        RunningScorer(f"models.tiny.source={model}", f"triton.work_dir={work}")
    assert caught.value.reason == "TRITON_FAILED"
    shutil.rmtree(work)


def _ready(running: RunningScorer) -> bool:
    with grpc.insecure_channel(running.at.health) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return bool(stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=5).status == SERVING)


def _spoil(path: Path) -> None:
    until(path.exists, 60, step=0.005)
    path.write_text("raise RuntimeError('spoilt on purpose')\n")


def _tamper(path: Path, first: str) -> None:
    """Make the tower run this line before each batch."""
    until(lambda: path.exists() and "def finalize" in path.read_text(), 60, step=0.005)
    with path.open("a") as model:
        model.write(
            "\n\n_execute = TritonPythonModel.execute\n"
            "def _tampered(self, requests):\n"
            f"    {first}\n"
            "    return _execute(self, requests)\n"
            "TritonPythonModel.execute = _tampered\n"
        )


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
