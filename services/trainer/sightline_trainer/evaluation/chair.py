"""CHAIR: how much of a caption is not in the image (Rohrbach et al. 2018, arXiv 1809.02156).

    CHAIR_s = captions with a hallucinated object / captions
    CHAIR_i = hallucinated object mentions / object mentions          (pooled over captions)
    cover   = true objects mentioned / true objects                   (pooled recall; 1 caption an image)

An object is hallucinated if the caption mentions it and the image does not hold it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline_chassis.errors import InvalidInput

_WORD = re.compile(r"[a-z0-9']+")


class Vocabulary:
    """The objects that a text can mention, each with its ways of being named."""

    def __init__(self, names: dict[str, Sequence[str]]) -> None:
        """``names`` maps an object to the phrases that mean it."""
        self._phrases = {
            tuple(_WORD.findall(phrase.lower())): name for name, phrases in names.items() for phrase in phrases
        }
        self._longest = max((len(phrase) for phrase in self._phrases), default=0)
        self.objects = frozenset(names)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read ``vocabulary.json``: ``{"objects": [...], "synonyms": {phrase: object}}``."""
        value = json.loads(path.read_text())
        names: dict[str, list[str]] = {name: [name] for name in value["objects"]}
        for phrase, name in value.get("synonyms", {}).items():
            if name not in names:
                raise InvalidInput(f"{path}: synonym {phrase!r} names the unknown object {name!r}")
            names[name].append(phrase)
        return cls(dict(names))

    def mentions(self, text: str) -> list[str]:
        """Objects that a text mentions, in order, as often as it does; the longest phrase wins."""
        words = _WORD.findall(text.lower())
        found: list[str] = []
        at = 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                name = self._phrases.get(tuple(words[at : at + length]))
                if name is not None:
                    found.append(name)
                    at += length
                    break
            else:
                at += 1
        return found


@dataclass(frozen=True)
class Chair:
    """Integer counts; the metrics are their ratios. A ratio of nothing is 0."""

    captions: int
    hallucinated_captions: int
    mentions: int
    hallucinated_mentions: int
    true_objects: int
    covered_objects: int

    @property
    def chair_s(self) -> float:
        return self.hallucinated_captions / self.captions if self.captions else 0.0

    @property
    def chair_i(self) -> float:
        return self.hallucinated_mentions / self.mentions if self.mentions else 0.0

    @property
    def cover(self) -> float:
        return self.covered_objects / self.true_objects if self.true_objects else 0.0


def chair(captions: Iterable[tuple[str, Iterable[str]]], vocabulary: Vocabulary) -> Chair:
    """Count over ``(caption, objects that are in its image)``.

    Raises:
        InvalidInput: a truth names an object that the vocabulary does not know.
    """
    counts = [0] * 6
    for text, objects in captions:
        truth = frozenset(objects)
        if not truth <= vocabulary.objects:
            raise InvalidInput(f"truth names unknown objects: {sorted(truth - vocabulary.objects)}")
        mentioned = vocabulary.mentions(text)
        wrong = sum(name not in truth for name in mentioned)
        for i, count in enumerate(
            (1, int(wrong > 0), len(mentioned), wrong, len(truth), len(truth.intersection(mentioned)))
        ):
            counts[i] += count
    return Chair(*counts)
