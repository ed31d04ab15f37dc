"""Fixes: what an operator can do about an error of a running service."""

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
from sightline.unreached import advice

_BY_REASON = {
    "PAUSED": "it is paused, perhaps while an update trains: check again afterwards, or call Resume",
    "ENGINE_DOWN": "its engine does not answer: check the engine's pod, its log and engine.*.url",
    "ENGINE_FAILED": "its engine fails: see the engine's log",
    "TOO_MANY_POLICIES": "all policies.max_loaded are in use: check again when runs are idle, or raise it",
    "POLICY_STORE_FULL": "raise policies.max_stored_gib, or use a larger volume",
    "POLICY_EXISTS": "another doctor runs at the same time: check again",
}


def fix_of(error: SightlineError, service: str) -> str:
    """What to do about an error of this service."""
    if error.reason in _BY_REASON:
        return _BY_REASON[error.reason]
    match error:
        case Unauthenticated():
            return "send a token that it knows: sightline --token-file FILE doctor ..., or SIGHTLINE_TOKEN"
        case PermissionDenied():
            return "this token's team is not allowed to: use a token of an operator's team (docs/security.md)"
        case _ if told := advice(error, service):
            return told
        case Unavailable() | DeadlineExceeded():
            return (
                f"is the {service} running and ready, and at that address? kubectl get pods, its log; a NetworkPolicy "
                f"admits other callers only by networkPolicy.callers.{service}; from outside, use kubectl port-forward"
            )
        case Overloaded():
            return "it is full: check again later, or raise the limits of admission or the number of replicas"
        case Unsupported():
            return f"another service or an older release answers there: is it the {service}?"
        case NotFound():
            return "what the call named no longer exists: its log says since when"
        case _:
            return f"the {service}'s log has this call; docs/runbooks.md"
