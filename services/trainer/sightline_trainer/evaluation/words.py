"""AMBER's view of words: the nouns of a text, and the similarity of two words. Both can be replaced."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, Protocol

from sightline.errors import PreconditionFailed

from sightline_trainer.evaluation.coco import plurals

_WORD = re.compile(r"(?:[^\W\d_]|[\u0300-\u036f])+(?:-(?:[^\W\d_]|[\u0300-\u036f])+)*")


class Nouns(Protocol):
    """Finds the nouns of a text, in the singular. `differs` says how it differs from the official script, or ""."""

    differs: str

    def __call__(self, text: str) -> list[str]: ...


class Similarity(Protocol):
    """Similarity of two words, at most 1. `differs` as in `Nouns`."""

    differs: str

    def __call__(self, one: str, other: str) -> float: ...


class ListedNouns:
    """Every word of a list, by form only, singular or plural. There is no tagger, so an "orange" shirt is an orange
    too."""

    differs = (
        "nouns: words of AMBER's own list by their form, instead of NLTK's tagger and WordNet's lemmas; a listed word "
        "that is used as an adjective or verb counts"
    )

    def __init__(self, words: Iterable[str]) -> None:
        listed = set(words)
        self._word = {form: word for word in sorted(listed) for form in plurals(word) if form not in listed}
        self._word |= {word: word for word in listed}

    def __call__(self, text: str) -> list[str]:
        """Listed words in order, with repetitions."""
        return [self._word[token] for token in _WORD.findall(text.lower()) if token in self._word]


class NltkNouns:
    """As the official script: NLTK's tokenizer and tagger, WordNet's lemmas. Needs nltk and its data."""

    differs = ""

    def __init__(self) -> None:
        try:
            import nltk  # type: ignore[import-not-found,import-untyped,unused-ignore]
            from nltk.stem import WordNetLemmatizer  # type: ignore[import-not-found,import-untyped,unused-ignore]

            self._nltk, self._lemma = nltk, WordNetLemmatizer()
            self("a dog")
        except (ImportError, LookupError) as error:
            raise PreconditionFailed(
                "AMBER's own nouns need nltk with punkt_tab, averaged_perceptron_tagger_eng and wordnet: "
                f"pip install nltk, then nltk.download each; or use --nouns listed ({type(error).__name__})",
                reason="NLTK_MISSING",
            ) from None

    def __call__(self, text: str) -> list[str]:
        """Lemmas of all words that are tagged as nouns."""
        tagged = self._nltk.pos_tag(self._nltk.word_tokenize(text))
        return [self._lemma.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]


class ExactSimilarity:
    """1 for the same word, otherwise 0."""

    differs = (
        "similarity: only equal words are alike; the official script also matches words whose "
        "en_core_web_lg vectors have a cosine above 0.8 (it hallucinates less and covers more by its own count)"
    )

    def __call__(self, one: str, other: str) -> float:
        """Equal or not."""
        return float(one == other)


class SpacySimilarity:
    """Cosine of a spaCy model's word vectors, as in the official script with en_core_web_lg."""

    def __init__(self, model: str = "en_core_web_lg") -> None:
        try:
            import spacy  # type: ignore[import-not-found,import-untyped,unused-ignore]

            self._model: Any = spacy.load(model)
        except (ImportError, OSError) as error:
            raise PreconditionFailed(
                f"the spaCy model {model} is not installed ({error}): pip install spacy, python -m spacy download "
                f"{model}; or use --similarity exact",
                reason="SPACY_MISSING",
            ) from None
        self._document = functools.lru_cache(maxsize=None)(self._model)
        self.differs = (
            ""
            if model == "en_core_web_lg"
            else f"similarity: vectors of {model} instead of en_core_web_lg; the threshold of 0.8 has another meaning"
        )

    def __call__(self, one: str, other: str) -> float:
        """Cosine of the two words' vectors."""
        return float(self._document(one).similarity(self._document(other)))
