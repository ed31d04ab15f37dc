"""Facts: objects, attributes and relations that a caption states, checked against a dataset's exact truth.

A dataset's `vocabulary.json` says which words can be exchanged: `attributes` (groups of words, such as colours) and
`relations` (groups of phrases after an object, such as "on the left"); `truth.jsonl` lists the true relations,
`{"id", "relations": {object: [phrase, ...]}}`. Then

    object accuracy     mentions of present objects / mentions                         (1 - CHAIR_i)
    attribute accuracy  of mentions whose noun is present, those with the right attribute: if a blue star is in the
    image, "a red star" is a wrong attribute, and "a red ring" says nothing about attributes
    relation accuracy   of true objects that are mentioned with a relation, those with a true one

The decomposition follows AMBER's existence, attribute and relation (Wang et al. 2023, arXiv 2311.07397), for captions
instead of questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sightline.errors import InvalidInput

from sightline_trainer.evaluation.chair import CaptionCounts, Vocabulary, count
from sightline_trainer.evaluation.lines import read_lines, read_value
from sightline_trainer.evaluation.ratios import Part

Relations = Mapping[str, frozenset[str]]
"""Object -> relations that hold for it."""


@dataclass(frozen=True)
class FactCounts:
    """The statements of one caption."""

    caption: CaptionCounts
    attributes: tuple[int, int]
    """Number of right statements, and of all."""
    relations: tuple[int, int]

    def parts(self) -> dict[str, Part]:
        """The contributions to CHAIR, and to attribute and relation accuracy."""
        return self.caption.parts() | {"attribute_accuracy": self.attributes, "relation_accuracy": self.relations}


@dataclass(frozen=True)
class Facts:
    """Compares captions with a dataset's vocabulary and truth."""

    vocabulary: Vocabulary
    attributes: frozenset[str] = frozenset()
    relations: Sequence[str] = ()
    truth: Mapping[str, Relations] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path, ids: Iterable[str] | None = None) -> Facts:
        """Read `vocabulary.json` and, if it exists, `truth.jsonl` (for `ids`, or all of it).

        Raises:
            InvalidInput: the vocabulary is missing, or a file can't be read.
        """
        path = directory / "vocabulary.json"
        if not path.is_file():
            raise InvalidInput(
                f"no {path}: evaluation needs to know which objects a text can mention (docs/data.md)",
                reason="NO_VOCABULARY",
            )
        vocabulary = Vocabulary.load(path)
        words = read_value(path)
        relations = sorted({one for group in words.get("relations", ()) for one in group}, key=len, reverse=True)
        wanted = None if ids is None else set(ids)
        truth: dict[str, Relations] = {}
        if (directory / "truth.jsonl").is_file():
            for line in read_lines(directory / "truth.jsonl", ["id", "relations"]):
                key, stated = line.name("id"), line.row["relations"]
                if not isinstance(stated, dict) or not all(isinstance(one, list) for one in stated.values()):
                    raise line.fault("relations is not an {object: [phrase, ...]}")
                if wanted is None or key in wanted:
                    truth[key] = {name: frozenset(phrases) for name, phrases in stated.items()}
        attributes = frozenset(one for group in words.get("attributes", ()) for one in group)
        return cls(vocabulary, attributes, relations, truth)

    def read(self, image: str, text: str, objects: Iterable[str]) -> FactCounts:
        """One caption of the image `image`, which contains `objects`."""
        counts = count(text, objects, self.vocabulary)
        return FactCounts(counts, self._attributes(counts), self._relations(image, text, counts))

    def _attributes(self, counts: CaptionCounts) -> tuple[int, int]:
        if not self.attributes:
            return 0, 0
        nouns = {self._noun(name) for name in counts.truth}
        stated = [m.object for m in counts.mentions if self._noun(m.object) in nouns]
        return sum(name in counts.truth for name in stated), len(stated)

    def _noun(self, name: str) -> str:
        return " ".join(word for word in name.split() if word not in self.attributes)

    def _relations(self, image: str, text: str, counts: CaptionCounts) -> tuple[int, int]:
        known = self.truth.get(image, {})
        right = stated = 0
        for mention in counts.mentions:
            if mention.object not in known:
                continue
            behind = re.sub(r"\s+", " ", text[mention.end : mention.end + 80].lower()).lstrip()
            relation = next((one for one in self.relations if re.match(rf"{re.escape(one)}\b", behind)), None)
            if relation is not None:
                stated += 1
                right += relation in known[mention.object]
        return right, stated
