"""`sightline doctor --live` against real services: what it reports, and the fixes that it suggests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chassis_certificates import Authority, put
from engine_mind import Mind
from engine_server import serving_app
from running import WEIGHTS, Services
from sampler_models import running
from sightline.sampler import SamplerClient
from sightline_chassis.tokens import hash_of
from sightline_cli.credentials import Credentials, give
from sightline_cli.main import app
from sightline_cli.processes import Processes
from typer.testing import CliRunner
from vllm_server import VllmServer

TOKEN = "t" * 48


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget a command's credentials, so that later tests do not see them."""
    yield
    give(Credentials())


def doctor(*arguments: str, flags: tuple[str, ...] = ()) -> tuple[int, dict[str, dict[str, str]], str]:
    """Exit code, looks by name, and the whole output."""
    done = CliRunner().invoke(app, [*flags, "doctor", "--live", *arguments, "--json"])
    looks = json.loads(done.stdout) if done.stdout.startswith("[") else []
    return done.exit_code, {look["what"]: look for look in looks}, done.output


@pytest.mark.slow
def test_services_that_are_well(services: Services, tmp_path: Path) -> None:
    with Processes(tmp_path / "trainer") as processes:
        processes.start("trainer", [f"runs={tmp_path / 'runs'}"])
        trainer = processes.wait("trainer").grpc
        with SamplerClient(services.sampler) as client:
            before = client.policy()
        for version in (1, 2):
            everywhere = ("--scorer", services.scorer, "--sampler", services.sampler, "--trainer", trainer)
            code, looks, output = doctor(*everywhere)
            assert code == 0, output
            assert {look["verdict"] for look in looks.values()} == {"ok"}, output
            assert f"staged as {version} of run doctor: 1 module of " in looks["sampler: a null policy"]["found"]
        with SamplerClient(services.sampler) as client:
            assert client.policy() == before
            assert "doctor" not in {policy.run_id for policy in client.policies().policies}
    assert "'a red square'" in looks["scorer: a red square by clip"]["found"]
    assert "gave the same" in looks["sampler: seeds"]["found"]
    assert "POLICY_NOT_SERVED" in looks["sampler: the gate"]["found"]
    assert looks["trainer"]["found"].endswith("runs: none yet")
    table = CliRunner().invoke(app, ["doctor", "--live", "--trainer", trainer])
    assert (table.exit_code, "kubectl" in table.output) == (1, True)  # it has gone
    for swapped in (("--scorer", services.sampler), ("--sampler", services.scorer), ("--trainer", services.scorer)):
        code, looks, output = doctor(*swapped)
        (look,) = looks.values()
        assert (code, look["verdict"]) == (1, "bad"), output
        assert "another service" in look["fix"]


@pytest.mark.slow
def test_a_sampler_before_vllm_whose_adapters_are_loaded() -> None:
    server = VllmServer(Mind(WEIGHTS / "llava"))
    with serving_app(server.app) as url:
        engine = {"kind": "vllm", "vllm": {"url": url}}
        with running(WEIGHTS / "llava", engine=engine, policies={"gate": {"required": True}}) as at:
            code, looks, output = doctor("--sampler", at.address)
        assert code == 0, output
        assert "staged as 1" in looks["sampler: a null policy"]["found"]
    assert [call for call in server.calls if "lora" in call] == ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]


@pytest.mark.slow
def test_doors_that_are_closed(tmp_path: Path) -> None:
    """A certificate of another authority, no certificate, and no token: each error names the missing flag."""
    authority = Authority("one")
    certificate, key = authority.sign("sampler", names=["localhost"]).write(tmp_path, "sampler")
    ca = put(tmp_path / "ca.crt", authority.pem)
    other = put(tmp_path / "other.crt", Authority("two").pem)
    (tmp_path / "token").write_text(TOKEN)
    teams = put(tmp_path / "teams.yaml", yaml.safe_dump({"teams": {"ops": {"tokens": [hash_of(TOKEN)]}}}).encode())
    tls: dict[str, Any] = {"mode": "server", "certificate": str(certificate), "key": str(key)}
    auth = {"tokens_file": str(teams), "required": True}
    with running(WEIGHTS / "llava", server={"tls": tls}, auth=auth) as at:
        here = ("--sampler", at.address)
        shown = ("--tls-ca", str(ca), "--tls-name", "localhost")
        for flags, fix in (
            ((), "--tls-ca"),
            (("--tls-ca", str(other), "--tls-name", "localhost"), "--tls-ca"),
            (shown, "--token-file"),
        ):
            give(Credentials())
            code, looks, output = doctor(*here, flags=flags)
            (look,) = looks.values()
            assert (code, fix in look["fix"]) == (1, True), output
        code, _, output = doctor(*here, flags=(*shown, "--token-file", str(tmp_path / "token")))
        assert code == 0, output


def test_no_address_is_no_question() -> None:
    done = CliRunner().invoke(app, ["doctor", "--live"])
    assert (done.exit_code, "--scorer, --sampler or --trainer" in done.output) == (2, True)
