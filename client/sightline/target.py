"""Targets: a service's address, checked before anything is sent to it. Light."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from sightline.errors import InvalidInput

_LISTS = ("ipv4", "ipv6")
_LOCAL = ("unix", "unix-abstract", "vsock")
_OTHERS = ("xds", "google-c2p")
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\],?#@]+):(?P<port>[0-9]{1,5})")


def check_target(target: str) -> str:
    """The gRPC target, as it was given.

    Raises:
        InvalidInput: TARGET_MALFORMED; a retry would not help.
    """
    if not isinstance(target, str) or not _is_well_formed(target):
        raise InvalidInput(
            f"{str(target)[:200]!r} is not a service's address: write host:port without a scheme or a path, such as "
            "127.0.0.1:50051, [::1]:50051 or scorer.ns.svc:50051 (or dns:///name:port, ipv4:10.0.0.1:1,10.0.0.2:1, "
            "unix:/path, xds:///name)",
            reason="TARGET_MALFORMED",
        )
    return target


def is_loopback(target: str) -> bool:
    """Whether a gRPC target names only this machine."""
    hosts = list(_hosts(target))
    return bool(hosts) and all(_is_this_machine(host) for host in hosts)


def _is_well_formed(target: str) -> bool:
    scheme, _, rest = target.partition(":")
    if scheme in _LOCAL:
        return bool(rest.strip("/"))
    if scheme in _OTHERS:
        return len(rest) > 3 and rest.startswith("//")
    return all(map(_is_address, _addresses(target)))


def _is_address(address: str) -> bool:
    found = _ADDRESS.fullmatch(address)
    return found is not None and 0 < int(found["port"]) < 1 << 16


def _addresses(target: str) -> list[str]:
    """The addresses of a target, without the scheme and the name server."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("dns", *_LISTS):
        # dns://name-server/name:port
        target = rest[2:].partition("/")[2] if rest.startswith("//") else rest
    return target.split(",") if scheme in _LISTS else [target]


def _hosts(target: str) -> Iterator[str]:
    if target.partition(":")[0] in ("unix", "unix-abstract"):
        yield "localhost"
        return
    for address in _addresses(target):
        if address.startswith("["):
            yield address[1:].partition("]")[0]
        else:
            yield address.rpartition(":")[0] or address


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
