"""Released preference sets, read row by row in their original form; a row's keys tell which set it belongs to.

    POVID, CSR      {id, image, conversations: [human, gpt], rejected_conversations: [human, gpt]}
    BPO             {prompt, image, completions: [{score, response, type}, ...]}
    VLFeedback      {id, prompt, img_path, completions: [{model, response, annotations: {aspect: {Rating}}}, ...]}, or
                    completions as one mapping of lists, as `datasets` stores it
    RLHF-V          {image, text: JSON of {question, chosen, rejected}, idx}
    RLAIF-V         {image, question, chosen, rejected, idx}
    SENA, SeVa      {image or image_id, question, chosen, reject}
    TRL             {images, prompt, chosen, rejected}, texts or conversations; the prompt may be in both sides

In VLFeedback, an answer's mark is the mean of its ratings (as in Silkie's code); an answer that is not rated in every
aspect has no mark and is left out, as there. `<image>` in a question is removed: the chat template sets the picture's
place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from statistics import fmean
from typing import Any, Final

from sightline.errors import InvalidInput

from sightline_trainer.pools.asking import PLACEHOLDER
from sightline_trainer.pools.fields import content_id, missing, passed, said
from sightline_trainer.pools.folder import Folder
from sightline_trainer.records.released import Released
from sightline_trainer.row_gate import RowGate

_IMAGES: Final = ("images", "image", "img_path", "image_path", "image_id")
_IDS: Final = ("id", "idx", "prompt_id")

Answers = list[tuple[str, float, str]]
"""(text, mark, kind) of each answer."""


def released(row: Mapping[str, Any], number: int, images: Folder, gate: RowGate | None = None) -> Released:
    """The row with this number (from 1).

    Raises:
        InvalidInput: its set is unknown, a field is missing, no answer is better than another, or a text or picture
            cannot be used.
    """
    question, answers = _read(row)
    if isinstance(question, str):
        question = question.replace(PLACEHOLDER, "").strip()
    passed(question, "prompt", gate)
    for text, mark, kind in answers:
        passed(text, "rejected" if mark == min(each for _, each, _ in answers) else "chosen", gate)
        if not math.isfinite(mark):
            raise InvalidInput(f"the score of an answer ({kind}) is {mark}", reason="PAIR_MARK")
    unequal = {text: mark for text, mark, _ in answers}
    if len(unequal) < 2 or len(set(unequal.values())) < 2:
        raise InvalidInput("no answer is better than another", reason="PAIR_NO_PREFERENCE")
    image = images.image(_image(row, images))
    known = next((row[key] for key in _IDS if key in row and not missing(row[key])), None)
    id_ = f"{known if known is not None else content_id([image], question)}-{number}"
    texts, marks, kinds = zip(*answers, strict=True)
    return Released(id=id_, images=(image,), prompt=question, answers=texts, marks=marks, kinds=kinds)


def _read(row: Mapping[str, Any]) -> tuple[Any, Answers]:
    """Question and answers of a row."""
    if "rejected_conversations" in row:
        question, chosen = _turn(row["conversations"])
        return question, _pair(chosen, _turn(row["rejected_conversations"])[1])
    if not missing(row.get("completions")):
        return said(row.get("prompt")), _completions(row["completions"])
    if isinstance(row.get("text"), str) and "chosen" not in row:
        held = json.loads(row["text"])
        return held["question"], _pair(held["chosen"], held["rejected"])
    if "reject" in row:
        return row.get("question"), _pair(row.get("chosen"), row["reject"])
    if "chosen" in row and "rejected" in row:
        return _trl(row)
    raise InvalidInput(
        f"it has {', '.join(sorted(map(str, row)))[:200]}: it matches no known preference set",
        reason="PAIR_INCOMPLETE",
    )


def _pair(chosen: Any, rejected: Any) -> Answers:
    return [(chosen, 1.0, "chosen"), (rejected, 0.0, "rejected")]


def _turn(conversation: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """Question and answer of a conversation of one turn."""
    who = [turn["from"] for turn in conversation]
    if len(who) != 2 or who[0] not in ("human", "user") or who[1] not in ("gpt", "assistant"):
        raise InvalidInput(
            f"its conversation has the turns {', '.join(map(str, who))[:100]}; exactly one turn is supported",
            reason="PAIR_TURNS",
        )
    return conversation[0]["value"], conversation[1]["value"]


def _trl(row: Mapping[str, Any]) -> tuple[Any, Answers]:
    question = row["question"] if "prompt" not in row else row["prompt"]
    sides = [row["chosen"], row["rejected"]]
    if missing(question) and all(isinstance(side, list | tuple) and len(side) == 2 for side in sides):
        question, sides = [sides[0][0]], [[side[1]] for side in sides]  # TRL's implicit prompt
    return said(question), _pair(said(sides[0]), said(sides[1]))


def _completions(held: Any) -> Answers:
    if isinstance(held, Mapping):  # a mapping of lists
        held = [dict(zip(held, values, strict=True)) for values in zip(*held.values(), strict=True)]
    found = [(each["response"], _mark(each), str(each.get("type") or each.get("model") or "answer")) for each in held]
    return [(text, mark, kind) for text, mark, kind in found if mark is not None]


def _mark(completion: Mapping[str, Any]) -> float | None:
    if "annotations" not in completion:
        return float(completion["score"])
    try:
        return fmean(float(each["Rating"]) for each in completion["annotations"].values() if each is not None)
    except (ValueError, TypeError):  # "N/A", or no aspect: not a mark
        return None


def _image(row: Mapping[str, Any], images: Folder) -> Any:
    """The picture's bytes, or an existing path: sets name files by their paths on the authors' machines."""
    value: Any = next((row[key] for key in _IMAGES if key in row and not missing(row[key])), None)
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise InvalidInput(f"it has {len(value)} images; exactly one is needed", reason="IMAGE_NOT_ONE")
        value = value[0]
    held = value.get("bytes") if isinstance(value, Mapping) else None
    name = value.get("path") if isinstance(value, Mapping) and held is None else value
    if not isinstance(name, str) or not name:
        return value
    near = PurePosixPath(name).name
    absolute = PurePosixPath(name).is_absolute()
    return near if near and (absolute or not (images.base / name).exists()) else name
