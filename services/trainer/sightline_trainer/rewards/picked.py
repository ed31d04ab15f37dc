"""`picked`: 1 for texts that a person picked as fitting, 0 for those not picked (ILLUME, arXiv 2208.08241).

The picks are in a file of JSON lines, `{"id": a prompt's, "text": ..., "picked": true or false}`: a text that was not
checked has no score. Without a file the truth picks, as ILLUME's human would: all named objects must be present, and at
least `cover` of the present ones must be named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field
from sightline.errors import InvalidInput

from sightline_trainer.evaluation.chair import Vocabulary
from sightline_trainer.pools.lines import bounded_lines
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.term import Term, TermContext, TermPart


class HumanPicks(TermPart):
    """Texts picked by a person (from a file), or by the truth."""

    file: str | None = Field(
        None, description="JSON lines of id, text and picked; null: the ground truth picks (an oracle)."
    )
    cover: float = Field(0.5, ge=0.0, le=1.0, description="Minimum share of present objects that a picked text names.")

    def open(self, context: TermContext) -> Term:
        if self.file is not None:
            return FilePicks(read_picks(Path(self.file).expanduser()))
        return TruthPicks(self.cover, Vocabulary.load(context.dataset / "vocabulary.json"))


class FilePicks:
    """Looks texts up."""

    def __init__(self, picks: Mapping[tuple[str, str], bool]) -> None:
        self.picks = picks

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        found = [self.picks.get((prompt.id, each.text.strip())) for each in candidates]
        return [Score(None, error="NOT_LOOKED_AT") if each is None else Score(float(each)) for each in found]


class TruthPicks:
    """Picks texts that are true and say enough; an image without truth gives no score."""

    def __init__(self, cover: float, vocabulary: Vocabulary) -> None:
        self.cover = cover
        self.vocabulary = vocabulary

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        there = set(prompt.objects)
        if not there:
            return [Score(None, error="TRUTH_UNKNOWN") for _ in candidates]
        named = [set(self.vocabulary.mentions(each.judged_text)) for each in candidates]
        return [Score(float(said <= there and len(said) >= self.cover * len(there))) for said in named]


def read_picks(path: Path) -> dict[tuple[str, str], bool]:
    """The picks in a file, by prompt and text; for a duplicate text, the last one.

    Raises:
        InvalidInput: there is no such file, or a line is not a pick.
    """
    if not path.is_file():
        raise InvalidInput(
            f"there is no file {path}: name a file of picks in reward.terms.picked.file", reason="PICKS_NOT_FOUND"
        )
    found: dict[tuple[str, str], bool] = {}
    with path.open("rb") as file:
        for number, _, _, line in bounded_lines(file):
            if line is not None and not line.strip():
                continue
            try:
                row = json.loads(line or b"")
                if not isinstance(row["text"], str) or not isinstance(row["picked"], bool):
                    raise TypeError("text must be a text, picked true or false")
                found[str(row["id"]), row["text"].strip()] = row["picked"]
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise InvalidInput(
                    f"{path}, line {number}: needs id, text and picked ({error})", reason="PICKS_LINE"
                ) from None
    return found
