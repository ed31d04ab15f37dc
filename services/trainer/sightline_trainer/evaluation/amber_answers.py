"""AMBER, discriminative part: yes/no questions about existence, attributes and relations, with "no" as the positive
class.

    accuracy = right answers / questions          precision = right "no" / "no" said
    recall   = right "no" / questions whose answer is no          F1 = 2 TP / (2 TP + FP + FN)

Source: github.com/junyangwang0410/AMBER, inference.py at 534babf. Kept by `compat="official"`, fixed by default: an
answer counts only if it is exactly "Yes" or "No" (fixed: its first word, in any case); denominators start at 0.001;
precision and recall are rounded to 0.1 % before F1, whose denominator has 0.0001 added (0.001 for existence). In both,
an answer that says neither is wrong, and such answers are counted. All existence questions are about absent things, so
their precision is always 100 % (or undefined) by design of the data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sightline_trainer.evaluation.amber import OFFICIAL_ZERO, Amber, complete
from sightline_trainer.evaluation.coco import Compat
from sightline_trainer.evaluation.ratios import Part, Ratios

Said = Literal["yes", "no", ""]

PARTS: dict[str, tuple[str, ...]] = {
    "existence": ("discriminative-hallucination",),
    "attribute": (
        "discriminative-attribute-state",
        "discriminative-attribute-number",
        "discriminative-attribute-action",
    ),
    "state": ("discriminative-attribute-state",),
    "number": ("discriminative-attribute-number",),
    "action": ("discriminative-attribute-action",),
    "relation": ("discriminative-relation", "relation"),
}
"""Part -> its annotation types; the data spell relations in two ways."""


def said(response: str, compat: Compat = "mended") -> Said:
    """The reading of an answer; "" for neither."""
    if compat == "official":
        return "yes" if response == "Yes" else "no" if response == "No" else ""
    word = re.match(r"\W*([A-Za-z]+)", response)
    first = word.group(1).lower() if word else ""
    return "yes" if first == "yes" else "no" if first == "no" else ""


@dataclass(frozen=True)
class Answer:
    """One question with its truth and the answer."""

    id: int
    type: str
    no: bool
    said: Said

    def parts(self) -> dict[str, Part]:
        """Numerator and denominator of each metric."""
        right_no = self.no and self.said == "no"
        right = right_no or (not self.no and self.said == "yes")
        return {
            "accuracy": (float(right), 1.0),
            "precision": (float(right_no), float(self.said == "no")),
            "recall": (float(right_no), float(self.no)),
            "f1": (2.0 * right_no, float(self.said == "no") + float(self.no)),
        }


@dataclass(frozen=True)
class Discriminative:
    """All answers of the discriminative part."""

    answers: list[Answer]

    def present(self) -> list[str]:
        """Parts that have questions."""
        types = {answer.type for answer in self.answers}
        return [part for part, of in PARTS.items() if types & set(of)]

    def ratios(self, part: str | None = None) -> Ratios:
        """The metrics of one part, or of all questions. The unit is the question, since AMBER's ids name questions."""
        types = PARTS[part] if part else None
        return Ratios.collect((str(a.id), a.parts()) for a in self.answers if types is None or a.type in types)

    def unread(self) -> int:
        """Answers that say neither yes nor no."""
        return sum(not answer.said for answer in self.answers)

    def official(self, part: str | None = None) -> dict[str, float]:
        """The official script's output, in per cent with one decimal."""
        of = self.ratios(part).of

        # The script adds state, number and action, whose denominators each start at 0.001.
        zero = 3 * OFFICIAL_ZERO if part == "attribute" else OFFICIAL_ZERO

        def percent(name: str) -> float:
            return round(float(of[name].above.sum()) / (zero + float(of[name].below.sum())) * 100, 1)

        precision, recall = percent("precision"), percent("recall")
        small = 0.001 if part == "existence" else 0.0001
        f1 = round(2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + small) * 100, 1)
        return {"Accuracy": percent("accuracy"), "Precision": precision, "Recall": recall, "F1": f1}


def discriminative(responses: Mapping[int, str], amber: Amber, compat: Compat = "mended") -> Discriminative:
    """The discriminative part: its answered sub-parts.

    Raises:
        InvalidInput: a question of an answered sub-part has no answer.
    """
    answers: list[Answer] = []
    for part in ("existence", "attribute", "relation"):
        ids = [number for number, row in amber.annotations.items() if row["type"] in PARTS[part]]
        if any(number in responses for number in ids):
            complete(ids, responses, part)
            rows = ((number, amber.annotations[number]) for number in ids)
            answers += [Answer(n, row["type"], row["truth"] == "no", said(responses[n], compat)) for n, row in rows]
    return Discriminative(answers)
