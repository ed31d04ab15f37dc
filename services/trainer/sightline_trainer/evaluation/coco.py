"""CocoObjects: the 80 objects of MS COCO in a caption, and in an image, by the rule of CHAIR.

Rule (Rohrbach et al. 2018, arXiv 1809.02156; github.com/LisaAnne/Hallucination, utils/chair.py, 2019): split the
lower-cased text into words, bring plurals to the singular, read two-word objects as one word, and look up each word in
a list of synonyms (`coco_objects.json`). The objects of an image are those in its instance annotations and those that
its reference captions mention.

The official script tokenises with NLTK and singularises with `pattern`; here `treebank` and a table of plurals of the
listed words do the same without these packages. The script's mistakes are fixed by default and kept by
`compat="official"`:

- its singular of "bus" is "bu", of "ties" "ty": a bus is never counted, but "buses" is; the same holds for airbus,
minibus, and the plurals canoes, magpies and thieves; "airbuses" are read as a bus
- " motor bike" and " cheesecake" (a space too many), "iPhone" (the text is in lower case) and "stove top oven" (three
  words) are listed but never found
- a word attached to another word or a sign is one unknown word: "dog.The", "dog/cat", "dog+cat", "-dog", "Frisbee™",
  a dog with a zero-width space
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from sightline.errors import InvalidInput

from sightline_trainer.evaluation.chair import Mention
from sightline_trainer.evaluation.lines import read_value
from sightline_trainer.evaluation.treebank import Token, tokens

Compat = Literal["mended", "official"]

# A hyphen joins words, as in NLTK; a possessive is separate from its word; o'clock is not a clock. Letters are those of
# any language: "catégorie" does not contain a "cat".
_LETTERS = r"(?:[^\W_]|[\u0300-\u036f])+"
_MENDED = re.compile(rf"o'clock|{_LETTERS}(?:-{_LETTERS})*|\S")
_IRREGULAR = {
    "calf": ["calves"],
    "child": ["children"],
    "goose": ["geese"],
    "grandchild": ["grandchildren"],
    "knife": ["knives"],
    "mouse": ["mice"],
    "ox": ["oxes"],
    "person": ["people"],
    "pocketknife": ["pocketknives"],
    "thief": ["thieves"],
}
_PLURAL = {"oxen", "scissors", "skis"}
# For these the official singular looks only at the end of a word.
_ENDINGS = {"buses": "bus", "collies": "collie", "doggies": "doggie"}


def plurals(word: str) -> list[str]:
    """The plural forms of a listed noun, including common misspellings ("knifes", "puppys"); a form that does not exist
    does no harm."""
    if word in _PLURAL:
        return []
    forms = list(_IRREGULAR.get(word, ()))
    if word.endswith("man"):
        forms.append(word[:-3] + "men")
    elif word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.append(word + "es")
    elif word.endswith("y") and word[-2:-1] not in set("aeiou"):
        forms.append(word[:-1] + "ies")
    return [*forms, word + "s"]


@functools.cache
def _listed() -> Mapping[str, Any]:
    text = resources.files("sightline_trainer.evaluation").joinpath("coco_objects.json").read_text()
    return dict(json.loads(text))


class CocoObjects:
    """Finds COCO objects in texts. A drop-in for `sightline_trainer.evaluation.chair.Vocabulary`."""

    def __init__(self, compat: Compat = "mended") -> None:
        listed, official = _listed(), compat == "official"
        mistakes: Mapping[str, Any] = listed["official"] if official else {"unread": [], "unpaired": [], "singular": {}}
        self.objects = frozenset(listed["objects"])
        self._object: dict[str, str] = {
            phrase: name
            for name, synonyms in listed["objects"].items()
            for phrase in (name, *synonyms)
            if phrase not in mistakes["unread"]
        }
        # Phrase of several words -> the word that it counts as; a phrase that is not an object consumes its words.
        self._phrases: dict[tuple[str, ...], str] = {
            tuple(phrase.split()): phrase
            for name, synonyms in listed["objects"].items()
            for phrase in (name, *synonyms)
            if " " in phrase and phrase not in mistakes["unpaired"] and not (official and phrase.count(" ") > 1)
        } | {tuple(pair.split()): word or pair for pair, word in listed["pairs"].items()}
        single = {word for phrase in (*self._object, *map(" ".join, self._phrases)) for word in phrase.split()}
        self._singular = {form: word for word in sorted(single) for form in plurals(word) if form not in single}
        if official:
            self._singular |= {word + "e": word for word in single if word.endswith("a")}
        self._singular |= mistakes["singular"]
        self._endings = _ENDINGS if official else {}
        self._longest = max(map(len, self._phrases))
        self._first = {phrase[0] for phrase in self._phrases}
        self._tokens = tokens if official else _mended_tokens

    def find(self, text: str) -> list[Mention]:
        """Every mention, in order."""
        lowered = text.lower()
        read = self._tokens(lowered)
        words = [self._one(token) for token, _, _ in read]
        found: list[tuple[str, int, int]] = []
        at = 0
        while at < len(words):
            length = self._phrase_at(words, at)
            word = words[at] if length == 1 else self._phrases[tuple(words[at : at + length])]
            found.append((word, read[at][1], read[at + length - 1][2]))
            at += length
        named = {word for word, _, _ in found}
        if "toilet" in named and "seat" in named:  # the seat of a toilet is not a chair
            found = [item for item in found if item[0] != "seat"]
        return [
            Mention(self._object[word], text[start:end] if len(lowered) == len(text) else word, start, end)
            for word, start, end in found
            if word in self._object
        ]

    def _one(self, token: str) -> str:
        """The singular of a word."""
        for ending, word in self._endings.items():
            if token.endswith(ending):
                return word
        return self._singular.get(token, token)

    def mentions(self, text: str) -> list[str]:
        """Objects that a text mentions, in order, with repetitions."""
        return [mention.object for mention in self.find(text)]

    def _phrase_at(self, words: list[str], at: int) -> int:
        if words[at] not in self._first:
            return 1
        for length in range(min(self._longest, len(words) - at), 1, -1):
            if tuple(words[at : at + length]) in self._phrases:
                return length
        return 1

    def word(self, name: str) -> str:
        """The object that a COCO category means.

        Raises:
            InvalidInput: it is not one of the 80.
        """
        if name not in self._object:
            raise InvalidInput(
                f"{name!r} is not a COCO object; known are {', '.join(sorted(self.objects))}", reason="UNKNOWN_OBJECT"
            )
        return self._object[name]


def _mended_tokens(text: str) -> list[Token]:
    return [(match.group(), match.start(), match.end()) for match in _MENDED.finditer(text)]


def image_key(value: object) -> str:
    """An image id as a key: 42, "42", "000000000042", "COCO_val2014_000000000042.jpg" and "000000000042.jpg" (COCO's
    names of 2014 and 2017, with or without directories) are one image; other texts are unchanged."""
    text = str(value).strip()
    if text.isdecimal():
        return str(int(text))
    file = _COCO_FILE.fullmatch(text)
    return str(int(file.group(1) or file.group(2))) if file else text


_COCO_FILE = re.compile(
    r"(?:.*[/\\])?(?:COCO_[a-z]+\d{4}_(\d{12})(?:\.\w+)?|(\d{12})\.(?:jpg|jpeg|png))", re.IGNORECASE
)


class CocoTruth(dict[str, frozenset[str]]):
    """Image -> its objects; for COCO's files also the kinds of annotation that each image has."""

    def __init__(self, objects: Mapping[str, Iterable[str]], kinds: Mapping[str, frozenset[str]] | None = None) -> None:
        """`kinds`: image -> those of "instances" and "captions" that were read; an image without an entry has its
        objects from a plain list, which is complete."""
        super().__init__({image: frozenset(names) for image, names in objects.items()})
        self.kinds = dict(kinds or {})

    def lacks(self, images: Iterable[str]) -> dict[str, list[str]]:
        """Kind of annotation -> the images that have only the other kind."""
        found: dict[str, list[str]] = {}
        for image in images:
            kinds = self.kinds.get(image)
            for kind in ("instances", "captions") if kinds else ():
                if kinds and kind not in kinds:
                    found.setdefault(kind, []).append(image)
        return found


def load_truth(paths: Iterable[Path], objects: CocoObjects) -> CocoTruth:
    """The objects of each image, from `{image_id: [objects]}` files, COCO annotation files, or several of them.

    Instance files (`categories` and `annotations` with `category_id`) and caption files (`annotations` with
    `caption`) are combined, as the official rule requires; an image in `images` without annotations has no objects.
    CHAIR needs both kinds: with instances alone, an object that only the annotators' captions name would count as a
    hallucination. `CocoTruth.lacks` lists where one is missing.

    Raises:
        InvalidInput: a file has another form, or an object is not one of the 80.
    """
    truth: dict[str, set[str]] = {}
    kinds: dict[str, set[str]] = {}
    listed: set[str] = set()
    for path in paths:
        for image, names, kind in _read(path, objects):
            truth.setdefault(image, set()).update(names)
            if kind:
                kinds.setdefault(image, set()).add(kind)
            else:
                listed.add(image)
    return CocoTruth(truth, {image: frozenset(found) for image, found in kinds.items() if image not in listed})


def _read(path: Path, objects: CocoObjects) -> Iterator[tuple[str, list[str], str]]:
    try:
        value = read_value(path)
    except InvalidInput as error:
        raise InvalidInput(str(error.message), reason="TRUTH_FILE") from None
    try:
        if isinstance(value, dict) and isinstance(value.get("annotations"), list):
            yield from _annotations(value, objects)
        else:
            for image, names in value.items():
                if not isinstance(names, list):
                    raise TypeError("objects are a list")
                yield image_key(image), [objects.word(str(name)) for name in names], ""
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}", reason=error.reason) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{path} is not a truth file ({type(error).__name__}: {error}); wanted {{image_id: [objects]}}, or COCO's "
            "instances_*.json or captions_*.json",
            reason="TRUTH_FILE",
        ) from None


def _annotations(value: Mapping[str, Any], objects: CocoObjects) -> Iterator[tuple[str, list[str], str]]:
    category = {row["id"]: objects.word(row["name"]) for row in value.get("categories", [])}
    rows = value["annotations"]
    kind = "captions" if any("caption" in row for row in rows) and not category else "instances"
    for row in value.get("images", []):
        yield image_key(row["id"]), [], kind
    for row in rows:
        if "caption" in row:
            yield image_key(row["image_id"]), objects.mentions(row["caption"]), "captions"
        else:
            yield image_key(row["image_id"]), [category[row["category_id"]]], "instances"
