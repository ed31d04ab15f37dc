"""LLaVA's supervised fine-tuning format: one JSON array of conversations.

    [{"id": "000000033471", "image": "train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat are the colours of the bus?"},
                        {"from": "gpt", "value": "The bus is white and red."}, ...]}, ...]

Taken are the first question, without the image's placeholder, and its answer as the reference. Conversations without an
image are left out. Ids repeat in LLaVA's files (one image has several conversations), so the item's number is added.
"""

from __future__ import annotations

from typing import Any

from sightline_trainer.pools.fields import Fields
from sightline_trainer.pools.folder import Folder
from sightline_trainer.pools.lines import Reader
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.row_gate import RowGate

_FIELDS = Fields()
PLACEHOLDER = "<image>"


def conversations(images: Folder, gate: RowGate | None = None) -> Reader:
    """Read items whose images lie in `images`."""

    def read(row: dict[str, Any], number: int) -> Prompt | None:
        if not row.get("image"):
            return None
        turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
        asked = next((at for at, (who, _) in enumerate(turns) if who in ("human", "user")), None)
        if asked is None:
            raise KeyError("a turn from human")
        answer = next((text for who, text in turns[asked + 1 :] if who in ("gpt", "assistant")), "")
        text = turns[asked][1]
        if isinstance(text, str):
            text = text.replace(PLACEHOLDER, "").strip()
        given = {"id": f"{row['id']}-{number}"} if row.get("id") is not None else {}
        return _FIELDS.prompt_of({**given, "image": row["image"], "prompt": text, "reference": answer}, images, gate)

    return read
