"""Filters: which candidates may be in a pair, and which pairs are worth training on.

CLIP-DPO's rules (arXiv 2408.10433): images without text, a score floor, no long captions, questions that are not too
generic, a CLIPScore gap of at least 2, lengths that are "not too different". Only the gap's threshold is published; the
others are keys of the recipe, with our defaults. The rules on degenerate texts are SENA's (arXiv 2412.15650).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from sightline_trainer.pairs.filter import FilterPart, under
from sightline_trainer.records.response import Response
from sightline_trainer.rewards.clip import QUESTION, sentences

QUESTION_SOURCES = ("right_answer", "wrong_answer")


class Finished(FilterPart):
    """Drop candidates that hit max_tokens before their end token."""

    def candidate_fault(self, scored: Response) -> str | None:
        return None if scored.finish_reason == "eos" else "unfinished"


class ScoreFloor(FilterPart):
    """Drop candidates under a score."""

    min: float = Field(0.0, description="Minimum value (CLIP-DPO has a floor, but does not state it).")
    of: str = Field("reward", description="The reward, or the name of one of its terms.")

    def candidate_fault(self, scored: Response) -> str | None:
        value = value_of(scored, self.of)
        return "unscored" if value is None else "low_score" if under(value, self.min) else None


class Lengths(FilterPart):
    """Bounds of a candidate's tokens, and of a pair's ratio of tokens."""

    min_tokens: int = Field(2, ge=1, description="Drop candidates shorter than this.")
    max_tokens: int | None = Field(
        None, ge=1, description="Drop candidates longer than this; null: none (CLIP-DPO drops long ones, no number)."
    )
    max_words: int | None = Field(
        None, ge=1, description="Drop a prompt if any candidate has more words; null: never (BPO's code: 350)."
    )
    max_ratio: float = Field(
        1.5, ge=1.0, description="Maximum ratio of tokens, longer side over shorter side (CLIP-DPO: no number)."
    )

    def group_fault(self, group: Sequence[Response]) -> str | None:
        most = self.max_words
        long = most is not None and any(len(scored.text.split()) > most for scored in group)
        return "too_many_words" if long else None

    def candidate_fault(self, scored: Response) -> str | None:
        tokens = len(scored.token_ids)
        if tokens < self.min_tokens:
            return "too_short"
        return "too_long" if self.max_tokens is not None and tokens > self.max_tokens else None

    def pair_fault(self, chosen: Response, rejected: Response) -> str | None:
        shorter, longer = sorted((len(chosen.token_ids), len(rejected.token_ids)))
        return "length_differs" if under(self.max_ratio * shorter, longer) else None


class Gap(FilterPart):
    """Drop pairs whose values are too close."""

    min: float = Field(2.0, description="Minimum gap; CLIP-DPO uses 2 on the scale of CLIPScore (100 * cosine).")
    of: str = Field("reward", description="The reward, or the name of one of its terms.")

    def pair_fault(self, chosen: Response, rejected: Response) -> str | None:
        better, worse = value_of(chosen, self.of), value_of(rejected, self.of)
        if better is None or worse is None:
            return "unscored"
        return "small_gap" if under(better - worse, self.min) else None


class Duplicates(FilterPart):
    """Drop pairs whose sides have nearly the same words; equal texts never make a pair anyway."""

    max_overlap: float = Field(
        1.0, gt=0.0, le=1.0, description="Shared words over all words (Jaccard, repeats counted); 1: only equal words."
    )

    def pair_fault(self, chosen: Response, rejected: Response) -> str | None:
        one, other = _bag(chosen.text), _bag(rejected.text)
        union = (one | other).total()
        overlap = (one & other).total() / union if union else 1.0
        same_order = self.max_overlap == 1.0 and _words(chosen.text) != _words(rejected.text)
        return "duplicate" if not under(overlap, self.max_overlap) and not same_order else None


class Degenerate(FilterPart):
    """Drop texts that repeat themselves or contain few letters."""

    max_repeats: int = Field(3, ge=1, description="How often the same four-word sequence may occur in a text.")
    min_letters: float = Field(
        0.5, ge=0.0, le=1.0, description="Minimum share of letters among the non-space characters."
    )
    repeated_sentences: bool = Field(False, description="Allow a sentence to occur twice.")

    def candidate_fault(self, scored: Response) -> str | None:
        text = scored.text
        solid = [letter for letter in text if not letter.isspace()]
        if under(sum(letter.isalpha() for letter in solid), self.min_letters * len(solid)):
            return "degenerate"
        words = _words(text)
        fours = Counter(tuple(words[at : at + 4]) for at in range(len(words) - 3))
        if fours and max(fours.values()) > self.max_repeats:
            return "degenerate"
        said = [tuple(_words(sentence)) for sentence in sentences(text)]
        return "degenerate" if not self.repeated_sentences and len(set(said)) < len(said) else None


class GenericQuestion(FilterPart):
    """Drop questions with a low CLIPScore with the image: they could be asked about any picture."""

    min_score: float = Field(..., ge=0.0, le=100.0, description="Minimum CLIPScore (CLIP-DPO: no number).")

    def candidate_fault(self, scored: Response) -> str | None:
        value = scored.score.terms.get(QUESTION)
        asked = scored.source in QUESTION_SOURCES
        return "generic_question" if asked and value is not None and under(value, self.min_score) else None


def value_of(scored: Response, name: str) -> float | None:
    """The reward of a candidate, or one of its terms; None if it has none."""
    return scored.score.reward if name == "reward" else scored.score.terms.get(name)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _bag(text: str) -> Counter[str]:
    return Counter(_words(text))
