"""Judges' answers, stored in the run, so that each text is judged once.

`judgements/<term>.jsonl` in a run gets a line for each answer as soon as it arrives; a killed run reads them back and
asks about the rest. An answer is identified by the judge, the picture, the question and how it was asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sightline_trainer.records.prompt import Prompt

logger = logging.getLogger(__name__)


class Judgements:
    """Answers of one term.

    Args:
        path: the file; None keeps them only for this session.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, asyncio.Future[Any]] = {}
        self._read: dict[str, Any] = {}
        self._images: dict[Path, bytes] = {}
        if path is not None and path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        held = path.read_bytes()
        whole = held[: held.rfind(b"\n") + 1]
        if len(whole) < len(held):  # the run was killed while it wrote the last line
            with path.open("r+b") as file:
                file.truncate(len(whole))
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                self._read[row["key"]] = row["said"]
            except (ValueError, LookupError, TypeError):
                logger.warning("a line of %s is damaged; its question is asked again", path)

    async def __call__(self, prompt: Prompt, identity: str, question: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The answer to a question; it is asked only if it was not asked before.

        Args:
            identity: the judge, and how it is asked.
            ask: returns a text, a number or None (any JSON value).
        """
        key = self._key(prompt, identity, question)
        if key in self._read:
            return self._read[key]
        if (known := self._known.get(key)) is not None:
            return await asyncio.shield(known)
        future = self._known[key] = asyncio.get_running_loop().create_future()
        try:
            said = await ask()
            self._keep(key, said)
        except BaseException as error:  # the next caller asks again
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # no caller may be waiting for it
            raise
        else:
            self._read[key] = said
            future.set_result(said)
            return said
        finally:
            del self._known[key]

    def _keep(self, key: str, said: Any) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "said": said}).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def _key(self, prompt: Prompt, identity: str, question: str) -> str:
        for image in prompt.images:
            if image not in self._images:
                self._images[image] = hashlib.sha256(image.read_bytes()).digest()
        said = json.dumps([identity, *(self._images[image].hex() for image in prompt.images), question])
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
