"""The command line against a service that requires a certificate and a token."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from chassis_certificates import Authority, put
from scorer_models import encoded, picture
from scorer_scripted import scripted
from sightline_cli.credentials import Credentials, give
from sightline_cli.main import app
from sightline_cli.run import _by_flag
from sightline_trainer.connections import Connection
from typer.testing import CliRunner

TOKEN = "t" * 30


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Options of `sightline` that the service of `authority` accepts."""
    authority = Authority("one")
    certificate, key = authority.sign("caller").write(tmp_path, "caller")
    service_certificate, service_key = authority.sign("service").write(tmp_path, "service")
    ca = put(tmp_path / "ca.crt", authority.pem)
    assert service_certificate.exists()
    assert service_key.exists()
    (tmp_path / "token").write_text(TOKEN + "\n")
    files = {"tls-ca": ca, "tls-cert": certificate, "tls-key": key, "token-file": tmp_path / "token"}
    return [part for name, path in files.items() for part in (f"--{name}", str(path))]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget a command's credentials, so that later tests do not see them."""
    yield
    give(Credentials())


def test_certificate_and_token_are_shown(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "photo.png"
    image.write_bytes(encoded(picture(20, 20)))
    keys = [(tmp_path / name).read_bytes() for name in ("service.key", "service.crt")]
    credentials = grpc.ssl_server_credentials([(keys[0], keys[1])], (tmp_path / "ca.crt").read_bytes(), True)
    with scripted(credentials) as (scorer, at):
        asked = ["score", str(image), "ok 3", "--scorer", at, "--json"]
        done = CliRunner().invoke(app, [*flags, *asked])
        assert done.exit_code == 0, done.output
        assert '"clip_score": 3.0' in done.output
        assert scorer.seen[f"Bearer {TOKEN}"] == 1

        for option in range(0, 6, 2):
            monkeypatch.setenv(f"SIGHTLINE_{flags[option][2:].replace('-', '_').upper()}", flags[option + 1])
        monkeypatch.setenv("SIGHTLINE_TOKEN", "e" * 30)
        assert CliRunner().invoke(app, asked).exit_code == 0
        assert scorer.seen[f"Bearer {'e' * 30}"] == 1

        (tmp_path / "token").unlink()
        lost = CliRunner().invoke(app, [*flags, *asked])
        assert (lost.exit_code, "token" in lost.output) == (2, True)


def test_without_a_key_the_certificate_is_of_no_use(flags: list[str], tmp_path: Path) -> None:
    image = tmp_path / "photo.png"
    image.write_bytes(encoded(picture(20, 20)))
    half = CliRunner().invoke(app, [*flags[:4], "score", str(image), "a", "--scorer", "127.0.0.1:9"])
    assert (half.exit_code, "give both or neither" in half.output) == (2, True)


def test_an_address_given_to_run_gets_them_too_and_one_of_the_file_its_own(flags: list[str]) -> None:
    assert CliRunner().invoke(app, [*flags, "policies", "--help"]).exit_code == 0
    filed = Connection(address="dns:///scorer:1")
    assert _by_flag(None, filed) is filed
    assert _by_flag("dns:///scorer:1", filed) is filed
    shown = _by_flag("dns:///other:1", filed)
    assert shown is not None
    assert shown.credentials()["tls"].certificate == Path(flags[3])
    assert shown.credentials()["token"].read() == TOKEN
