"""The error tree: errors over the wire and back."""

import pickle
import subprocess
import sys

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from sightline import errors
from sightline.errors import InvalidInput, Overloaded, SightlineError, from_code, from_status, to_status

TREE = SightlineError.__subclasses__()


@pytest.mark.parametrize("cls", TREE)
def test_every_class_survives_the_wire(cls: type[SightlineError]) -> None:
    sent = cls("what is wrong", reason="A_REASON", metadata={"model": "tiny"}, retry_after=1.25)
    got = from_status(status_pb2.Status.FromString(to_status(sent).SerializeToString()))
    assert type(got) is cls
    assert (got.code, got.message, got.reason, got.metadata, got.retry_after) == (
        cls.code,
        "what is wrong",
        "A_REASON",
        {"model": "tiny"},
        1.25,
    )
    assert str(got) == "what is wrong"


def test_codes_are_distinct_and_named_by_default() -> None:
    assert len({cls.code for cls in TREE}) == len(TREE) == 13
    assert all(cls("x").reason == cls.reason and cls.reason.isupper() for cls in TREE)


def test_the_details_are_googles() -> None:
    status = to_status(Overloaded("busy", reason="QUEUE_FULL", retry_after=0.5), request_id="r1")
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.domain, info.reason, dict(info.metadata)) == ("sightline", "QUEUE_FULL", {"request_id": "r1"})
    assert retry.retry_delay.ToMilliseconds() == 500
    assert status.code == 8


def test_a_retry_is_only_promised_when_it_helps() -> None:
    assert len(to_status(InvalidInput("no")).details) == 1


@pytest.mark.parametrize(("number", "code"), [(10, "ABORTED"), (11, "OUT_OF_RANGE"), (2, "UNKNOWN"), (77, "UNKNOWN")])
def test_a_code_without_class_is_a_plain_error(number: int, code: str) -> None:
    error = from_code(number, "hm")
    assert type(error) is SightlineError
    assert (error.code.name, error.reason) == (code, code)


@given(st.text(max_size=5000), st.dictionaries(st.text(max_size=300), st.text(max_size=3000), max_size=40))
def test_any_text_fits_into_trailing_metadata(message: str, metadata: dict[str, str]) -> None:
    status = to_status(SightlineError(message, metadata=metadata), request_id="r" * 128)
    # On the wire: the message percent-encoded (3 bytes for one at worst), the details as base64 (4 for 3).
    assert 3 * len(status.message.encode()) + 4 / 3 * status.ByteSize() < 8192
    assert from_status(status).metadata["request_id"] == "r" * 128


def test_a_lone_surrogate_does_not_hide_the_error() -> None:
    assert to_status(NotADecodableName).message == "no file caf?"


NotADecodableName = errors.NotFound("no file caf\udce9")


def test_errors_pickle() -> None:
    copy = pickle.loads(pickle.dumps(Overloaded("busy", reason="QUEUE_FULL", retry_after=2)))
    assert (type(copy), copy.reason, copy.retry_after, str(copy)) == (Overloaded, "QUEUE_FULL", 2, "busy")


def test_an_error_without_call_is_kept() -> None:
    with pytest.raises(SightlineError, match="odd"), errors.typed_errors():
        raise grpc.RpcError("odd")


def test_the_client_side_is_light() -> None:
    code = (
        "import sys, sightline_chassis, sightline.channel, sightline.errors;"
        "print([m for m in ('pydantic', 'prometheus_client', 'yaml', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
