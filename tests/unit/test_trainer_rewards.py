"""Terms of a reward and their combination, with stand-ins for the services."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sightline.errors import InvalidInput
from sightline.sampler import Turn
from sightline_trainer.evaluation.chair import Vocabulary
from sightline_trainer.recipe import Reward
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.clip import Clip, ClipScores, ClipTerm, sentences
from sightline_trainer.rewards.judge import Judge, normalised, ranks
from sightline_trainer.rewards.length import LengthTerm
from sightline_trainer.rewards.logprob_contrast import LogprobContrast, LogprobContrastTerm
from sightline_trainer.rewards.policy_logprob import PolicyLogprobTerm
from sightline_trainer.rewards.truth import TruthTerm

PROMPT = Prompt("p", (Path("x.png"),), "look", objects=("cat", "dog"))


def candidate(text: str, index: int = 0, tokens: int = 2, **values: Any) -> Response:
    return Response("p", index, text, list(range(tokens)), prompt=values.pop("prompt", "look"), **values)


class Scorer:
    """Scores a text by its number of letters / 100; refuses "bad"."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def score(self, image: Any, texts: Sequence[str], **_: Any) -> Any:
        if "bad" in texts:
            raise InvalidInput("bad", reason="TEXT_BAD")
        if image == Path("bad.png"):
            raise InvalidInput("bad", reason="IMAGE_BAD")
        self.asked.append(list(texts))
        cosine = np.array([(len(text) + int(image.stem if image.stem.isdigit() else 0)) / 100 for text in texts])
        return SimpleNamespace(cosine=cosine, clip_score=100 * cosine, logit=10 * cosine)


def values(term: Any, *candidates: Response) -> list[float | None]:
    return [score.reward for score in asyncio.run(term(PROMPT, candidates, version=3))]


def clip(scorer: Scorer, **settings: Any) -> ClipTerm:
    return ClipTerm(Clip(**settings), ClipScores(scorer, Reward()))  # type: ignore[arg-type]


def test_clip_scores_each_text_once_and_an_empty_one_not_at_all() -> None:
    scorer = Scorer()
    assert values(clip(scorer), candidate("cat"), candidate("a dog"), candidate("cat"), candidate(" ")) == [
        3.0, 5.0, 3.0, None,
    ]  # fmt: skip
    assert scorer.asked == [["cat", "a dog"]]
    (score,) = asyncio.run(clip(scorer)(PROMPT, [candidate("bad")], version=0))
    assert (score.reward, score.error) == (None, "TEXT_BAD")


def test_clip_scores_with_all_images_or_with_one() -> None:
    prompt = Prompt("p", (Path("0.png"), Path("3.png"), Path("9.png")), "look")

    def scored(images: Any, prompt: Prompt = prompt) -> Score:
        made = Clip.model_validate({"images": images})
        term = ClipTerm(made, ClipScores(Scorer(), Reward(), images=made.images))  # type: ignore[arg-type]
        return asyncio.run(term(prompt, [candidate("cat")], version=0))[0]

    for images, reward in {"mean": 7.0, "first": 3.0, 1: 6.0, 2: 12.0}.items():
        assert scored(images).reward == reward
        assert scored(images).cosine == pytest.approx(reward / 100)
    assert scored(3).error == "IMAGE_NOT_THERE"
    one_bad = Prompt("p", (Path("0.png"), Path("bad.png")), "look")
    assert (scored("mean", one_bad).error, scored("first", one_bad).reward) == ("IMAGE_BAD", 3.0)
    for wrong in ("last", -1, 0.5):
        with pytest.raises(ValidationError):
            Clip.model_validate({"images": wrong})


def test_clip_by_sentence() -> None:
    text = "a cat. the dog sat!"
    assert sentences(text) == ["a cat.", "the dog sat!"]
    assert sentences("no sentence") == ["no sentence"]
    assert sentences(" . ") == [" . "]
    for pool, value in {"mean": 9.0, "min": 6.0, "sum": 18.0}.items():
        assert values(clip(Scorer(), by="sentence", pool=pool), candidate(text)) == [value]


def test_clip_compares_statements_and_scores_questions_too() -> None:
    right = candidate("yes", prompt="is it a cat ?", source="right_answer", statement="it is a cat")
    (score,) = asyncio.run(clip(Scorer())(PROMPT, [right], version=0))
    assert score.reward == 11.0
    assert score.terms == {"question": 13.0}


def test_length_counts_or_keeps_near_a_target() -> None:
    assert values(LengthTerm(None), candidate("x", tokens=7)) == [7.0]
    assert values(LengthTerm(5), candidate("x", tokens=7), candidate("x", tokens=5)) == [-2.0, 0.0]


def test_policy_logprob_asks_only_for_what_the_policy_did_not_sample() -> None:
    asked = []

    class Sampler:
        async def score_tokens(self, image: Any, prompt: Sequence[Turn], token_ids: list[int], *, policy: Any) -> Any:
            asked.append((prompt[-1].text, token_ids, policy.version))
            return SimpleNamespace(logprobs=np.array([-1.0, -2.0]))

    term = PolicyLogprobTerm(Sampler())  # type: ignore[arg-type]
    sampled = candidate("x", logprobs=[-1.0, -4.0])
    noised = candidate("y", logprobs=[-9.0, -9.0], source="noised_image")  # under another image
    assert values(term, sampled, noised, candidate("z", tokens=0)) == [-2.5, -1.5, None]
    assert asked == [("look", [0, 1], 3)]


class Likelihood:
    """A sampler whose token probabilities depend on its version, prompt and picture."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, bool]] = []

    async def score_tokens(self, images: Any, turns: Sequence[Turn], token_ids: list[int], *, policy: Any) -> Any:
        prompt, shown = turns[-1].text, not isinstance(images[0], bytes)
        self.asked.append((prompt, policy.version, shown))
        each = -1.0 - 0.5 * (policy.version == 0) - 2.0 * (not shown) + 0.25 * prompt.startswith("as here:")
        return SimpleNamespace(logprobs=np.full(len(token_ids), each))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [3 * 0.5 + 3 * -1.0, 2 * 0.5]),  # sampled at -2 each; others at -1
        ({"pool": "mean", "scale": 0.1}, [-0.05, 0.05]),
        ({"against": "policy", "against_image": "grey"}, [3 * (-2.0 + 3.0), 2 * 2.0]),
        ({"against": "policy", "prompt": "as here: {prompt}"}, [3 * 0.25 * 1, 2 * 0.25]),
    ],
)
def test_logprob_contrast_by_hand(tmp_path: Path, settings: dict[str, Any], expected: list[float]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    client = Likelihood()
    term = LogprobContrastTerm(LogprobContrast(**settings), client)  # type: ignore[arg-type]
    texts = [candidate("x", tokens=3, logprobs=[-2.0] * 3), candidate("y", source="reference"), candidate("", tokens=0)]
    if "prompt" in settings:
        texts[0] = candidate("x", tokens=3, source="reference")
    prompt = Prompt("p", (tmp_path / "x.png",), "look")
    scores = asyncio.run(term(prompt, texts, version=3))
    assert [score.reward for score in scores[:2]] == pytest.approx(expected)
    assert (scores[2].reward, scores[2].error) == (None, "EMPTY_TEXT")


def test_a_policy_that_is_still_the_base_model_gains_nothing_on_it(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    client = Likelihood()
    term = LogprobContrastTerm(LogprobContrast(), client)  # type: ignore[arg-type]
    sampled = candidate("x", tokens=3, logprobs=[-2.0] * 3)
    scores = asyncio.run(term(Prompt("p", (tmp_path / "x.png",), "look"), [sampled], version=0))
    assert (scores[0].reward, client.asked) == (0.0, [])


@pytest.mark.parametrize("wrong", [{"against": "policy"}, {"prompt": "no place"}, {"scale": 0.0}])
def test_a_contrast_of_the_same_with_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LogprobContrast(**wrong)


def test_truth_is_f1_of_objects(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text(json.dumps({"objects": ["cat", "dog", "cow"]}))
    term = TruthTerm(Vocabulary.load(tmp_path / "vocabulary.json"))
    texts = ("a cat and a dog", "a cat", "a cow", "a cat , a dog , a cow and a cow", "nothing")
    assert values(term, *map(candidate, texts)) == [100.0, pytest.approx(200 / 3), 0.0, 80.0, 0.0]
    unknown = asyncio.run(term(Prompt("q", (Path("x"),), "look"), [candidate("a cat")], version=0))
    assert (unknown[0].reward, unknown[0].error) == (None, "TRUTH_UNKNOWN")


class Fixed:
    def __init__(self, *rewards: float | None) -> None:
        self.rewards = rewards

    async def __call__(self, prompt: Prompt, candidates: Sequence[Response], *, version: int) -> list[Score]:
        return [Score(reward, error="" if reward is not None else "AWAY") for reward in self.rewards]


def judged(combine: Any, texts: Sequence[Response], **terms: tuple[Fixed, float]) -> list[Score]:
    return asyncio.run(Judge(terms, combine)(PROMPT, texts, version=0))


def test_terms_are_summed_by_their_weights() -> None:
    texts = [candidate("a", 0), candidate("b", 1)]
    scores = judged("sum", texts, clip=(Fixed(20.0, 30.0), 1.0), length=(Fixed(4.0, 9.0), -0.5))
    assert [score.reward for score in scores] == [18.0, 25.5]
    assert scores[0].terms == {"clip": 20.0, "length": 4.0}
    scores = judged("sum", texts, clip=(Fixed(20.0, None), 1.0), length=(Fixed(4.0, 9.0), 1.0))
    assert [score.reward for score in scores] == [24.0, None]
    assert (scores[1].error, scores[1].terms) == ("AWAY", {"length": 9.0})
    assert [score.reward for score in judged("sum", texts)] == [0.0, 0.0]


def test_ranks_are_taken_among_answers_to_one_text() -> None:
    assert ranks([5.0, 1.0, 3.0]) == [100.0, 0.0, 50.0]
    assert ranks([5.0, 5.0, 1.0]) == [75.0, 75.0, 0.0]
    assert ranks([5.0]) == [50.0]
    texts = [candidate("a", 0), candidate("b", 1), candidate("c", 2), candidate("d", 3, prompt="other")]
    scores = judged(
        "rank", texts, clip=(Fixed(1.0, 2.0, 3.0, 99.0), 0.9), policy_logprob=(Fixed(-1.0, -9.0, -5.0, 0.0), 0.1)
    )
    assert [score.reward for score in scores] == [10.0, 45.0, 95.0, 50.0]


def test_rewards_of_different_scales_are_normalised_before_they_are_added() -> None:
    """Correctness 1, 0, 0.5 and coverage 0, 10, 20 in standard deviations: +-1.2247 and 0 each."""
    assert normalised([1.0, 3.0]) == [-1.0, 1.0]
    assert normalised([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]
    assert (normalised([7.0]), normalised([])) == ([0.0], [])
    texts = [candidate("a", 0), candidate("b", 1), candidate("c", 2), candidate("d", 3, prompt="other")]
    right, whole = Fixed(1.0, 0.0, 0.5, 9.0), Fixed(0.0, 10.0, 20.0, 9.0)
    scores = judged("normalised", texts, right=(right, 1.0), whole=(whole, 1.0))
    assert [score.reward for score in scores] == [0.0, -1.22, 1.22, 0.0]
    assert scores[1].terms == {"right": 0.0, "whole": 10.0}


def test_a_score_goes_through_its_row() -> None:
    score = Score(1.5, 0.2, 3.0, "", {"clip": 20.0, "length": 4.0})
    assert Score.of(score.row()) == score
