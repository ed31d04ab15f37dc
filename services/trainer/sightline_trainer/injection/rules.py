"""RuleWriter: makes errors with the words of a dataset's vocabulary.json, without a language model.

    {"objects": ["red star", ...], "synonyms": {...},
     "attributes": [["red", "green", ...], ...],           words of one group are exchanged
     "relations": [["on the left", "on the right", ...]],  likewise, after an object
     "companions": {"red star": "green ring", ...}}        what often occurs beside an object

The last three are optional; errors that need a missing one are not made.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sightline.errors import InvalidInput

from sightline_trainer.injection.kinds import Kind
from sightline_trainer.records.prompt import Prompt

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectSpan:
    """Where a text names an object: [start, end) with its article and the relation after it."""

    start: int
    end: int
    article: str
    name: str
    relation: str

    def phrase(self, name: str | None = None, relation: str | None = None) -> str:
        """The mention, with another name or relation."""
        name, relation = name or self.name, self.relation if relation is None else relation
        article = self.article
        if article in ("a", "an"):
            article = "an" if name[0] in "aeiou" else "a"
        return " ".join(part for part in (article, name, relation) if part)


class RuleWriter:
    """Makes `errors` errors of the given kinds, as far as the text allows."""

    def __init__(
        self,
        objects: Sequence[str],
        kinds: Sequence[Kind],
        errors: int,
        *,
        attributes: Sequence[Sequence[str]] = (),
        relations: Sequence[Sequence[str]] = (),
        companions: Mapping[str, str] | None = None,
    ) -> None:
        self.objects = list(objects)
        self.kinds = list(kinds)
        self.errors = errors
        self.attributes = attributes
        self.relations = relations
        self.companions = dict(companions or {})
        behind = f"(?: ({_any(word for group in relations for word in group)}))?" if relations else "()"
        self._mention = re.compile(rf"\b(?:(an?|the) )?({_any(objects)})\b{behind}")

    @classmethod
    def load(cls, path: Path, kinds: Sequence[Kind], errors: int) -> RuleWriter:
        """Make one from a vocabulary.json.

        Raises:
            InvalidInput: there is no such file.
        """
        if not path.is_file():
            raise InvalidInput(
                f"no {path}: errors by rules need the dataset's vocabulary; or set candidates.injected.writer",
                reason="NO_VOCABULARY",
            )
        words = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            words["objects"],
            kinds,
            errors,
            attributes=words.get("attributes", ()),
            relations=words.get("relations", ()),
            companions=words.get("companions"),
        )

    async def __call__(self, prompt: Prompt, asked: str, text: str, seed: int) -> str | None:
        rng = random.Random(seed)  # noqa: S311 - a draw, no secret
        made = 0
        for _ in range(self.errors):
            for kind in rng.sample(self.kinds, len(self.kinds)):
                changed = getattr(self, f"_{kind}")(text, prompt, rng)
                if changed is not None and changed != text:
                    text, made = changed, made + 1
                    break
        return text if made else None

    def mentions(self, text: str) -> list[ObjectSpan]:
        """All mentions of objects, in order."""
        return [
            ObjectSpan(match.start(), match.end(), match[1] or "", match[2], match[3] or "")
            for match in self._mention.finditer(text)
        ]

    def _other(self, text: str, prompt: Prompt, near: str, rng: random.Random) -> str | None:
        """An object that is neither mentioned nor, as far as known, present: the companion of `near`, or any."""
        taken = {*prompt.objects, *(mention.name for mention in self.mentions(text))}
        companion = self.companions.get(near)
        if companion is not None and companion not in taken:
            return companion
        free = [name for name in self.objects if name not in taken]
        return rng.choice(free) if free else None

    def _add_object(self, text: str, prompt: Prompt, rng: random.Random) -> str | None:
        for mention in _shuffled(self.mentions(text), rng):
            name = self._other(text, prompt, mention.name, rng)
            if name is not None:
                extra = ObjectSpan(0, 0, "a", name, "").phrase()
                return f"{text[: mention.end]} and {extra}{text[mention.end :]}"
        return None

    def _swap_object(self, text: str, prompt: Prompt, rng: random.Random) -> str | None:
        for mention in _shuffled(self.mentions(text), rng):
            name = self._other(text, prompt, "", rng)
            if name is not None:
                return text[: mention.start] + mention.phrase(name) + text[mention.end :]
        return None

    def _remove_object(self, text: str, prompt: Prompt, rng: random.Random) -> str | None:
        joint = " and "
        for mention in _shuffled(self.mentions(text), rng):
            before, after = text[: mention.start], text[mention.end :]
            if before.endswith(joint):
                return before.removesuffix(joint) + after
            if after.startswith(joint):
                return before + after.removeprefix(joint)
        return None

    def _swap_attribute(self, text: str, prompt: Prompt, rng: random.Random) -> str | None:
        places = [(match, group) for group in self.attributes for match in re.finditer(rf"\b(?:{_any(group)})\b", text)]
        named = {mention.name for mention in self.mentions(text)}
        for match, group in _shuffled(places, rng):
            for word in _shuffled([word for word in group if word != match[0]], rng):
                changed = text[: match.start()] + word + text[match.end() :]
                new = {mention.name for mention in self.mentions(changed)} - named
                if not new & set(prompt.objects):
                    return _articles(changed)
        return None

    def _swap_relation(self, text: str, prompt: Prompt, rng: random.Random) -> str | None:
        for mention in _shuffled([mention for mention in self.mentions(text) if mention.relation], rng):
            group = next(group for group in self.relations if mention.relation in group)
            word = rng.choice([word for word in group if word != mention.relation])
            return text[: mention.start] + mention.phrase(relation=word) + text[mention.end :]
        return None


def _any(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _articles(text: str) -> str:
    return re.sub(r"\ban? (?=(\w))", lambda match: "an " if match[1] in "aeiou" else "a ", text)


def _shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    return rng.sample(list(items), len(items))
