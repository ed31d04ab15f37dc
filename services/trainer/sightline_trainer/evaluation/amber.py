"""AMBER, generative part (Wang et al. 2023, arXiv 2311.07397).

Source: github.com/junyangwang0410/AMBER, inference.py at 534babf.

Nouns of a response that are in AMBER's word list are compared with the image's annotated words (`truth`, with their
associated words) and with words that people expect but that are not in the image (`hallu`):

    CHAIR = hallucinated nouns / nouns                        (over all responses)
    Cover = annotated words named / annotated words
    Hal   = responses with a hallucinated noun / responses
    Cog   = hallu words named / hallu words          (the script; the paper divides by the nouns: `cog_paper`)

Mistakes of the official script are fixed by default and kept by `compat="official"`:

- a noun that is, or is like, one of the `hallu` words may also match a true word, and count as both
- a word annotated twice can be covered only once, and a word on the list of always safe words never
- denominators start at 0.001, values are rounded to one decimal
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput

from sightline_trainer.evaluation.coco import Compat
from sightline_trainer.evaluation.lines import named, read_lines, read_value
from sightline_trainer.evaluation.ratios import Part, Ratios
from sightline_trainer.evaluation.words import Nouns, Similarity

SIMILAR = 0.8
OFFICIAL_ZERO = 0.001


@dataclass(frozen=True)
class Amber:
    """AMBER's `data` directory: annotations by id, associated words, words that are always safe."""

    annotations: Mapping[int, Mapping[str, Any]]
    association: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @classmethod
    def load(cls, directory: Path) -> Amber:
        """Read annotations.json, relation.json and safe_words.txt.

        Raises:
            InvalidInput: a file is missing or is not AMBER's.
        """
        try:
            rows, association = (read_value(directory / name) for name in ("annotations.json", "relation.json"))
            safe = (directory / "safe_words.txt").read_text(encoding="utf-8").split("\n")
            annotations = {int(row["id"]): {"type": row["type"], **row} for row in rows}
        except (InvalidInput, OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{directory} is not AMBER's data ({type(error).__name__}: {error}); it has annotations.json, "
                "relation.json and safe_words.txt of the AMBER repository's data/",
                reason="AMBER_DATA",
            ) from None
        return cls(annotations, association, frozenset(word for word in safe if word))

    def words(self) -> frozenset[str]:
        """The word list: all associated words and the words that they belong to."""
        return frozenset(self.association) | {word for words in self.association.values() for word in words}

    def generative(self) -> list[int]:
        """Ids of the generative part."""
        return [number for number, row in self.annotations.items() if row["type"] == "generative"]


@dataclass(frozen=True)
class ResponseCounts:
    """One response: its listed nouns and what each matches."""

    nouns: list[str]
    hallucinated: list[str]
    covered: int
    truth: int
    expected: int
    """`hallu` words that were named."""
    hallu: int

    def parts(self) -> dict[str, Part]:
        """Numerator and denominator of each metric."""
        return {
            "chair": (len(self.hallucinated), len(self.nouns)),
            "cover": (self.covered, self.truth),
            "hal": (float(bool(self.hallucinated)), 1.0),
            "cog": (self.expected, self.hallu),
            "cog_paper": (self.expected, len(self.nouns)),
        }


def read_responses(path: Path, amber: Amber) -> dict[int, str]:
    """Responses by id, from a JSON list (as the official script reads) or JSON lines of `{"id", "response"}`.

    Raises:
        InvalidInput: an entry can't be read, or an id is duplicate or not AMBER's; the message names it.
    """
    found: dict[int, str] = {}
    for line in read_lines(path, ["id", "response"]):
        name = line.name("id")
        number = int(name) if name.isdecimal() else None
        if number is None or number not in amber.annotations:
            raise line.fault(f"{name!r} is not an id of AMBER's annotations")
        if number in found:
            raise line.fault(f"id {number} occurs twice")
        found[number] = line.text("response")
    if not found:
        raise InvalidInput(f"{path} contains no response", reason="EMPTY")
    return found


def complete(wanted: Sequence[int], responses: Mapping[int, str], part: str) -> None:
    """Raise InvalidInput if an id of an answered part has no response."""
    missing = [number for number in wanted if number not in responses]
    if missing:
        raise InvalidInput(
            f"{len(missing)} of {len(wanted)} ids of AMBER's {part} part have no response: id {named(missing)}",
            reason="MISSING_ANSWER",
        )


def count_response(
    text: str,
    annotation: Mapping[str, Any],
    amber: Amber,
    nouns: Nouns,
    similarity: Similarity,
    listed: frozenset[str],
    compat: Compat = "mended",
) -> ResponseCounts:
    """Compare one response with its image's words. `listed` is `amber.words()`."""
    official = compat == "official"
    truth = _Targets(annotation["truth"], amber.association, unique=not official)
    hallu = _Targets(annotation["hallu"], amber.association, unique=not official)
    found = [noun for noun in nouns(text) if noun in listed]
    wrong: list[str] = []
    for noun in found:
        if noun in amber.safe:
            if not official:
                truth.name(lambda word, noun=noun: word == noun)  # type: ignore[misc]
            continue
        if truth.name(lambda word, noun=noun: word == noun):  # type: ignore[misc]
            continue
        expected = hallu.name(lambda word, noun=noun: word == noun)  # type: ignore[misc]

        def alike(word: str, noun: str = noun) -> bool:
            return similarity(noun, word) > SIMILAR

        if official:
            hallu.name(alike)
            if truth.name(alike):
                continue
        elif not expected:
            if truth.name(alike):
                continue
            hallu.name(alike)
        wrong.append(noun)
    return ResponseCounts(found, wrong, sum(truth.named), len(truth.named), sum(hallu.named), len(hallu.named))


class _Targets:
    """Annotated words, each named directly or by an associated word; associated words are tried first."""

    def __init__(self, words: Sequence[str], association: Mapping[str, Sequence[str]], *, unique: bool) -> None:
        own = list(dict.fromkeys(words)) if unique else list(words)
        self.named = [False] * len(own)
        self._ways = [(other, at) for at, word in enumerate(own) for other in association.get(word, ())]
        self._ways += [(word, at) for at, word in enumerate(own)]

    def name(self, fits: Callable[[str], bool]) -> bool:
        """Mark the first target that `fits`; returns whether there is one."""
        for word, at in self._ways:
            if fits(word):
                self.named[at] = True
                return True
        return False


@dataclass(frozen=True)
class Generative:
    """All responses of the generative part."""

    ids: list[int]
    counts: list[ResponseCounts]

    def ratios(self) -> Ratios:
        """CHAIR, Cover, Hal and Cog by image."""
        return Ratios.collect((str(n), one.parts()) for n, one in zip(self.ids, self.counts, strict=True))

    def official(self) -> dict[str, float]:
        """The official script's output, in per cent with one decimal."""
        ratios = self.ratios()

        def percent(name: str) -> float:
            ratio = ratios.of[name]
            return float(ratio.above.sum()) / (OFFICIAL_ZERO + float(ratio.below.sum())) * 100

        clean = len(self.counts) - float(ratios.of["hal"].above.sum())
        return {
            "CHAIR": round(percent("chair"), 1),
            "Cover": round(percent("cover"), 1),
            "Hal": round(100 - clean / (OFFICIAL_ZERO + len(self.counts)) * 100, 1),
            "Cog": round(percent("cog"), 1),
        }


def generative(
    responses: Mapping[int, str], amber: Amber, nouns: Nouns, similarity: Similarity, compat: Compat = "mended"
) -> Generative:
    """The generative part.

    Raises:
        InvalidInput: an image of the part has no response.
    """
    ids, listed = amber.generative(), amber.words()
    complete(ids, responses, "generative")
    counts = [count_response(responses[n], amber.annotations[n], amber, nouns, similarity, listed, compat) for n in ids]
    return Generative(ids, counts)
