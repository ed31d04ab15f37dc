"""Advice for a call that reached no ready service of its kind: gRPC's own words seldom name the cause. Light."""

from __future__ import annotations

from sightline.errors import DeadlineExceeded, SightlineError, Unavailable, Unsupported

_TLS = {
    "wrong_version_number": "the service there uses no TLS: leave out the --tls options; or is it another port?",
    "hostname verification": "its certificate is for another name than the address: give --tls-name NAME, one of the "
    "certificate's names",
    "certificate has expired": "the service's certificate has expired: it needs a new one",
    "certificate_verify_failed": "its certificate is signed by another authority: name that one's file with --tls-ca",
}
"""gRPC's words for a certificate or handshake that was refused, and what to do."""
_ENCRYPTED = ("handshake", "certificate", "ssl", "tsi", "peer name")
_BROKEN_OFF = ("socket closed", "connection reset", "recvmsg", "goaway", "unavailable: http/2")
_AWAY = ("connections to all backends failing", "failed to connect", "dns resolution failed", "deadline exceeded")
_NO_METHOD = ("method not found", "unknown method", "unknown service")


def advice(error: SightlineError, service: str) -> str:
    """What to check, in one clause; "" if the service itself gave the error.

    Args:
        service: the kind that was called, such as "scorer", or "service" if it is not known.
    """
    said = str(error).lower()
    match error:
        case Unavailable() if known := next((fix for word, fix in _TLS.items() if word in said), ""):
            return known
        case Unavailable() if any(word in said for word in _ENCRYPTED):
            return (
                "one side of this connection uses TLS and the other not, or the certificate is another: check --tls, "
                "--tls-ca, --tls-name (the certificate's name, if it differs), --tls-cert, --tls-key"
            )
        case Unavailable() if any(word in said for word in _BROKEN_OFF):
            return "if it uses TLS, give --tls-ca; otherwise see its log and its restarts"
        case DeadlineExceeded() if said == "deadline exceeded":
            return (
                "it did not answer in time: it may still load its models, or have too much to do. Its log says "
                "`serving` when it is ready"
            )
        case Unavailable() if "backend unhealthy" in said:
            return (
                f"the service there is {_other(service)}, or not ready: is it another service's address? Its log says "
                "`not ready: ...` and why"
            )
        case Unsupported() if any(word in said for word in _NO_METHOD):
            return f"the service there is {_other(service)}, or of another release: is it another service's address?"
    return ""


def away(error: SightlineError) -> bool:
    """Whether gRPC says that nothing answers at the address."""
    return str(error).lower().startswith(_AWAY)


def _other(service: str) -> str:
    return "another one" if service == "service" else f"not a {service}"
