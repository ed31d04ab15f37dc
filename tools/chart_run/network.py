"""The pods' network: an address for each, Services as names, NetworkPolicies as refusals."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

NODE = "10.42.0.1"
Labels = dict[str, str]


def sh(*command: str, text: str | None = None) -> None:
    """Run a command of the node."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def begin() -> None:
    """Make the node of this network namespace."""
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "addr", "add", f"{NODE}/32", "dev", "lo")
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("1")


def connect(number: int, pause: int) -> str:
    """Give the namespace of the process `pause` an address and a route; return the address."""
    address, ours = f"10.42.{number // 250}.{number % 250 + 2}", f"pod{number}"
    sh("ip", "link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", str(pause))
    sh("ip", "link", "set", ours, "up")
    inside = ("nsenter", "-t", str(pause), "-n", "ip")
    sh(*inside, "addr", "add", f"{address}/32", "dev", "eth0")
    sh(*inside, "link", "set", "lo", "up")
    sh(*inside, "link", "set", "eth0", "up")
    sh("ip", "route", "add", f"{address}/32", "dev", ours, "src", NODE)
    sh(*inside, "route", "add", NODE, "dev", "eth0")
    sh(*inside, "route", "add", "default", "via", NODE)
    return address


def matches(selector: dict[str, Any], labels: Labels) -> bool:
    """Whether a label selector chooses these labels; only `matchLabels` is known."""
    if set(selector) - {"matchLabels"}:
        raise ValueError(f"a selector with {set(selector)}")
    return selector.get("matchLabels", {}).items() <= labels.items()


def rules(policies: Sequence[dict[str, Any]], pods: Sequence[tuple[str, Labels]]) -> str:
    """The rules of all NetworkPolicies for pods (address, labels), for `nft -f`.

    Peers of other namespaces do not exist here; traffic that is not allowed is dropped. The node reaches its pods, as
    in a cluster.
    """
    forward = ["ct state established,related accept"]
    chains: list[str] = []
    for direction, key, own, other in (("Ingress", "from", "daddr", "saddr"), ("Egress", "to", "saddr", "daddr")):
        for number, (address, labels) in enumerate(pods):
            chosen = [
                policy["spec"]
                for policy in policies
                if direction in policy["spec"]["policyTypes"] and matches(policy["spec"]["podSelector"], labels)
            ]
            if not chosen:
                continue
            name, allowed = f"{direction.lower()}{number}", []
            for rule in (rule for spec in chosen for rule in spec.get(direction.lower()) or ()):
                peers = _addresses(rule.get(key), pods)
                for port in rule.get("ports") or [None]:
                    what = "" if port is None else f" {port['protocol'].lower()} dport {port['port']}"
                    allowed += [f"ip {other} {peer}{what} return" for peer in peers]
            chains.append(f"chain {name} {{\n" + "\n".join([*allowed, "drop"]) + "\n}")
            forward.append(f"ip {own} {address} jump {name}")
    head = "type filter hook forward priority 0; policy accept;\n"
    table = "\n".join([*chains, "chain forward {\n" + head + "\n".join(forward) + "\n}"])
    return f"flush ruleset\ntable inet sightline {{\n{table}\n}}\n"


def _addresses(peers: Sequence[dict[str, Any]] | None, pods: Sequence[tuple[str, Labels]]) -> list[str]:
    if not peers:
        return ["0.0.0.0/0"]
    found = []
    for peer in peers:
        if "podSelector" in peer and "namespaceSelector" not in peer:
            found += [address for address, labels in pods if matches(peer["podSelector"], labels)]
    return found


class Names:
    """A name server on the node: answers A records by `lookup`; other record types get an empty answer."""

    def __init__(self, lookup: Callable[[str], Sequence[str] | None]) -> None:
        self._lookup = lookup
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((NODE, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            question, caller = self._socket.recvfrom(4096)
            try:
                self._socket.sendto(self._answer(question), caller)
            except (IndexError, UnicodeDecodeError, OSError):
                continue

    def _answer(self, message: bytes) -> bytes:
        labels, at = [], 12
        while message[at]:
            labels.append(message[at + 1 : at + 1 + message[at]].decode())
            at += 1 + message[at]
        kind = struct.unpack(">H", message[at + 1 : at + 3])[0]
        asked = message[12 : at + 5]
        found = self._lookup(".".join(labels).lower())
        records = [socket.inet_aton(address) for address in found or ()] if kind == 1 else []
        flags = 0x8580 if found is not None else 0x8583
        head = message[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
        body = (b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + record for record in records)
        return head + asked + b"".join(body)
