"""Bearer tokens: who is accepted, who may call what, and changes while the service runs."""

import asyncio
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from chassis_certificates import Authority, put
from chassis_probe import SAMPLER, SCORER, Client, ProbeSettings, eventually, growth, probing
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sightline.channel import Tls, Token, open_channel
from sightline.errors import PermissionDenied, PreconditionFailed, SightlineError, Unauthenticated, typed_errors
from sightline.scorer.v1 import scorer_pb2, scorer_pb2_grpc
from sightline_chassis import client_metrics, logs
from sightline_chassis.settings import SettingsError, load_settings
from sightline_chassis.tokens import hash_of, make_token
from test_chassis_admission import health, scrape

VISION, SEARCH, WATCHER = make_token(), make_token(), make_token()


def team(*tokens: str, **more: Any) -> dict[str, Any]:
    """A team of a tokens file."""
    return {"tokens": [hash_of(token) for token in tokens], **more}


class TokensFile:
    """A tokens file that can be rewritten."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write(vision=team(VISION), search=team(SEARCH), watcher=team(WATCHER, methods=["Sample"]))

    def write(self, **teams: Any) -> None:
        """Replace the teams."""
        put(self.path, yaml.safe_dump({"teams": teams}).encode())


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "teams.yaml")


async def reason_of(call: Any, kind: type[SightlineError] = Unauthenticated) -> str:
    """Why a call is refused."""
    with pytest.raises(kind) as caught, typed_errors():
        await call
    return caught.value.reason


def bearer(text: str) -> Any:
    return (("authorization", text),)


def test_a_token_lets_in_and_everything_else_does_not(tokens: TokensFile) -> None:
    async def main() -> None:
        async with probing(auth={"tokens_file": tokens.path}) as (probe, client, at):
            calls, strangers = growth("sightline_team_calls_total"), growth("sightline_unauthenticated_total")
            async with Client(at.grpc, token=VISION) as vision, Client(at.grpc, token=SEARCH) as search:
                await vision.score("ok")
                await vision.upload("ok")
                assert len([_ async for _ in vision.sample("ok", 2)]) == 3
                assert len([_ async for _ in search.converse("ok", "ok")]) == 2
            assert await reason_of(client.score("ok")) == "TOKEN_MISSING"
            for text, why in (
                ("Bearer wrong", "TOKEN_UNKNOWN"),
                (f"Bearer {hash_of(VISION)}", "TOKEN_UNKNOWN"),
                (VISION, "TOKEN_MALFORMED"),
                ("Bearer", "TOKEN_MALFORMED"),
                (f"Basic {VISION}", "TOKEN_MALFORMED"),
            ):
                assert await reason_of(client.given(metadata=bearer(text)).score("ok")) == why
            both = bearer(f"Bearer {VISION}") + bearer(f"Bearer {SEARCH}")
            assert await reason_of(client.given(metadata=both).score("ok")) == "TOKEN_MALFORMED"
            for call in (client.upload("ok"), client.sample("ok").read(), client.converse("ok").read()):
                assert await reason_of(call) == "TOKEN_MISSING"
            await client.given(metadata=bearer(f"bearer {VISION}")).score("ok")
            assert probe.seen["ok"] == 6
            assert calls() == {"OK vision": 4, "OK search": 1}
            assert strangers() == {"missing": 4, "malformed": 4, "unknown": 2}
            assert health(at.health) == "SERVING"

    asyncio.run(main())


def test_a_stranger_s_payload_is_not_decoded_nor_counted(tokens: TokensFile) -> None:
    async def main() -> None:
        async with probing(auth={"tokens_file": tokens.path}) as (_, _, at):
            received = growth("grpc_server_msg_received_total")
            ends = growth("grpc_server_handled_total", grpc_method="Score")
            async with grpc.aio.insecure_channel(at.grpc) as channel:
                raw = channel.unary_unary(f"/{SCORER}/Score")  # bytes in, bytes out
                assert await reason_of(raw(b"\xff no message")) == "TOKEN_MISSING"
                assert await reason_of(raw(bytes(3 << 20))) == "TOKEN_MISSING"
                with pytest.raises(grpc.RpcError, match="not a valid message"):
                    await raw(b"\xff no message", metadata=bearer(f"Bearer {VISION}"))
            await eventually(lambda: sum(ends().values()) == 3)  # counted when the answer is out
            assert received() == {f"Score {SCORER} unary": 1}
            assert {name.split()[0]: count for name, count in ends().items()} == {
                "Unauthenticated": 2,
                "InvalidArgument": 1,
            }

    asyncio.run(main())


def test_a_team_may_be_held_to_some_methods(tokens: TokensFile) -> None:
    async def main() -> None:
        async with probing(auth={"tokens_file": tokens.path}) as (probe, _, at):
            async with Client(at.grpc, token=WATCHER) as client:
                await client.sample("ok").read()
                assert await reason_of(client.score("ok"), PermissionDenied) == "METHOD_NOT_ALLOWED"
            assert probe.seen["ok"] == 1

    asyncio.run(main())


def test_tokens_come_and_go_while_the_service_runs(tokens: TokensFile, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with probing(auth={"tokens_file": tokens.path}) as (probe, _, at), Client(at.grpc, token=VISION) as old:
            await old.score("ok")
            endless = old.sample("sleep 1")
            await endless.read()
            newer = make_token()
            tokens.write(vision=team(VISION, newer))
            async with Client(at.grpc, token=newer) as new:
                await new.score("ok")
                await old.score("ok")
                tokens.write(vision=team(newer))
                assert await reason_of(old.score("ok")) == "TOKEN_UNKNOWN"
                await new.score("ok")
                # A file that cannot be used changes nothing, and the log says so.
                with caplog.at_level(logging.ERROR):
                    put(tokens.path, f"teams: {{vision: {{tokens: [{newer}]}}}}".encode())
                    await new.score("ok")
                assert "teams.vision.tokens.0" in caplog.text
                assert newer not in caplog.text
                assert 'sightline_reload_failing{what="tokens file"} 1.0' in scrape(at.metrics)
            assert await endless.read() is not grpc.aio.EOF  # calls in flight finish
            assert probe.seen["ok"] == 5

    asyncio.run(main())


def test_a_stream_of_charged_items_ends_with_its_token(tokens: TokensFile) -> None:
    from sightline_chassis import gate
    from sightline_chassis.quota import Cost

    async def main() -> None:
        async with (
            probing(auth={"tokens_file": tokens.path}) as (probe, _, at),
            Client(at.grpc, token=VISION) as client,
        ):
            obey = probe.obey

            async def charged(order: str, context: Any) -> None:
                gate.charge(Cost(texts=1))
                await obey(order, context)

            probe.obey = charged  # type: ignore[method-assign]
            stream = client.scorer.ScoreStream()
            item = scorer_pb2.ScoreStreamRequest(request=scorer_pb2.ScoreRequest(texts=["ok"]))
            await stream.write(item)
            await stream.read()
            tokens.write(search=team(SEARCH))
            await stream.write(item)
            assert await reason_of(stream.read()) == "TOKEN_UNKNOWN"

    asyncio.run(main())


def test_tokens_may_be_optional_but_a_wrong_one_is_none(tokens: TokensFile) -> None:
    async def main() -> None:
        async with probing(auth={"tokens_file": tokens.path, "required": False}) as (_, client, at):
            calls = growth("sightline_team_calls_total")
            await client.score("ok")
            async with Client(at.grpc, token=VISION) as vision:
                await vision.score("ok")
            async with Client(at.grpc, token="wrong") as wrong:
                assert await reason_of(wrong.score("ok")) == "TOKEN_UNKNOWN"
            assert calls() == {"OK anonymous": 1, "OK vision": 1}

    asyncio.run(main())


def test_reflection_needs_a_token_unless_it_is_open(tokens: TokensFile) -> None:
    async def reflect(client: Client, **call: Any) -> None:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        assert await stub.ServerReflectionInfo(iter([request]), **call).read()

    async def main() -> None:
        async with probing(auth={"tokens_file": tokens.path}) as (_, client, _):
            assert await reason_of(reflect(client)) == "TOKEN_MISSING"
            await reflect(client, metadata=bearer(f"Bearer {SEARCH}"))
        async with probing(auth={"tokens_file": tokens.path, "open_reflection": True}) as (_, client, _):
            await reflect(client)

    asyncio.run(main())


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that the process logs, in a service's format."""
    text, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(text), root.level
    handler.setFormatter(logs.JsonFormatter("probe"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


def test_tokens_are_in_no_log(tokens: TokensFile, logged: io.StringIO) -> None:
    async def main() -> None:
        async with probing(auth={"tokens_file": tokens.path}) as (_, _, at):
            async with Client(at.grpc, token=VISION) as client:
                await client.score("ok")
                with pytest.raises(grpc.RpcError):
                    await client.score("bug")
            async with Client(at.grpc, token=f"{VISION}x") as client:
                with pytest.raises(grpc.RpcError):
                    await client.score("ok")

    asyncio.run(main())
    text = logged.getvalue()
    assert '"team": "vision"' in text
    assert VISION not in text
    assert hash_of(VISION) not in text


def test_a_token_goes_over_tls_and_loopback_only_unless_told_otherwise(tmp_path: Path) -> None:
    for target in ("dns:///scorer:1", "10.0.0.1:1", "127.evil.example:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "[::2]:1"):
        with pytest.raises(PreconditionFailed, match="in plaintext") as caught:
            open_channel(target, token="s3cret")
        assert "s3cret" not in str(caught.value)
        open_channel(target, token=Token("s3cret", allow_plaintext=True)).close()
        open_channel(target, token="s3cret", tls=Tls()).close()
    for target in ("127.0.0.1:1", "localhost:1", "[::1]:1", "dns:///localhost:1", "ipv4:127.0.0.1:1", "unix:/x"):
        open_channel(target, token="s3cret").close()
    assert "s3cret" not in repr(Token("s3cret"))
    for token in ("", "two words", "schlüssel", Token(file=tmp_path / "none")):
        with pytest.raises(PreconditionFailed) as caught:
            open_channel("127.0.0.1:1", token=token)
        assert caught.value.reason == "TOKEN_FILE"


def test_a_token_of_a_file_is_read_again_over_tls_and_plaintext(tokens: TokensFile, tmp_path: Path) -> None:
    authority = Authority("ours")
    certificate, key = authority.sign("service").write(tmp_path, "service")
    ca = put(tmp_path / "ca.crt", authority.pem)
    tls = {"mode": "server", "certificate": certificate, "key": key}

    async def main() -> None:
        for server, client_tls in (({"tls": tls}, Tls(ca)), ({}, None)):
            file = put(tmp_path / "token", f"{VISION}\n".encode())
            async with probing(auth={"tokens_file": tokens.path}, server=server) as (_, _, at):
                ended = growth("sightline_team_calls_total")
                async with Client(at.grpc, tls=client_tls, token=Token(file=file)) as client:
                    await client.score("ok")
                    put(file, SEARCH.encode())
                    await client.score("ok")
                    await asyncio.to_thread(ask, at.grpc, client_tls, file)
                assert ended() == {"OK vision": 1, "OK search": 2}

    def ask(target: str, client_tls: Tls | None, file: Path) -> None:
        with open_channel(target, tls=client_tls, token=Token(file=file)) as channel:
            request = scorer_pb2.ScoreRequest(texts=["ok"])
            assert scorer_pb2_grpc.ScorerServiceStub(channel).Score.future(request, timeout=5).result() is not None

    asyncio.run(main())


def test_calls_that_a_service_makes_are_measured(tokens: TokensFile) -> None:
    client_metrics.install()

    async def main() -> None:
        async with probing(auth={"tokens_file": tokens.path}) as (_, _, at), Client(at.grpc, token=VISION) as client:
            ended = growth("grpc_client_handled_total")
            await client.score("ok")
            with pytest.raises(grpc.RpcError):
                await client.score("bug")
            assert len([_ async for _ in client.sample("ok")]) == 2
            await client.upload("ok")
            left = client.sample("sleep 60")
            await left.read()
            left.cancel()
            await asyncio.to_thread(ask, at.grpc)
            await eventually(
                lambda: (
                    ended()
                    == {
                        f"OK Score {SCORER} unary": 2,
                        f"Internal Score {SCORER} unary": 1,
                        f"OK Sample {SAMPLER} server_stream": 1,
                        f"Canceled Sample {SAMPLER} server_stream": 1,
                        f"OK UploadImages {SCORER} client_stream": 1,
                    }
                )
            )

    def ask(target: str) -> None:
        with open_channel(target, token=VISION) as channel:
            scorer_pb2_grpc.ScorerServiceStub(channel).Score(scorer_pb2.ScoreRequest(texts=["ok"]))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file"),
        ("[]", "must hold a mapping"),
        ("teams: {a: {tokens: [plain]}}", r"teams.a.tokens.0: String should match pattern"),
        ("teams: {a: {tokens: []}}", "at least 1 item"),
        ("teams: {A b: {tokens: []}}", "teams.A b"),
        ("teams: {anonymous: {tokens: [HASH]}}", "anonymous is the name of callers without a token"),
        ("teams: {a: {tokens: [HASH]}, b: {tokens: [HASH]}}", "occurs twice"),
        ("teams: {a: {tokens: [HASH], limit: {}}}", "teams.a.limit: Extra inputs are not permitted"),
        ("teams: {a: {tokens: [HASH], limits: {concurrent: 0}}}", "greater than or equal to 1"),
    ],
)
def test_unusable_tokens_files_are_told_at_the_start(tmp_path: Path, content: str | None, why: str) -> None:
    path = tmp_path / "teams.yaml"
    if content is not None:
        path.write_text(content.replace("HASH", hash_of("x")))

    async def main() -> None:
        with pytest.raises(PreconditionFailed, match=why) as caught:
            async with probing(auth={"tokens_file": path}):
                pass
        assert caught.value.reason == "TOKENS_FILE"

    asyncio.run(main())


def test_asking_for_tokens_without_a_file_is_refused() -> None:
    with pytest.raises(SettingsError, match="required needs a tokens_file"):
        load_settings(ProbeSettings, service="probe", overrides=["auth.required=true"])
