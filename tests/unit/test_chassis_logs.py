"""Logs: JSON that a machine can read whatever is logged."""

import json
import logging
import subprocess
import sys

from sightline_chassis import logs


def line(message: str = "hello", *args: object, **extra: object) -> dict[str, object]:
    """The JSON that a record becomes."""
    logger = logging.getLogger("sightline_test")
    record = logger.makeRecord(logger.name, logging.INFO, "f.py", 1, message, args, None, extra=extra)
    text = logs.JsonFormatter("probe").format(record)
    assert "\n" not in text
    return json.loads(text, parse_constant=lambda name: 1 / 0)  # type: ignore[no-any-return]


def test_a_line_has_what_one_searches_for() -> None:
    got = line("scored %d", 3, seconds=0.5, model="tiny")
    assert got.pop("ts", "").endswith("+00:00")  # type: ignore[attr-defined]
    assert got == {
        "level": "info",
        "service": "probe",
        "logger": "sightline_test",
        "message": "scored 3",
        "seconds": 0.5,
        "model": "tiny",
    }


def test_the_request_id_is_there_inside_a_request() -> None:
    token = logs.request_id.set("r-1")
    try:
        assert line()["request_id"] == "r-1"
    finally:
        logs.request_id.reset(token)


def test_what_json_cannot_hold_is_written_as_text() -> None:
    got = line(loss=float("nan"), deep={"x": [float("inf")]}, path=sys, service="impostor")
    assert (got["loss"], got["deep"], got["service"]) == ("nan", {"x": ["inf"]}, "probe")


def test_stderr_gets_everything_in_one_format() -> None:
    code = """
import logging, warnings
from sightline_chassis import logs
from sightline_chassis.settings import LogSettings
logs.configure(LogSettings(), "probe")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("a").exception("first\\nsecond")
warnings.warn("careful")
logging.getLogger("a").debug("not shown")
logs.configure(LogSettings(format="text", level="debug"), "probe")
logging.getLogger("b").debug("shown", extra={"k": 1})
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == ""
    first, second, third = out.stderr.splitlines()
    assert "ZeroDivisionError" in json.loads(first)["exception"]
    assert "careful" in json.loads(second)["message"]
    assert third.endswith("DEBUG   b: shown k=1")
