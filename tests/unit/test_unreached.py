"""Advice for calls that reached no ready service of their kind."""

import pytest
from sightline.errors import DeadlineExceeded, InvalidInput, SightlineError, Unavailable, Unsupported
from sightline.unreached import advice, away

FAILING = "connections to all backends failing; last error: "


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Unsupported("Method not found!"), "not a scorer, or of another release"),
        (Unavailable(f"{FAILING}ipv4:127.0.0.1:1: backend unhealthy"), "not a scorer, or not ready"),
        (Unavailable(f"{FAILING}UNKNOWN: Tls handshake failed (TSI_PROTOCOL_FAILURE)"), "uses TLS and the other not"),
        (Unavailable(f"{FAILING}UNKNOWN: Tls handshake failed: SSL_ERROR_SSL: WRONG_VERSION_NUMBER: OK"), "no TLS"),
        (Unavailable(f"{FAILING}UNKNOWN: CERTIFICATE_VERIFY_FAILED: unable to get local issuer: OK"), "with --tls-ca"),
        (Unavailable(f"{FAILING}UNKNOWN: CERTIFICATE_VERIFY_FAILED: certificate has expired: OK"), "has expired"),
        (Unavailable(f"{FAILING}UNKNOWN: UNAUTHENTICATED: Hostname Verification Check failed."), "--tls-name NAME"),
        (Unavailable(f"{FAILING}UNKNOWN: ipv4:127.0.0.1:1: Socket closed"), "if it uses TLS, give --tls-ca"),
        (DeadlineExceeded("Deadline Exceeded"), "may still load its models"),
        (DeadlineExceeded("the model backend did not answer within 3 s"), ""),
        (Unavailable(f"{FAILING}UNKNOWN: ipv4:127.0.0.1:1: Connection refused"), ""),
        (Unsupported("this engine has no log-probs"), ""),
        (InvalidInput("texts[0] is empty"), ""),
    ],
)
def test_each_cause_has_its_own_advice(error: SightlineError, says: str) -> None:
    told = advice(error, "scorer")
    assert (says in told, bool(told)) == (True, bool(says))


def test_an_address_where_nobody_listens_is_away() -> None:
    assert away(Unavailable(f"{FAILING}UNKNOWN: ipv4:127.0.0.1:1: Connection refused"))
    assert not away(Unavailable("the queue is full"))
