"""AMBER: the fixtures' counts by hand, and the official script's mistakes."""

import pytest
from running import ROOT
from sightline.errors import InvalidInput, PreconditionFailed
from sightline_trainer.evaluation.amber import Amber, count_response, generative, read_responses
from sightline_trainer.evaluation.amber_answers import discriminative, said
from sightline_trainer.evaluation.suites import amber_result
from sightline_trainer.evaluation.words import ExactSimilarity, ListedNouns, SpacySimilarity

FIXTURES = ROOT / "tests/fixtures/eval"


@pytest.fixture
def amber() -> Amber:
    return Amber.load(FIXTURES / "amber")


@pytest.fixture
def responses(amber: Amber) -> dict[int, str]:
    return read_responses(FIXTURES / "amber_responses.json", amber)


def test_the_generative_fixtures_as_counted_by_hand(amber: Amber, responses: dict[int, str]) -> None:
    nouns, exact = ListedNouns(amber.words()), ExactSimilarity()
    found = generative(responses, amber, nouns, exact)
    assert [one.nouns for one in found.counts] == [["picture", "puppy", "man", "lawn", "tree"], ["ocean", "sky"]]
    assert [one.hallucinated for one in found.counts] == [["man", "tree"], []]
    values = found.ratios().values()
    assert values == {"chair": 2 / 7, "cover": 4 / 4, "hal": 1 / 2, "cog": 1 / 3, "cog_paper": 1 / 7}
    official = generative(responses, amber, nouns, exact, "official")
    assert official.ratios().value("cover") == 3 / 5
    # 2 / 7.001, 3 / 5.001, 100 - 1 / 2.001, 1 / 3.001, each x 100 and rounded
    assert official.official() == {"CHAIR": 28.6, "Cover": 60.0, "Hal": 50.0, "Cog": 33.3}


def test_an_expected_word_that_is_also_true_counts_as_both_in_the_official_script_only(amber: Amber) -> None:
    class Alike:
        differs = ""

        def __call__(self, one: str, other: str) -> float:
            return 0.9 if {one, other} == {"ball", "dog"} else float(one == other)

    row = {"truth": ["dog"], "hallu": ["ball"]}
    arguments = (amber, ListedNouns(amber.words()), Alike(), amber.words())
    mended = count_response("a ball", row, *arguments)
    assert (mended.hallucinated, mended.covered, mended.expected) == (["ball"], 0, 1)
    official = count_response("a ball", row, *arguments, "official")
    assert (official.hallucinated, official.covered, official.expected) == ([], 1, 1)


def test_the_discriminative_fixtures_as_counted_by_hand(amber: Amber, responses: dict[int, str]) -> None:
    mended = discriminative(responses, amber)
    assert mended.ratios().values() == {"accuracy": 5 / 7, "precision": 3 / 4, "recall": 3 / 4, "f1": 6 / 8}
    assert mended.unread() == 1
    official = discriminative(responses, amber, "official")
    assert official.unread() == 2
    # 4 / 7.001, 2 / 3.001, 2 / 4.001; F1 of 0.666 and 0.5 with 0.0001 below the line
    assert official.official() == {"Accuracy": 57.1, "Precision": 66.6, "Recall": 50.0, "F1": 57.1}
    assert official.official("relation") == {"Accuracy": 50.0, "Precision": 0.0, "Recall": 0.0, "F1": 0.0}
    # One right "no" of one: 1 / 1.001 = 99.9, and 0.001 below the line of F1.
    assert official.official("existence") == {"Accuracy": 99.9, "Precision": 99.9, "Recall": 99.9, "F1": 99.9}


@pytest.mark.parametrize(
    ("answer", "mended", "official"),
    [
        ("Yes", "yes", "yes"),
        ("no, never", "no", ""),
        ("NO.", "no", ""),
        ("", "", ""),
        ("Nobody", "", ""),
        ("No", "no", "no"),
    ],
)
def test_how_answers_are_read(answer: str, mended: str, official: str) -> None:
    assert said(answer) == mended
    assert said(answer, "official") == official


def test_the_output_says_what_differs_from_the_official_script(amber: Amber, responses: dict[int, str]) -> None:
    value = amber_result(responses, amber, similarity=ExactSimilarity(), compat="official").to_json(details=False)
    assert [text.split(":")[0] for text in value["differs_from_official"]] == ["nouns", "similarity"]
    assert value["official"]["generative"]["CHAIR"] == 28.6
    assert value["metrics"]["generative/chair"]["denominator"] == 7
    assert value["metrics"]["existence/precision"]["value"] == 1.0
    assert value["counts"]["attribute/questions"] == 4


def test_a_part_that_is_answered_must_be_answered_whole(amber: Amber, responses: dict[int, str]) -> None:
    only = {1: responses[1], 2: responses[2]}
    assert discriminative(only, amber).answers == []
    with pytest.raises(InvalidInput, match="id 2"):
        generative({1: ""}, amber, ListedNouns(amber.words()), ExactSimilarity())
    with pytest.raises(InvalidInput, match="attribute part have no response: id 4, 5, 6"):
        discriminative({7: "No"}, amber)


def test_missing_files_and_models_say_what_to_do() -> None:
    with pytest.raises(InvalidInput, match="safe_words"):
        Amber.load(FIXTURES)
    with pytest.raises(PreconditionFailed, match="--similarity exact"):
        SpacySimilarity("no_such_model")
