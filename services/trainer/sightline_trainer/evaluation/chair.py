"""CHAIR: how much of a caption is not in the image (Rohrbach et al. 2018, arXiv 1809.02156).

    CHAIR_s = captions with a hallucinated object / captions
    CHAIR_i = hallucinated object mentions / object mentions          (pooled over captions)
    cover   = true objects mentioned / true objects                   (pooled recall; once for each caption)

An object is hallucinated if the caption mentions it but the image does not contain it. As in the official script,
CHAIR_i counts mentions, not distinct objects, and all three metrics are pooled, not means over captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sightline.errors import InvalidInput

from sightline_trainer.evaluation.lines import read_value
from sightline_trainer.evaluation.ratios import Part

_WORD = re.compile(r"(?:[^\W_]|['\u0300-\u036f])+")
"""Letters of any language: Cyrillic words are found, but not the "cat" in "catégorie"."""


@dataclass(frozen=True)
class Mention:
    """A mention of an object in a text; `text[start:end]` are the words."""

    object: str
    words: str
    start: int
    end: int


class Objects(Protocol):
    """Finds objects in texts: a dataset's `Vocabulary`, or `coco.CocoObjects`."""

    objects: frozenset[str]

    def find(self, text: str) -> list[Mention]: ...


class Vocabulary:
    """The objects that a text can mention, with the phrases for each."""

    def __init__(self, names: dict[str, Sequence[str]]) -> None:
        """`names` maps an object to the phrases that mean it."""
        self._phrases = {
            tuple(_WORD.findall(phrase.lower())): name for name, phrases in names.items() for phrase in phrases
        }
        self._longest = max((len(phrase) for phrase in self._phrases), default=0)
        self.objects = frozenset(names)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read `vocabulary.json`: `{"objects": [...], "synonyms": {phrase: object}}`.

        Raises:
            InvalidInput: the file is not a vocabulary.
        """
        value = read_value(path)
        try:
            names: dict[str, list[str]] = {name: [name] for name in value["objects"]}
            synonyms = dict(value.get("synonyms", {}))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidInput(
                f'{path} is not a vocabulary ({type(error).__name__}: {error}); wanted {{"objects": [...], "synonyms": '
                "{phrase: object}} (docs/data.md)",
                reason="VOCABULARY",
            ) from None
        for phrase, name in synonyms.items():
            if name not in names:
                raise InvalidInput(
                    f"{path}: synonym {phrase!r} names the unknown object {name!r}", reason="UNKNOWN_OBJECT"
                )
            names[name].append(phrase)
        return cls(dict(names))

    def find(self, text: str) -> list[Mention]:
        """Every mention, in order; the longest phrase wins."""
        words = [(match.group(), match.start(), match.end()) for match in _WORD.finditer(text.lower())]
        found: list[Mention] = []
        at = 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                name = self._phrases.get(tuple(word for word, _, _ in words[at : at + length]))
                if name is not None:
                    start, end = words[at][1], words[at + length - 1][2]
                    found.append(Mention(name, text[start:end], start, end))
                    at += length
                    break
            else:
                at += 1
        return found

    def mentions(self, text: str) -> list[str]:
        """Objects that a text mentions, in order, with repetitions."""
        return [mention.object for mention in self.find(text)]


@dataclass(frozen=True)
class Chair:
    """Integer counts; the metrics are their ratios, or None if the denominator is 0."""

    captions: int
    hallucinated_captions: int
    mentions: int
    hallucinated_mentions: int
    true_objects: int
    covered_objects: int

    @property
    def chair_s(self) -> float | None:
        return self.hallucinated_captions / self.captions if self.captions else None

    @property
    def chair_i(self) -> float | None:
        return self.hallucinated_mentions / self.mentions if self.mentions else None

    @property
    def cover(self) -> float | None:
        return self.covered_objects / self.true_objects if self.true_objects else None

    @classmethod
    def of(cls, captions: Iterable[CaptionCounts]) -> Chair:
        """The counts of many captions."""
        rows = list(captions)
        return cls(
            captions=len(rows),
            hallucinated_captions=sum(bool(row.hallucinated) for row in rows),
            mentions=sum(len(row.mentions) for row in rows),
            hallucinated_mentions=sum(len(row.hallucinated) for row in rows),
            true_objects=sum(len(row.truth) for row in rows),
            covered_objects=sum(len(row.covered) for row in rows),
        )


@dataclass(frozen=True)
class CaptionCounts:
    """One caption compared with its image."""

    text: str
    truth: frozenset[str]
    mentions: list[Mention]

    @property
    def hallucinated(self) -> list[Mention]:
        """Mentions of objects that are not in the image, in order."""
        return [mention for mention in self.mentions if mention.object not in self.truth]

    @property
    def covered(self) -> frozenset[str]:
        """True objects that are mentioned."""
        return self.truth & {mention.object for mention in self.mentions}

    @property
    def missed(self) -> list[str]:
        """True objects that are not mentioned, sorted."""
        return sorted(self.truth - self.covered)

    def parts(self) -> dict[str, Part]:
        """This caption's contribution to CHAIR_s, CHAIR_i, cover and the mean length in words (by white space)."""
        wrong = len(self.hallucinated)
        return {
            "chair_s": (float(wrong > 0), 1.0),
            "chair_i": (wrong, len(self.mentions)),
            "cover": (len(self.covered), len(self.truth)),
            "mean_words": (len(self.text.split()), 1.0),
        }


def count(text: str, truth: Iterable[str], objects: Objects) -> CaptionCounts:
    """Compare one caption with the objects in its image.

    Raises:
        InvalidInput: the truth names an object that `objects` does not know; that is an error of the truth, not a
            hallucination.
    """
    known = frozenset(truth)
    if not known <= objects.objects:
        raise InvalidInput(f"truth names unknown objects: {sorted(known - objects.objects)}", reason="UNKNOWN_OBJECT")
    return CaptionCounts(text, known, objects.find(text))


def chair(captions: Iterable[tuple[str, Iterable[str]]], vocabulary: Objects) -> Chair:
    """Count over `(caption, objects in its image)`.

    Raises:
        InvalidInput: a truth names an object that the vocabulary does not know.
    """
    return Chair.of(count(text, truth, vocabulary) for text, truth in captions)
