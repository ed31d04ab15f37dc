"""Pauses, engines that die, and kill -9 of sampler and engine under load: each (request, index) is delivered once."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from engine_server import free_socket
from running import WEIGHTS
from sampler_models import PROMPT, Running, make_adapter, make_llava, png, running
from sightline import DataCorrupted, InvalidInput, NotFound, PermissionDenied, PreconditionFailed, Unavailable
from sightline.patience import ONCE, Patience
from sightline.sampler import AsyncSamplerClient, SamplerClient, exact
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.v1.sampler_pb2_grpc import SamplerServiceStub

TESTS = Path(__file__).parents[1]
BASE = WEIGHTS / "llava"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def sampler(llava: Path) -> Iterator[Running]:
    with running(llava, policies={"pause_wait_seconds": 2}, engine={"max_rows": 8}) as at:
        yield at


async def _under_way(client: AsyncSamplerClient, count: int = 24) -> tuple[object, asyncio.Task[list[int]]]:
    """A long request that has had its first candidate, and what will come of the rest."""
    stream = client.stream(png(0), PROMPT, count, max_tokens=120, temperature=100)
    candidates = aiter(stream)
    first = (await anext(candidates)).index

    async def rest() -> list[int]:
        return [first, *[candidate.index async for candidate in candidates]]

    return stream, asyncio.create_task(rest())


def test_a_draining_pause_finishes_what_is_under_way_and_others_wait(sampler: Running) -> None:
    async def run() -> None:
        async with AsyncSamplerClient(sampler.address, timeout=60) as client:
            _, rest = await _under_way(client)
            assert await client.pause("drain") == 1
            assert sorted(await rest) == list(range(24))
            waiting = asyncio.create_task(client.sample(png(0), PROMPT, 2, max_tokens=2))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            await client.resume()
            assert len((await waiting).candidates) == 2
            await client.pause()
            async with AsyncSamplerClient(sampler.address, patience=ONCE) as once:
                with pytest.raises(Unavailable, match="paused") as error:  # longer than policies.pause_wait_seconds
                    await once.sample(png(0), PROMPT, 2)
            assert error.value.reason == "PAUSED"
            await client.resume()

    asyncio.run(run())


def test_an_aborting_pause_breaks_off_and_the_client_gets_the_rest_later(sampler: Running) -> None:
    async def run() -> None:
        async with AsyncSamplerClient(sampler.address, timeout=60) as client:
            _, rest = await _under_way(client)
            assert await client.pause("abort") == 1
            while sampler.service.engine.loads() != (0, 0):  # the decoding thread drops them before its next step
                await asyncio.sleep(0.01)
            await client.resume()
            assert sorted(await rest) == list(range(24))

            async with AsyncSamplerClient(sampler.address, patience=ONCE) as once:
                candidates = aiter(once.stream(png(0), PROMPT, 24, max_tokens=120, temperature=100))
                await anext(candidates)
                await client.pause("abort")
                with pytest.raises(Unavailable, match="interrupted by a pause"):
                    async for _ in candidates:
                        pass
            await client.resume()

    asyncio.run(run())


def test_a_keeping_pause_leaves_candidates_where_they_are(sampler: Running) -> None:
    async def run() -> None:
        async with AsyncSamplerClient(sampler.address, timeout=60) as client:
            _, rest = await _under_way(client)
            assert await client.pause("keep") == 1
            await asyncio.sleep(0.1)
            rows = sampler.service.engine.loads()
            await asyncio.sleep(0.3)
            assert sampler.service.engine.loads() == rows
            assert not rest.done()
            await client.resume()
            assert sorted(await rest) == list(range(24))

    asyncio.run(run())


def test_candidates_are_had_by_index(sampler: Running) -> None:
    import grpc

    with SamplerClient(sampler.address) as client, grpc.insecure_channel(sampler.address) as channel:
        wanted = client.sample(png(0), PROMPT, 6, seed=3, max_tokens=8).candidates
        stub = SamplerServiceStub(channel)
        request = pb.SampleRequest(prompt=PROMPT, num_candidates=6, seed=3, indices=[4, 1])
        request.image.content = png(0)
        request.params.max_tokens = 8
        found = {r.candidate.index: r.candidate for r in stub.Sample(request, timeout=30) if r.HasField("candidate")}
        assert found.keys() == {1, 4}
        for index, candidate in found.items():
            assert list(candidate.token_ids) == wanted[index].token_ids.tolist()
            assert candidate.seed == wanted[index].seed
        for indices in ([6], [1, 1]):
            request.indices[:] = indices
            with pytest.raises(grpc.RpcError, match="indices must differ"):
                list(stub.Sample(request, timeout=30))


def test_policies_come_from_any_storage_that_is_allowed(llava: Path, tmp_path: Path) -> None:
    directory = make_adapter(tmp_path, llava, 1)
    store = fsspec.filesystem("memory")
    store.put(str(directory), "/run/v000001", recursive=True)
    store.put(str(directory), "/half/v000001", recursive=True)
    store.rm("/half/v000001/manifest.json")
    store.put(str(directory), "/torn/v000001", recursive=True)
    store.pipe("/torn/v000001/adapter_model.safetensors", b"other bytes")
    state = tmp_path / "state"
    policies = {"schemes": ["memory"], "state_dir": str(state)}
    with running(llava, policies=policies) as at, SamplerClient(at.address, timeout=60) as client:
        for uri, error in (
            ("memory://half/v000001", NotFound),
            ("memory://nowhere/v000001", NotFound),
            ("memory://torn/v000001", DataCorrupted),
            ("unknown://run/v000001", PermissionDenied),
            (str(directory), PermissionDenied),
        ):
            with pytest.raises(error):
                client.stage(uri, 1)
        assert not list((state / "downloads").iterdir())
        assert client.stage("memory://run/v000001", 1).uri == "memory://run/v000001"
        client.activate(1)
        wanted = client.sample(png(0), PROMPT, 2, seed=1, max_tokens=6).candidates
    with running(llava, policies=policies) as at, SamplerClient(at.address, timeout=60) as client:
        assert client.policy().version == 1
        found = client.sample(png(0), PROMPT, 2, seed=1, max_tokens=6).candidates
        assert [c.token_ids.tolist() for c in found] == [c.token_ids.tolist() for c in wanted]
        client.activate(0)
        client.retire(1)
        assert not list((state / "downloads").iterdir())


def test_versions_only_grow_over_restarts(llava: Path, tmp_path: Path) -> None:
    first, second = make_adapter(tmp_path, llava, 1), make_adapter(tmp_path, llava, 2)
    policies = {"state_dir": str(tmp_path / "state")}
    with running(llava, policies=policies) as at, SamplerClient(at.address) as client:
        client.stage(second, 2)  # staged is enough
    with running(llava, policies=policies) as at, SamplerClient(at.address) as client:
        with pytest.raises(PreconditionFailed, match="versions of a run only grow, and 2 was staged before"):
            client.stage(first, 1)
        other = make_adapter(tmp_path / "other", llava, 2, seed=9)
        with pytest.raises(PreconditionFailed, match="had other weights before, and version numbers are never reused"):
            client.stage(other, 2)
        assert client.stage(second, 2).state == "staged"


@pytest.mark.parametrize(
    ("count", "options", "error"),
    [(0, {}, InvalidInput), (10_000, {}, InvalidInput), (2, {"timeout": 0.001}, Exception)],
)
def test_bad_requests(sampler: Running, count: int, options: dict[str, float], error: type[Exception]) -> None:
    from sightline import DeadlineExceeded

    expected = DeadlineExceeded if "timeout" in options else error
    with SamplerClient(sampler.address) as client, pytest.raises(expected):
        client.sample(png(0), PROMPT, count, **options)  # type: ignore[arg-type]


class Process:
    """A service or engine as a process on a port of its own, to be killed and started again."""

    def __init__(self, *command: str) -> None:
        self.command = command
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        self.popen = subprocess.Popen([sys.executable, *self.command], env=environment, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.popen is not None
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()


def _port() -> int:
    with free_socket() as bound:
        return int(bound.getsockname()[1])


def _until(url: str) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_of_sampler_and_engine_under_load(tmp_path: Path) -> None:
    """vLLM's stand-in and the sampler are killed in turn while requests are sampled, one policy being active."""
    adapter = make_adapter(tmp_path, BASE, 1, scale=0.02)
    engine_port, port = _port(), _port()
    engine = Process(str(TESTS / "vllm_server.py"), str(engine_port), str(BASE), "0.05")
    sampler = Process(
        "-m", "sightline_cli", "serve", "sampler",
        "--set", f"engine.model={BASE}", "--set", "engine.kind=vllm",
        "--set", f"engine.vllm.url=http://127.0.0.1:{engine_port}", "--set", "engine.vllm.overload_seconds=600",
        "--set", f"server.port={port}", "--set", f"policies.state_dir={tmp_path / 'state'}",
        "--set", "engine.vllm.poll_seconds=0.2", "--set", "policies.gate.required=false",
    )  # fmt: skip
    requests, k = 8, 6

    async def run() -> None:
        counted: Counter[tuple[int, int]] = Counter()
        texts: dict[tuple[int, int], list[int]] = {}
        versions: set[int] = set()

        async def one(client: AsyncSamplerClient, number: int) -> None:
            seeds = range(100 * number, 100 * number + k)
            async with client.stream(png(number), "Describe the picture.", k, seeds=list(seeds), max_tokens=6) as s:
                async for c in s:
                    counted[number, c.index] += 1
                    texts[number, c.index] = c.token_ids.tolist()
                    versions.add(c.policy_version)

        async with AsyncSamplerClient(f"127.0.0.1:{port}", timeout=1700, patience=Patience(seconds=1200)) as client:
            while True:
                try:
                    await client.policies(timeout=2)
                    break
                except Exception:
                    await asyncio.sleep(0.2)
            await client.stage(adapter, 1)
            await client.activate(1)
            work = [asyncio.create_task(one(client, number)) for number in range(requests)]

            async def until(some: int) -> None:
                while len(counted) < some:
                    await asyncio.sleep(0.01)

            await until(4)
            await asyncio.to_thread(engine.kill)
            engine.start()
            await until(14)
            await asyncio.to_thread(sampler.kill)
            sampler.start()
            await until(24)
            await asyncio.to_thread(engine.kill)
            engine.start()
            await asyncio.gather(*work)
            assert counted == Counter({(number, index): 1 for number in range(requests) for index in range(k)})
            assert versions == {1}
            assert (await client.policy()).version == 1
            again = await client.sample(
                png(3), "Describe the picture.", k, seeds=list(range(300, 300 + k)), max_tokens=6, policy=exact(1)
            )
            assert [c.token_ids.tolist() for c in again.candidates] == [texts[3, index] for index in range(k)]

    engine.start()
    try:
        _until(f"http://127.0.0.1:{engine_port}/health")
        sampler.start()
        asyncio.run(run())
    finally:
        for process in (engine, sampler):
            if process.popen is not None:
                process.kill()


@pytest.mark.timeout(600)
def test_the_last_activated_policy_comes_back_after_kill_9(llava: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path, llava, 1)
    port = _port()
    sampler = Process(
        "-m", "sightline_cli", "serve", "sampler", "--set", f"engine.model={llava}", "--set", f"server.port={port}",
        "--set", f"policies.state_dir={tmp_path / 'state'}", "--set", "engine.threads=1",
        "--set", "policies.gate.required=false",
    )  # fmt: skip
    sampler.start()
    try:
        with SamplerClient(f"127.0.0.1:{port}", timeout=300, patience=Patience(seconds=200)) as client:
            wanted_base = client.sample(png(0), PROMPT, 2, seed=1, max_tokens=8).candidates  # patience: it loads
            client.stage(adapter, 1)
            client.activate(1)
            client.stage(make_adapter(tmp_path, llava, 3), 3)
            client.retire(3)
            wanted = client.sample(png(0), PROMPT, 2, seed=1, max_tokens=8)
            sampler.kill()
            sampler.start()
            found = client.sample(png(0), PROMPT, 2, seed=1, max_tokens=8)
            assert found.policy_version == wanted.policy_version == 1
            assert client.policies().highest_version == 3
            assert [c.token_ids.tolist() for c in found.candidates] == [c.token_ids.tolist() for c in wanted.candidates]
            assert [c.token_ids.tolist() for c in found.candidates] != [c.token_ids.tolist() for c in wanted_base]
    finally:
        sampler.kill()
