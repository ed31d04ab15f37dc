"""TLS on the gRPC port: which callers are accepted, and certificates that change while the service runs."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from chassis_certificates import Authority, put
from chassis_probe import Client, ProbeSettings, eventually, growth, probing
from prometheus_client import REGISTRY
from sightline.credentials import Tls
from sightline.errors import PreconditionFailed, Unavailable, typed_errors
from sightline.patience import Patience, Tries
from sightline.scorer.v1 import scorer_pb2, scorer_pb2_grpc
from sightline_chassis.settings import SettingsError, load_settings
from test_chassis_admission import health, scrape


@pytest.fixture(scope="module")
def authorities() -> tuple[Authority, Authority]:
    return Authority("first"), Authority("second")


class Files:
    """The files of a service and of its callers."""

    def __init__(self, root: Path, authority: Authority) -> None:
        self.root = root
        self.certificate, self.key = authority.sign("service").write(root, "service")
        self.ca = put(root / "ca.crt", authority.pem)
        self.client = Tls(self.ca, *authority.sign("caller").write(root, "caller"))

    def server(self, mode: str) -> dict[str, Any]:
        """Settings of `server`."""
        tls = {"mode": mode, "certificate": self.certificate, "key": self.key}
        return {"tls": tls | ({"client_ca": self.ca} if mode == "mutual" else {})}


@pytest.fixture
def files(tmp_path: Path, authorities: tuple[Authority, Authority]) -> Files:
    return Files(tmp_path, authorities[0])


@contextlib.asynccontextmanager
async def calling(target: str, tls: Tls | None) -> AsyncIterator[Client]:
    """A client with a short deadline."""
    async with Client(target, tls=tls) as client:
        yield client.given(timeout=5)


async def refused(target: str, tls: Tls | None) -> str:
    """Why a caller is refused."""
    async with calling(target, tls) as client:
        with pytest.raises(Unavailable) as caught, typed_errors():
            await client.score("ok")
    return caught.value.message


def test_the_server_shows_its_certificate(files: Files, authorities: tuple[Authority, Authority]) -> None:
    async def main() -> None:
        async with probing(server=files.server("server")) as (probe, _, at):
            async with calling(at.grpc, Tls(files.ca)) as client:
                await client.score("ok")
                assert len(await asyncio.gather(*(client.score("ok") for _ in range(5)))) == 5
            async with calling(at.grpc.replace("127.0.0.1", "localhost"), Tls(files.ca)) as client:
                await client.score("ok")
            other = put(files.root / "other.crt", authorities[1].pem)
            assert "CERTIFICATE_VERIFY_FAILED" in await refused(at.grpc, Tls(other))
            await refused(at.grpc, None)  # plaintext
            assert probe.seen["ok"] == 7
            # Probes and scrapes come from callers without certificates.
            assert await asyncio.to_thread(health, at.health) == "SERVING"
            assert "sightline_tls_cert_expiry_timestamp_seconds" in await asyncio.to_thread(scrape, at.metrics)

    asyncio.run(main())


def test_a_caller_needs_a_certificate_of_our_authority(files: Files, authorities: tuple[Authority, Authority]) -> None:
    async def main() -> None:
        async with probing(server=files.server("mutual")) as (probe, _, at):
            async with calling(at.grpc, files.client) as client:
                await client.score("ok")
            await refused(at.grpc, Tls(files.ca))
            strangers = authorities[1].sign("stranger").write(files.root, "stranger")
            await refused(at.grpc, Tls(files.ca, *strangers))
            await refused(at.grpc, None)
            assert probe.seen["ok"] == 1

    asyncio.run(main())


def test_sync_stubs_encrypt_too(files: Files) -> None:
    def ask(target: str) -> None:
        from sightline.channel import open_channel

        with open_channel(target, tls=files.client, token="given") as channel:
            stub = scorer_pb2_grpc.ScorerServiceStub(channel)
            stub.Score(scorer_pb2.ScoreRequest(texts=["ok"]), timeout=5)  # which has no tokens file, and ignores tokens

    async def main() -> None:
        async with probing(server=files.server("mutual")) as (_, _, at):
            await asyncio.to_thread(ask, at.grpc)

    asyncio.run(main())


def test_certificates_and_authority_change_in_mid_flight_and_no_call_is_lost(
    files: Files, authorities: tuple[Authority, Authority]
) -> None:
    first, second = authorities

    async def main() -> None:
        ended = growth("grpc_server_handled_total", grpc_method="Score")
        async with probing(server=files.server("mutual")) as (probe, _, at), calling(at.grpc, files.client) as old:
            slow = [asyncio.ensure_future(old.given(timeout=30).score("sleep 1.5")) for _ in range(8)]
            await eventually(lambda: probe.seen["sleep"] == 8)
            stop = asyncio.Event()

            async def keep_calling() -> int:
                count = 0
                while not stop.is_set():
                    await old.score("ok")
                    count += 1
                return count

            steady = asyncio.ensure_future(keep_calling())
            second.sign("service").write(files.root, "service")
            put(files.ca, second.pem)
            callers = second.sign("caller").write(files.root, "new")
            # A new connection gets the new certificates at once; the old one continues.
            async with calling(at.grpc, Tls(files.ca, *callers)) as new:
                await new.score("ok")
            await refused(at.grpc, Tls(put(files.root / "old.crt", first.pem), *callers))
            await asyncio.gather(*slow)
            stop.set()
            assert await steady > 0
        assert {name.split()[0] for name in ended()} == {"OK"}

    asyncio.run(main())


def test_half_a_rotation_leaves_the_former_certificate_in_force(
    files: Files, authorities: tuple[Authority, Authority], caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> float | None:
        return REGISTRY.get_sample_value("sightline_reload_failing", {"what": "TLS files"})

    def expiry() -> float | None:
        return REGISTRY.get_sample_value("sightline_tls_cert_expiry_timestamp_seconds", {"certificate": "server"})

    async def main() -> None:
        async with probing(server=files.server("server")) as (_, _, at):
            new = authorities[0].sign("service", days=3)
            put(files.certificate, new.certificate)  # its key still belongs to the former certificate
            with caplog.at_level(logging.ERROR):
                async with calling(at.grpc, Tls(files.ca)) as client:
                    await client.score("ok")
            assert failing() == 1
            assert "does not match the first certificate" in caplog.text
            assert expiry() != new.expires
            put(files.key, new.key)
            await eventually(lambda: expiry() == new.expires)  # seen without a call
            assert failing() == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda files: files.key.unlink(), r"server.tls.key: .*service.key cannot be read: No such file"),
        (lambda files: files.certificate.write_text("hello"), "server.tls.certificate: .* contains no PEM certificate"),
        (lambda files: files.key.write_text("hello"), "server.tls.key: .* is not an unencrypted PEM key"),
        (lambda files: files.ca.write_bytes(b""), "server.tls.client_ca: .* contains no PEM certificate"),
        (lambda files: Authority("x").sign("x").write(files.root, "service")[0].write_bytes(files.ca.read_bytes()),
         "server.tls.key: .* does not match the first certificate"),
    ],
    ids=["no key", "no certificate", "key of nothing", "empty authority", "others' key"],
)  # fmt: skip
def test_unusable_files_are_told_at_the_start(files: Files, spoil: Any, why: str) -> None:
    spoil(files)

    async def main() -> None:
        with pytest.raises(PreconditionFailed, match=why) as caught:
            async with probing(server=files.server("mutual")):
                pass
        assert caught.value.reason == "TLS_FILES"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("tls", "why"),
    [
        ("{mode: server}", "needs certificate and key"),
        ("{mode: mutual, certificate: a, key: b}", "needs client_ca"),
        ("{mode: disabled, certificate: a}", "does not use certificate"),
        ("{mode: server, certificate: a, key: b, client_ca: c}", "does not use client_ca"),
        ("{mode: on}", "mode"),
    ],
)
def test_half_settings_are_refused(tls: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        load_settings(ProbeSettings, service="probe", overrides=[f"server.tls={tls}"])


def test_a_client_with_unusable_files_is_told(files: Files, tmp_path: Path) -> None:
    async def main() -> None:
        for tls, why in (
            (Tls(tmp_path / "none.pem"), "cannot be read"),
            (Tls(put(tmp_path / "empty.pem", b"")), "contains no PEM"),
            (Tls(files.ca, certificate=files.certificate), "one of certificate and key"),
        ):
            with pytest.raises(PreconditionFailed, match=why):
                Client("127.0.0.1:1", tls=tls)

    asyncio.run(main())


def test_a_connection_is_renewed_without_a_loss(files: Files) -> None:
    async def main() -> None:
        server = files.server("mutual") | {"max_connection_seconds": 0.3}
        async with (
            probing(server=server) as (probe, _, at),
            Client(at.grpc, tls=files.client) as client,
        ):
            slow = asyncio.ensure_future(client.score("sleep 1"))
            await eventually(lambda: probe.seen["sleep"])
            for _ in range(50):
                await Tries(Patience(), 5).acall(lambda seconds: client.given(timeout=seconds).score("ok"))
                await asyncio.sleep(0.02)
            await slow
            assert probe.seen["ok"] == 50

    asyncio.run(main())


def test_grpc_s_own_channel_gets_in_with_a_certificate(files: Files) -> None:
    """The service requires nothing that gRPC in another language lacks."""

    async def main() -> None:
        async with probing(server=files.server("mutual")) as (_, _, at):
            assert files.client.certificate is not None
            assert files.client.key is not None
            credentials = grpc.ssl_channel_credentials(
                files.ca.read_bytes(), files.client.key.read_bytes(), files.client.certificate.read_bytes()
            )
            async with grpc.aio.secure_channel(at.grpc, credentials) as channel:
                await scorer_pb2_grpc.ScorerServiceStub(channel).Score(scorer_pb2.ScoreRequest(texts=["ok"]))

    asyncio.run(main())
