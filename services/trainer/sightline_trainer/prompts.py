"""Prompt: one image with the user's text, and what is known about the image.

A dataset is a directory with ``prompts.jsonl``, one object a line: ``id``, ``image`` (path relative to the
directory), ``prompt``, and where truth is known ``reference`` (an annotation) and ``objects`` (names of what is in
the image). ``vocabulary.json`` beside it names all objects that a text can mention.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

from sightline_chassis.errors import InvalidInput


@dataclass(frozen=True)
class Prompt:
    """One image and prompt. ``objects`` is empty where truth is not known."""

    id: str
    image: Path
    prompt: str
    reference: str = ""
    objects: tuple[str, ...] = ()

    def seed(self, *parts: int) -> int:
        """A 63-bit seed that depends on the prompt's id and on ``parts`` only."""
        text = "/".join([self.id, *map(str, parts)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def load_prompts(directory: Path) -> list[Prompt]:
    """All prompts of a dataset, in file order.

    Raises:
        InvalidInput: no ``prompts.jsonl``, a line that is no such object, or two prompts with one id.
    """
    path = directory / "prompts.jsonl"
    if not path.is_file():
        raise InvalidInput(
            f"no dataset at {directory}: {path.name} is missing; name a directory with prompts.jsonl",
            reason="DATASET_NOT_FOUND",
        )
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            prompt = Prompt(
                id=str(row["id"]),
                image=directory / row["image"],
                prompt=row["prompt"],
                reference=row.get("reference", ""),
                objects=tuple(row.get("objects", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{path}, line {number}: needs an object with id, image and prompt ({error})", reason="DATASET_LINE"
            ) from error
        if prompt.id in seen:
            raise InvalidInput(f"{path}, line {number}: id {prompt.id!r} stands twice", reason="DATASET_LINE")
        seen.add(prompt.id)
        prompts.append(prompt)
    if not prompts:
        raise InvalidInput(f"{path} is empty", reason="DATASET_EMPTY")
    return prompts


def draw(prompts: list[Prompt], count: int, *, iteration: int, seed: int) -> list[Prompt]:
    """The prompts of one iteration (from 1): walks seeded shuffles of the pool, so that none comes twice
    before all came once. The same arguments give the same prompts."""
    first = (iteration - 1) * count
    drawn: list[Prompt] = []
    epoch, offset = divmod(first, len(prompts))
    while len(drawn) < count:
        order = list(range(len(prompts)))
        random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - a shuffle, no secret
        drawn.extend(prompts[i] for i in order[offset : offset + count - len(drawn)])
        epoch, offset = epoch + 1, 0
    return drawn
