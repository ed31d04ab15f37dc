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
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from statistics import fmean
from typing import Any, Final

from sightline.errors import InvalidInput

from sightline_trainer.pools.asking import PLACEHOLDER, is_conversation
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
    try:
        question, answers = _read(row)
    except (LookupError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"a field of its set is missing or of another type ({type(error).__name__}: {error})",
            reason="PAIR_INCOMPLETE",
        ) from None
    if isinstance(question, str):
        question = question.replace(PLACEHOLDER, "").strip()
    passed(question, "prompt", gate)
    for text, mark, kind in answers:
        passed(text, "rejected" if mark == min(each for _, each, _ in answers) else "chosen", gate)
        if not math.isfinite(mark):
            raise InvalidInput(f"the score of an answer ({kind}) is {mark}", reason="PAIR_MARK")
    unequal = {text.strip(): mark for text, mark, _ in answers}
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
        other, rejected = _turn(row["rejected_conversations"])
        if _plain(question) != _plain(other):
            raise _other_questions()
        return question, _pair(chosen, rejected)
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


def _plain(question: Any) -> str:
    """A question without the place of its picture and without spacing."""
    return " ".join(str(question).replace(PLACEHOLDER, " ").split())


def _other_questions() -> InvalidInput:
    return InvalidInput("its two sides answer different questions", reason="PAIR_QUESTIONS_DIFFER")


def _trl(row: Mapping[str, Any]) -> tuple[Any, Answers]:
    question = said(row.get("prompt", row.get("question")))
    sides = [row["chosen"], row["rejected"]]
    if all(is_conversation(side) and len(side) > 1 for side in sides):  # TRL's implicit prompt, or the prompt again
        before = [said(side[:-1]) for side in sides]
        if missing(question):
            question = before[0]
        if any(not isinstance(one, str) for one in (*before, question)):
            raise _several_turns()
        if any(_plain(one) != _plain(question) for one in before):
            raise _other_questions()
        sides = [side[-1:] for side in sides]
    if is_conversation(question) and len(question) > 1:
        raise _several_turns()
    if missing(question):
        raise InvalidInput("it has no prompt, neither in a column nor in both sides", reason="PROMPT_MISSING")
    return question, _pair(said(sides[0]), said(sides[1]))


def _several_turns() -> InvalidInput:
    return InvalidInput("its prompt has several turns; exactly one is supported", reason="PAIR_TURNS")


def _completions(held: Any) -> Answers:
    if isinstance(held, Mapping):  # a mapping of lists
        held = [dict(zip(held, values, strict=True)) for values in zip(*held.values(), strict=True)]
    rated = {name for each in held for name, told in (each.get("annotations") or {}).items() if told is not None}
    found = [
        (each["response"], _mark(each, rated), str(each.get("type") or each.get("model") or "answer")) for each in held
    ]
    return [(text, mark, kind) for text, mark, kind in found if mark is not None]


def _mark(completion: Mapping[str, Any], rated: Collection[str]) -> float | None:
    """An answer's mark; None if it lacks the rating of one of the aspects in which answers of its row are rated."""
    if "annotations" not in completion:
        try:
            return float(completion["score"])
        except (ValueError, TypeError):
            raise InvalidInput(
                f"the score of an answer is {completion['score']!r:.40}, not a number", reason="PAIR_MARK"
            ) from None
    try:
        return fmean(float(completion["annotations"][name]["Rating"]) for name in rated)
    except (ValueError, TypeError, KeyError):  # "N/A", or no aspect: not a mark
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
