"""Fixes: what an operator does about an error of a running service."""

from __future__ import annotations

from sightline.errors import (
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    SightlineError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

_BY_REASON = {
    "PAUSED": "it is paused, or rests while an update trains: look again afterwards, or Resume",
    "ENGINE_DOWN": "its engine does not answer: the engine's pod, its log, engine.*.url",
    "ENGINE_FAILED": "its engine fails: the engine's own log",
    "TOO_MANY_POLICIES": "all of policies.max_loaded are in use: look again when the runs are idle, or raise it",
    "POLICY_STORE_FULL": "more room for policies: policies.max_stored_gib, or a larger volume",
    "POLICY_EXISTS": "another doctor looks at the same time: look again",
}
_ENCRYPTED = ("handshake", "certificate", "ssl", "tsi", "peer name")
_BROKEN_OFF = ("socket closed", "connection reset", "recvmsg", "goaway", "unavailable: http/2")


def fix_of(error: SightlineError, service: str) -> str:
    """What to do about an error of that service."""
    if error.reason in _BY_REASON:
        return _BY_REASON[error.reason]
    said = str(error).lower()
    match error:
        case Unauthenticated():
            return "show a token that it knows: sightline --token-file FILE doctor ..., or SIGHTLINE_TOKEN"
        case PermissionDenied():
            return "this token's team may not: a token of an operator's team (docs/security.md)"
        case Unavailable() if any(word in said for word in _ENCRYPTED):
            return "TLS: --tls-ca of its authority, --tls-name where the address is another, --tls-cert and --tls-key"
        case Unavailable() if any(word in said for word in _BROKEN_OFF):
            return "if it speaks TLS: --tls-ca; else see its log and its restarts"
        case Unavailable() if "backend unhealthy" in said:
            return (
                f"what answers there is no {service}, or not ready: is it another service's address? Its log says "
                "`not ready: ...` and why"
            )
        case Unavailable() | DeadlineExceeded():
            return (
                f"is the {service} running and ready, and at that address? kubectl get pods, its log; a NetworkPolicy "
                f"lets strangers in by networkPolicy.callers.{service} only; from outside, kubectl port-forward"
            )
        case Overloaded():
            return "it is full: look again later, or raise admission's limits or its replicas"
        case Unsupported():
            return f"another service answers there, or an older one: is that the {service}?"
        case NotFound():
            return "what it named is gone: its log says when"
        case _:
            return f"the {service}'s log has this call; docs/runbooks.md"
