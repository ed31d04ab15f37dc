"""Every RPC of the three services with no, a wrong, a limited and the right token, and with no, a wrong and the right
certificate: docs/security.md has the table, and each of its rows is a test."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from chassis_certificates import Authority
from running import ROOT
from sightline.runs.v1 import trainer_pb2
from sightline.sampler.v1 import sampler_pb2
from sightline.scorer.v1 import scorer_pb2
from sightline_chassis.tokens import hash_of
from three_services import three_services

MODULES: dict[str, Any] = {"scorer": scorer_pb2, "sampler": sampler_pb2, "trainer": trainer_pb2}
ALL, NARROW, WRONG = "all-" + "a" * 40, "narrow-" + "n" * 40, "wrong-" + "w" * 40


def rows() -> list[tuple[str, str]]:
    """(service, RPC) of the table."""
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    table = text.partition("<!-- rpcs -->")[2].partition("<!-- end of rpcs -->")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines() if line.startswith("| ")]
    return [(service, rpc) for service, rpc in cells if service in MODULES]


def described() -> list[tuple[str, Any]]:
    """(service, method) of the protos."""
    found = []
    for name, module in MODULES.items():
        (service,) = module.DESCRIPTOR.services_by_name.values()
        found += [(name, method) for method in service.methods]
    return found


def test_the_table_has_every_rpc_once() -> None:
    assert rows() == [(name, method.name) for name, method in described()]


class House:
    """The three services with tokens and mutual TLS."""

    def __init__(self, root: Path) -> None:
        self.authority, self.other = Authority("ours"), Authority("theirs")
        self.ca = root / "ca.crt"
        self.ca.write_bytes(self.authority.pem)
        certificate, key = self.authority.sign("service").write(root, "service")
        teams = {"all": {"tokens": [hash_of(ALL)]}, "narrow": {"tokens": [hash_of(NARROW)], "methods": []}}
        tokens = root / "tokens.yaml"
        tokens.write_text(yaml.safe_dump({"teams": teams}))
        tls = {"mode": "mutual", "certificate": certificate, "key": key, "client_ca": self.ca}
        self.common: dict[str, Any] = {
            "server": {"tls": tls, "drain_seconds": 1, "notice_seconds": 0},
            "auth": {"tokens_file": tokens},
        }
        self.addresses: dict[str, str] = {}
        self.root = root

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """All documented commands."""
        with three_services(self.root, self.common) as found:
            self.addresses = {name: at.grpc for name, at in found.items()}
            yield

    def call(self, name: str, method: Any, token: str | None, signer: Authority | None) -> grpc.RpcError | None:
        """Call a method with an empty request; return the code of the refusal."""
        signed = None if signer is None else signer.sign("caller")
        credentials = grpc.ssl_channel_credentials(
            self.authority.pem, None if signed is None else signed.key, None if signed is None else signed.certificate
        )
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        request = getattr(MODULES[name], method.input_type.name)()
        path = f"/{method.containing_service.full_name}/{method.name}"
        kinds = {False: "unary", True: "stream"}
        kind = f"{kinds[method.client_streaming]}_{kinds[method.server_streaming]}"
        with grpc.secure_channel(self.addresses[name], credentials) as channel:
            stub = getattr(channel, kind)(
                path,
                request_serializer=type(request).SerializeToString,
                response_deserializer=getattr(MODULES[name], method.output_type.name).FromString,
            )
            sent = iter([request]) if method.client_streaming else request
            try:
                answer = stub(sent, timeout=20, metadata=metadata)
                for _ in answer if method.server_streaming else ():
                    break
            except grpc.RpcError as error:
                return error
        return None


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"))
    with made.serving():
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [pytest.param(n, m, id=f"{n}-{m.name}") for n, m in described()])
def test_who_may_call(house: House, name: str, method: Any) -> None:
    ours = house.authority
    refusals = {
        "no token": (None, ours, "UNAUTHENTICATED"),
        "a wrong token": (WRONG, ours, "UNAUTHENTICATED"),
        "a token for other methods": (NARROW, ours, "PERMISSION_DENIED"),
        "no certificate": (ALL, None, "UNAVAILABLE"),
        "another authority's certificate": (ALL, house.other, "UNAVAILABLE"),
    }
    for what, (token, signer, code) in refusals.items():
        error = house.call(name, method, token, signer)
        assert error is not None, what
        assert error.code().name == code, (what, error)
    error = house.call(name, method, ALL, ours)
    assert error is None or error.code().name not in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE"), error
