"""CocoObjects: the 80 objects of MS COCO in a caption, and in an image, by the rule of CHAIR.

Rule (Rohrbach et al. 2018, arXiv 1809.02156; github.com/LisaAnne/Hallucination, utils/chair.py, 2019): split the
lower-cased text into words, bring plurals to the singular, read two-word objects as one word, and look each word up in
a list of synonyms (`coco_objects.json`). The objects of an image are those of its instance annotations and those
that its reference captions mention.

The official script singularises with `pattern` and tokenises with NLTK; here a table of the plurals of the listed
words does the same, without either. What the script does by mistake is mended by default and kept by
`compat="official"`:

- its singular of "bus" is "bu", of "ties" "ty": a bus is never counted, "buses" is; so with airbus, minibus, and the
  plurals canoes, magpies and thieves; "airbuses" are read as a bus
- " motor bike" and " cheesecake" (a space too many), "iPhone" (the text is in lower case) and "stove top oven" (three
  words) are listed but never found
- a word glued to the next sentence ("dog.The"), or to another by a slash, is one unknown word
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

Compat = Literal["mended", "official"]

# A hyphen joins words, as in NLTK; a possessive stands apart from its word; o'clock is no clock.
_TOKEN = {
    "mended": re.compile(r"o'clock|[a-z0-9]+(?:-[a-z0-9]+)*|\S"),
    "official": re.compile(r"o'clock|[a-z0-9]+(?:[-./_][a-z0-9]+)*|\S"),
}
_IRREGULAR = {
    "calf": ["calves"],
    "child": ["children"],
    "goose": ["geese"],
    "grandchild": ["grandchildren"],
    "knife": ["knives"],
    "mouse": ["mice"],
    "ox": ["oxen"],
    "person": ["persons", "people"],
    "pocketknife": ["pocketknives"],
    "thief": ["thieves"],
}
_PLURAL = {"cattle", "children", "oxen", "people", "scissors", "skis"}


def plurals(word: str) -> list[str]:
    """The plural forms of a noun of the list; a form that does not exist does no harm."""
    if word in _PLURAL:
        return []
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("man"):
        return [word[:-3] + "men", word + "s"]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return [word + "es"]
    if word.endswith("y") and word[-2:-1] not in set("aeiou"):
        return [word[:-1] + "ies"]
    if word.endswith("o"):
        return [word + "s", word + "es"]
    return [word + "s"]


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
        # Phrase of several words -> the word it counts as; one that is no object swallows its words.
        self._phrases: dict[tuple[str, ...], str] = {
            tuple(phrase.split()): phrase
            for name, synonyms in listed["objects"].items()
            for phrase in (name, *synonyms)
            if " " in phrase and phrase not in mistakes["unpaired"] and not (official and phrase.count(" ") > 1)
        } | {tuple(pair.split()): word or pair for pair, word in listed["pairs"].items()}
        single = {word for phrase in (*self._object, *map(" ".join, self._phrases)) for word in phrase.split()}
        self._singular = {form: word for word in sorted(single) for form in plurals(word) if form not in single}
        self._singular |= mistakes["singular"]
        self._longest = max(map(len, self._phrases))
        self._first = {phrase[0] for phrase in self._phrases}
        self._token = _TOKEN[compat]

    def find(self, text: str) -> list[Mention]:
        """Every mention, in order."""
        lowered = text.lower()
        tokens = [(m.group(), m.start(), m.end()) for m in self._token.finditer(lowered)]
        singular = self._singular
        words = [singular.get(token, token) for token, _, _ in tokens]
        found: list[tuple[str, int, int]] = []
        at = 0
        while at < len(words):
            length = self._phrase_at(words, at)
            word = words[at] if length == 1 else self._phrases[tuple(words[at : at + length])]
            found.append((word, tokens[at][1], tokens[at + length - 1][2]))
            at += length
        named = {word for word, _, _ in found}
        if "toilet" in named and "seat" in named:  # the seat of a toilet is no chair
            found = [item for item in found if item[0] != "seat"]
        return [
            Mention(self._object[word], text[start:end] if len(lowered) == len(text) else word, start, end)
            for word, start, end in found
            if word in self._object
        ]

    def mentions(self, text: str) -> list[str]:
        """Objects that a text mentions, in order, as often as it does."""
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
            InvalidInput: it is none of the 80.
        """
        if name not in self._object:
            raise InvalidInput(
                f"{name!r} is no COCO object; known are {', '.join(sorted(self.objects))}", reason="UNKNOWN_OBJECT"
            )
        return self._object[name]


def image_key(value: object) -> str:
    """An image id as a key: 42, "42" and "000000000042" are one image; other texts stand as they are."""
    text = str(value).strip()
    return str(int(text)) if text.isdecimal() else text


def load_truth(paths: Iterable[Path], objects: CocoObjects) -> dict[str, frozenset[str]]:
    """The objects of each image, from `{image_id: [objects]}` files, COCO annotation files, or several of them.

    Instance files (`categories` and `annotations` with `category_id`) and caption files (`annotations` with
    `caption`) are added up, as the official rule asks; an image that stands in `images` without annotations has no
    objects. CHAIR needs both kinds: instances alone call a mention of what only the annotators' captions name a
    hallucination.

    Raises:
        InvalidInput: a file that is none of these, or an object that is none of the 80.
    """
    truth: dict[str, set[str]] = {}
    for path in paths:
        for image, names in _read(path, objects):
            truth.setdefault(image, set()).update(names)
    return {image: frozenset(names) for image, names in truth.items()}


def _read(path: Path, objects: CocoObjects) -> Iterator[tuple[str, list[str]]]:
    try:
        value = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"{path} is no readable JSON file ({error})", reason="TRUTH_FILE") from None
    try:
        if isinstance(value, dict) and isinstance(value.get("annotations"), list):
            yield from _annotations(value, objects)
        else:
            for image, names in value.items():
                if isinstance(names, str):
                    raise TypeError("objects are a list")
                yield image_key(image), [objects.word(str(name)) for name in names]
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}", reason=error.reason) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{path} is no truth file ({type(error).__name__}: {error}); wanted {{image_id: [objects]}}, or COCO's "
            "instances_*.json or captions_*.json",
            reason="TRUTH_FILE",
        ) from None


def _annotations(value: Mapping[str, Any], objects: CocoObjects) -> Iterator[tuple[str, list[str]]]:
    category = {row["id"]: objects.word(row["name"]) for row in value.get("categories", [])}
    for row in value.get("images", []):
        yield image_key(row["id"]), []
    for row in value["annotations"]:
        if "caption" in row:
            yield image_key(row["image_id"]), objects.mentions(row["caption"])
        else:
            yield image_key(row["image_id"]), [category[row["category_id"]]]
