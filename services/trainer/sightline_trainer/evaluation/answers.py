"""Answers of a model, written as JSON lines while it is asked, so that a stopped evaluation can resume.

The first line identifies the questions and the policy; a file for another policy, dataset or seed is refused. If a line
was half written when the process died, its question is asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sightline.errors import InvalidInput


class AnswerFile:
    """A context manager: `known` holds the answers of earlier runs by key, `add` appends one."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        """Without a path, answers are only kept in memory."""
        self.path = path
        self.identity = dict(identity)
        self.known: dict[str, dict[str, Any]] = {}
        self._file: Any = None

    def __enter__(self) -> AnswerFile:
        if self.path is None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read() if self.path.exists() else 0
        self._file = self.path.open("ab")
        self._file.truncate(whole)
        if not whole:
            self._write({"asked": self.identity})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def add(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer."""
        self.known[key] = dict(answer)
        if self._file is not None:
            self._write({"key": key, **answer})

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()

    def _read(self) -> int:
        """Read the existing answers; returns the length of the complete lines in bytes."""
        assert self.path is not None
        whole = 0
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                value = json.loads(line)
                if number == 1:
                    self._same(value["asked"])
                else:
                    self.known[str(value.pop("key"))] = value
            except (ValueError, KeyError, TypeError):
                raise InvalidInput(
                    f"{self.path}, line {number} is not an answer of an evaluation; name another file with --answers",
                    reason="ANSWERS_FILE",
                ) from None
            whole += len(line)
        return whole

    def _same(self, asked: Mapping[str, Any]) -> None:
        other = sorted(name for name in {*asked, *self.identity} if asked.get(name) != self.identity.get(name))
        if other:
            difference = "; ".join(
                f"{name} {asked.get(name)!r} there, {self.identity.get(name)!r} now" for name in other
            )
            raise InvalidInput(
                f"{self.path} contains answers to another evaluation ({difference}); remove it or name another with "
                f"--answers",
                reason="ANSWERS_DIFFER",
            )
