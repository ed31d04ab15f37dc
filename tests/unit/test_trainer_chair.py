"""CHAIR, compared with counts by hand."""

import json

import pytest
from sightline.errors import InvalidInput
from sightline_trainer.evaluation.chair import Chair, Vocabulary, chair


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(
        {"red star": ["red star"], "star": ["star", "stars"], "hot dog": ["hot dog"], "dog": ["dog"], "cat": ["cat"]}
    )


def test_the_longest_phrase_wins_and_mentions_are_counted_in_order(vocabulary: Vocabulary) -> None:
    text = "A red star, two STARS; a hot dog and a dog. No category!"
    assert vocabulary.mentions(text) == ["red star", "star", "hot dog", "dog"]


def test_counts_by_hand(vocabulary: Vocabulary) -> None:
    captions = [
        ("a dog and a cat", ["dog"]),  # 2 mentions, 1 wrong; covers 1 of 1
        ("a dog , a dog", ["dog", "cat"]),  # 2 mentions, 0 wrong; covers 1 of 2
        ("nothing to see", ["star"]),  # 0 mentions; covers 0 of 1
        ("a cat with a cat and a red star", ["red star"]),  # 3 mentions, 2 wrong (one object twice); covers 1 of 1
    ]
    counts = chair(captions, vocabulary)
    assert counts == Chair(
        captions=4,
        hallucinated_captions=2,
        mentions=7,
        hallucinated_mentions=3,
        true_objects=5,
        covered_objects=3,
    )
    assert counts.chair_s == 2 / 4
    assert counts.chair_i == 3 / 7
    assert counts.cover == 3 / 5


def test_a_ratio_of_nothing_is_none_not_an_error(vocabulary: Vocabulary) -> None:
    assert chair([], vocabulary).chair_s is None
    assert chair([("", [])], vocabulary).chair_i is None
    assert chair([("", [])], vocabulary).cover is None


def test_mentions_have_their_place_in_the_text(vocabulary: Vocabulary) -> None:
    text = "See: a RED  star."
    [mention] = vocabulary.find(text)
    assert (mention.object, mention.words, text[mention.start : mention.end]) == ("red star", "RED  star", "RED  star")


def test_truth_outside_the_vocabulary_is_an_error_not_a_hallucination(vocabulary: Vocabulary) -> None:
    with pytest.raises(InvalidInput, match="unicorn"):
        chair([("a dog", ["unicorn"])], vocabulary)


def test_vocabulary_file_with_synonyms(tmp_path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"objects": ["dog"], "synonyms": {"puppy": "dog"}}))
    assert Vocabulary.load(path).mentions("the puppy and the dog") == ["dog", "dog"]
    path.write_text(json.dumps({"objects": ["dog"], "synonyms": {"kitten": "cat"}}))
    with pytest.raises(InvalidInput, match="kitten"):
        Vocabulary.load(path)
