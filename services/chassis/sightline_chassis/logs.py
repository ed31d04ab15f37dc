"""Logs: one JSON object per line on stderr, each with the id of the request it belongs to."""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline_chassis.sections import LogSettings

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the request being served; "" outside a request."""

trace_id: contextvars.ContextVar[str] = contextvars.ContextVar("trace_id", default="")
"""The W3C trace that the work belongs to; "" outside a trace."""

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A line `{"ts", "level", "service", "logger", "message", "request_id"?, "trace_id"?, ...extra, "exception"?}`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; values that JSON cannot hold are written as text."""
        line = {
            "ts": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _belongs()
        extra = {key: _plain(value) for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({**line, **{k: v for k, v in extra.items() if k not in line}}, default=str)


class TextFormatter(logging.Formatter):
    """The same for people: time, level, logger, message, extra fields, request and trace id."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line, the traceback (if any) below it."""
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        extra |= _belongs()
        tail = "".join(f" {key}={value}" for key, value in extra.items())
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:<7} {record.name}: {record.getMessage()}{tail}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure(settings: LogSettings, service: str) -> None:
    """Send the whole process's logs, and Python's warnings, to stderr. Call it once, at start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if settings.format == "json" else TextFormatter())
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("asyncio", "httpx", "httpcore", "urllib3", "filelock", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _belongs() -> dict[str, str]:
    known = {"request_id": request_id.get(), "trace_id": trace_id.get()}
    return {name: value for name, value in known.items() if value}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # NaN is not JSON
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
