"""Certificates and tokens that a cluster's operator and cert-manager give to a release."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from chassis_certificates import Authority
from containers import Spec
from sightline_chassis.tokens import hash_of

TOKEN = "chart-run-" + "t" * 43
CALLER_TOKEN = "chart-run-caller-" + "c" * 43
"""What callers of the gateway show to it."""


def secrets_of(objects: Sequence[Spec], authority: Authority) -> dict[str, dict[str, bytes]]:
    """Files of the Secrets that the release names but does not contain, by name."""
    teams = {"trainer": {"tokens": [hash_of(TOKEN)]}}
    found = {
        "sightline-tokens": {"tokens.yaml": yaml.safe_dump({"teams": teams}).encode()},
        "sightline-trainer-token": {"token": TOKEN.encode()},
        "gateway-callers": {"token": CALLER_TOKEN.encode()},
    }
    services = [item["metadata"]["name"] for item in objects if item["kind"] == "Service"]
    for item in objects:
        if item["kind"] == "Certificate":
            found[item["spec"]["secretName"]] = _files(authority, item["spec"]["dnsNames"])
    for component in ("scorer", "sampler", "trainer", "gateway"):  # as tls.existingSecrets of the profiles
        name = next((name for name in services if name.endswith(component)), component)
        found.setdefault(f"{component}-tls", _files(authority, [name, f"{name}.align", f"{name}.align.svc"]))
    return found


def _files(authority: Authority, names: Sequence[str]) -> dict[str, bytes]:
    signed = authority.sign(names[0], names=names)
    return {"tls.crt": signed.certificate, "tls.key": signed.key, "ca.crt": authority.pem}
