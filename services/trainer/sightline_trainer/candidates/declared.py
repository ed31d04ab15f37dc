"""Turns a question and its answer into one statement, which a scorer can compare with a picture."""

from __future__ import annotations

import re
from typing import Final

_RULES: Final = (
    (re.compile(r"(is|are|was|were) there (?:any )?(an? )?(.+)", re.I), "there {0} {1}{2}", "there {0} no {2}"),
    (re.compile(r"(?:can|do|could) (?:you|we) see (?:any )?(an? )?(.+)", re.I), "there is {0}{1}", "there is no {1}"),
    (re.compile(r"what (?:colou?r|shape|kind|sort|number)\b.* (is|are) (.+)", re.I), "{1} {0} {answer}", None),
    (re.compile(r"(?:what|where|who|which) (is|are) (.+)", re.I), "{1} {0} {answer}", None),
    (re.compile(r"how many (.+?) (?:are|is|can|do|does)\b.*", re.I), "{answer} {0}", None),
)
"""A question's form; its statement; the statement for the answer no, if the answers are only yes and no."""

_ASKED: Final = re.compile(r"(is|are|was|were) (.+)", re.I)
_ARTICLES: Final = ("a", "an", "the")
_DETERMINERS: Final = (*_ARTICLES, "this", "that", "these", "those", "his", "her", "its", "their", "all", "both", "any",
                       "some", "one", "two", "three", "four", "five")  # fmt: skip
_PLACES: Final = ("in", "on", "at", "with", "without", "under", "over", "above", "below", "behind", "beside", "near",
                  "next", "between", "inside", "outside", "facing", "made", "full", "part", "from", "by",
                  "to")  # fmt: skip


def declared(question: str, answer: str) -> str:
    """The answer to a question as a statement: "is there a cat ?", "no" -> "there is no cat".

    An answer of six words or more is used alone; a question of another form is put before its answer.
    """
    plain, said = question.strip().rstrip("?. ").strip(), answer.strip().rstrip(". ").strip()
    if len(said.split()) >= 6:
        return said
    word = re.match(r"(yes|no)\b", said, re.I)
    yes, no = (word is not None and word[1].lower() == each for each in ("yes", "no"))
    for pattern, positive, negative in _RULES:
        match = pattern.fullmatch(plain)
        if match is not None and (negative is None or yes or no):
            form = negative if negative is not None and no else positive
            words = [part or "" for part in match.groups()]
            if negative is not None:
                words[0] = words[0].lower()
            return form.format(*words, answer=said)
    if (yes or no) and (match := _ASKED.fullmatch(plain)) and (cut := _predicate(match[2].split())):
        words, verb = match[2].split(), match[1].lower() + (" not" if no else "")
        return f"{' '.join(words[:cut])} {verb} {' '.join(words[cut:])}"
    return f"{plain} {said}"


def _predicate(words: list[str]) -> int:
    """Where the predicate begins: "the red dog | black", "the man | riding a horse", "it | on the sofa".

    At the first word in -ing after the subject's first word, otherwise at the first preposition, otherwise at an
    article after the subject, otherwise at the last word; 0 if no subject is before it.
    """
    lower = [word.lower() for word in words]
    determined = lower[0] in _DETERMINERS and not set(lower[1:2]) & set(_ARTICLES)  # "this | a kitchen"
    least = 2 if determined else 1  # the subject's own words
    places = range(least, len(lower))
    doing = next((at for at in places if lower[at].endswith("ing")), None)
    where = next((at for at in places if lower[at] in _PLACES), None)
    article = next((at for at in places if lower[at] in _ARTICLES), None)
    found = next((at for at in (doing, where, article) if at is not None), len(lower) - 1)
    return found if found >= least else 0
