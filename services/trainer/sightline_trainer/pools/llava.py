"""LLaVA's supervised fine-tuning format: one JSON array of conversations.

    [{"id": "000000033471", "image": "train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat are the colours of the bus?"},
                        {"from": "gpt", "value": "The bus is white and red."}, ...]}, ...]

The prompt is the first question, with its answer as the reference; with `turns=last` it is the last question, and all
before it is history. `image` may be a list: then `<image>` marks each image's place in any question; without marks, all
come before the first. A turn from `system` is the conversation's system turn. Conversations without an image are left
out. Ids repeat in LLaVA's files (one image has several conversations), so the item's number is added.
"""

from __future__ import annotations

from typing import Any, Literal

from sightline_trainer.pools.asking import PLACEHOLDER, placed
from sightline_trainer.pools.fields import Fields
from sightline_trainer.pools.folder import Folder
from sightline_trainer.pools.lines import Reader
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.row_gate import RowGate

_FIELDS = Fields()
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
Asked = Literal["first", "last"]


def conversations(images: Folder, gate: RowGate | None = None, *, asked: Asked = "first") -> Reader:
    """Read items whose images are in `images`; `asked` says which question to use."""

    def read(row: dict[str, Any], number: int) -> Prompt | None:
        if not row.get("image"):
            return None
        turns = [(_ROLES.get(turn["from"], turn["from"]), turn["value"]) for turn in row["conversations"]]
        questions = [at for at, (who, _) in enumerate(turns) if who == "user"]
        if not questions:
            raise KeyError("a turn from human")
        at = questions[0 if asked == "first" else -1]
        answer = next((text for who, text in turns[at + 1 :] if who == "assistant"), "")
        pictures = row["image"] if isinstance(row["image"], list) else [row["image"]]
        prompt, shown = _asked(turns, at, pictures, asked)
        given = {"id": f"{row['id']}-{number}"} if row.get("id") is not None else {}
        return _FIELDS.prompt_of({**given, "image": shown, "prompt": prompt, "reference": answer}, images, gate)

    return read


def _asked(turns: list[tuple[str, Any]], at: int, pictures: list[Any], asked: Asked) -> tuple[Any, list[Any]]:
    """The text of a single question after its images, or the messages up to the question; and their images."""
    before = turns[:at] if asked == "last" else [turn for turn in turns[:at] if turn[0] == "system"]
    said = [*before, turns[at]]
    if not all(isinstance(text, str) for _, text in said):
        return turns[at][1], pictures
    marks = [text.count(PLACEHOLDER) for who, text in turns if who == "user" and isinstance(text, str)]
    if len(pictures) == 1 or not any(marks):  # it belongs to the first question, wherever LLaVA's item marks it
        said = [(who, text.replace(PLACEHOLDER, "").strip()) for who, text in said]
        return said[0][1] if len(said) == 1 else _messages(said), pictures
    if asked == "first":
        pictures = pictures[: marks[0]]
    return _messages([(who, placed(text) if who == "user" else text) for who, text in said]), pictures


def _messages(said: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": who, "content": content} for who, content in said]
