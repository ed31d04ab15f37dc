"""Networks that break silently, and callers with another protocol: each gets an answer, and the service continues."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from chassis_probe import Client, eventually, probing
from scorer_models import encoded, picture
from scorer_running import shared
from sightline import RunClient, SamplerClient, ScorerClient
from sightline.errors import DeadlineExceeded, from_rpc_error
from sightline.runs.v1 import trainer_pb2, trainer_pb2_grpc
from sightline.sampler.v1 import sampler_pb2, sampler_pb2_grpc
from sightline.scorer.v1 import scorer_pb2, scorer_pb2_grpc
from sightline_chassis.process import Addresses
from silent_proxy import SilentProxy, silent_proxy
from test_scorer_contract import remote
from three_services import SERVICES, three_services

KEEPALIVE = 30 + 20 + 5
"""Seconds: a ping, its answer, and a new connection."""
LIMIT = 8 << 20
SERVER = {"server": {"max_message_mib": LIMIT >> 20, "drain_seconds": 1, "notice_seconds": 0}}

SCORER, SAMPLER, TRAINER = (
    scorer_pb2_grpc.ScorerServiceStub,
    sampler_pb2_grpc.SamplerServiceStub,
    trainer_pb2_grpc.RunServiceStub,
)
BIG: dict[str, tuple[Any, str, Callable[[int], Any]]] = {
    "probe": (SCORER, "Score", lambda n: scorer_pb2.ScoreRequest(texts=["ok", "0", "x" * n])),
    "scorer": (SCORER, "Score", lambda n: scorer_pb2.ScoreRequest(texts=["x" * n])),
    "sampler": (SAMPLER, "ScoreTokens", lambda n: sampler_pb2.ScoreTokensRequest(prompt="x" * n)),
    "trainer": (TRAINER, "StartRun", lambda n: trainer_pb2.StartRunRequest(recipe_text="#" * n)),
}
"""Of each service: its stub, a method, and a request of about so many bytes."""


@contextlib.contextmanager
def probe() -> Iterator[dict[str, Addresses]]:
    """The chassis' probe, which has the same ports and limits as the services."""
    loop, done, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    found: dict[str, Addresses] = {}

    async def serve() -> None:
        async with probing(**SERVER) as (_, _, at):
            found["probe"] = at
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(60)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(60)
        loop.close()


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Addresses]]:
    """A service's addresses, by its name."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Addresses] = {}

        def at(name: str) -> Addresses:
            if name not in found:
                root = tmp_path_factory.mktemp("services")
                found.update(stack.enter_context(probe() if name == "probe" else three_services(root, SERVER)))
            return found[name]

        yield at


each_service = pytest.mark.parametrize("name", ["probe", *(pytest.param(n, marks=pytest.mark.slow) for n in SERVICES)])


def answer(name: str, at: Addresses, size: int, **options: Any) -> grpc.RpcError | None:
    """The answer to a request of about this many bytes over a plain channel: None, or the refusal."""
    stub, method, request = BIG[name]
    with grpc.insecure_channel(at.grpc) as channel:
        try:
            getattr(stub(channel), method)(request(size), timeout=60, **options)
        except grpc.RpcError as error:
            return error
    return None


@each_service
def test_a_message_over_the_limit_has_its_code(doors: Callable[[str], Addresses], name: str) -> None:
    for size in (LIMIT + (1 << 20), 8 * LIMIT):
        error = answer(name, doors(name), size)
        assert error is not None
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
        assert "larger than max" in error.details()
        assert from_rpc_error(error).reason == "MESSAGE_TOO_LARGE"


@each_service
def test_more_than_grpc_s_own_default_is_read(doors: Callable[[str], Addresses], name: str) -> None:
    error = answer(name, doors(name), LIMIT - (1 << 20))
    assert error is None or error.code() is grpc.StatusCode.INVALID_ARGUMENT, error


@each_service
def test_what_is_small_on_the_way_and_large_when_unpacked_has_its_code(
    doors: Callable[[str], Addresses], name: str
) -> None:
    error = answer(name, doors(name), 4 * LIMIT, compression=grpc.Compression.Gzip)
    assert error is not None
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error


@each_service
def test_headers_over_the_limit_have_their_code(doors: Callable[[str], Addresses], name: str) -> None:
    for size in (20_000, 200_000):
        error = answer(name, doors(name), 0, metadata=[("x-large", "a" * size)])
        assert error is not None
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error


@each_service
def test_bytes_that_are_no_message_have_their_code(doors: Callable[[str], Addresses], name: str) -> None:
    stub, method, _ = BIG[name]
    service = stub.__name__.removesuffix("Stub")
    package = "scorer" if name == "probe" else name
    with grpc.insecure_channel(doors(name).grpc) as channel:
        for sent in (b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x00" * 100, b"GET / HTTP/1.1"):
            call = channel.unary_unary(f"/sightline_{package}.v1.{service}/{method}")
            with pytest.raises(grpc.RpcError) as caught:
                call(sent, timeout=20)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert from_rpc_error(caught.value).reason == "MALFORMED_REQUEST"
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/sightline_{package}.v1.{service}/NoSuchMethod")(b"x" * 2 * LIMIT, timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@each_service
@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{\"a\": 1}\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes(1000),
    ],
    ids=["get", "post", "tls", "zeros"],
)  # fmt: skip
def test_who_speaks_no_http2_is_hung_up_on_at_once_and_nobody_else(
    doors: Callable[[str], Addresses], name: str, sent: bytes
) -> None:
    """gRPC's core answers with its own first frame and closes properly; it does not speak HTTP/1.1."""
    at = doors(name)
    host, _, port = at.grpc.rpartition(":")
    with grpc.insecure_channel(at.grpc) as channel:
        grpc.channel_ready_future(channel).result(20)
        with socket.create_connection((host, int(port)), timeout=20) as stranger:
            stranger.sendall(sent)
            heard = b""
            while piece := stranger.recv(4096):
                heard += piece
        assert heard[3:4] in (b"", b"\x04"), "a SETTINGS frame, or nothing"
        error = answer(name, at, 0)
        assert error is None or error.code() is grpc.StatusCode.INVALID_ARGUMENT, error


def asked(name: str, address: str) -> tuple[Any, Callable[[float], Any]]:
    """A client, and its cheapest call."""
    if name == "scorer":
        scorer = ScorerClient(address)
        return scorer, lambda seconds: scorer.list_models(timeout=seconds)
    if name == "sampler":
        sampler = SamplerClient(address)
        return sampler, lambda seconds: sampler.policies(timeout=seconds)
    runs = RunClient(address)
    return runs, lambda seconds: list(runs.list(timeout=seconds))


@pytest.mark.slow
def test_a_network_that_falls_silent_costs_a_deadline_and_keepalive_s_time(doors: Callable[[str], Addresses]) -> None:
    """No FIN, no RST: nothing arrives any more. A new connection works."""

    def one(name: str) -> None:
        with silent_proxy(doors(name).grpc) as proxy:
            client, ask = asked(name, proxy.address)
            with client:
                ask(20)
                proxy.silence()
                with pytest.raises(DeadlineExceeded):
                    ask(1)
                ask(KEEPALIVE)
                ask(1)

    with ThreadPoolExecutor(len(SERVICES)) as pool:
        list(pool.map(one, SERVICES))


@pytest.mark.slow
def test_a_caller_who_falls_silent_does_not_keep_its_turn() -> None:
    async def main() -> None:
        async with probing() as (seen, _, at):
            proxy = SilentProxy(at.grpc)
            async with Client(proxy.address) as client:
                call = asyncio.ensure_future(client.given(timeout=600).score("sleep 600"))
                await eventually(lambda: seen.seen["sleep"] == 1)
                proxy.silence()
                await eventually(lambda: seen.ended == ["sleep cancelled"], KEEPALIVE)
                call.cancel()
            proxy.close()

    asyncio.run(main())


@pytest.mark.slow
def test_a_triton_whose_network_falls_silent_is_connected_to_anew() -> None:
    """Triton allows one ping in five minutes, so its keepalive alone would take that long."""
    first, models = shared()
    triton: Any = first.service.triton
    image = encoded(picture(40, 40, 1))
    with silent_proxy(triton.address()) as proxy:
        scorer = remote(models["tiny"], address=proxy.address, more=["triton.request_timeout_seconds=1"])
        try:
            assert scorer.score(image, ["one"]).scores
            before = proxy.connections
            proxy.silence()
            with pytest.raises(grpc.RpcError) as caught:
                scorer.score(image, ["two"])
            assert from_rpc_error(caught.value).reason == "BACKEND_TIMEOUT"
            assert scorer.score(image, ["three"]).scores
            assert proxy.connections > before
        finally:
            scorer.stop()
