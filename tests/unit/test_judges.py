"""Judges: who is asked, how an answer is read, and that a text is judged once; numbers computed by hand."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from running import WEIGHTS
from sightline.errors import InvalidInput, Unavailable
from sightline.sampler.turns import user_turn
from sightline_trainer.allowed import Allowed
from sightline_trainer.candidates import CANDIDATES
from sightline_trainer.candidates.source import SourceContext, SourceRequest
from sightline_trainer.connections import Connections
from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards import REWARDS
from sightline_trainer.rewards.term import TermContext
from sightline_trainer.row_gate import RowGate
from sightline_trainer.speaker.answers import rating, verdicts, yes_or_no
from sightline_trainer.speaker.template import filled

PROMPT = Prompt("p", (WEIGHTS.parent / "world.png",), "what do you see ?", objects=("red star", "blue ring"))
GATE = RowGate(ModelProcessor(str(WEIGHTS / "llava")))
EXACT = "{piece} ?"


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("4", 4.0), ("Rating: 4", 4.0), ("**Rating**: 5 because of 2 dogs", None), ("The rating is 3.5.", 3.5),
        ("Score: 2/5", 2.0), ("4 out of 5", 4.0), ("3/5, I saw 2 cats", 3.0), ("between 3 and 4", None),
        ("Rating: 7", None), ("0", None), ("none", None), ("", None), ("v4.2.1", None), ("Rating: 4\nRating: 4", 4.0),
        ("Rating: 4\nRating: 2", None),
        # a part of a number, or a number on another scale, is not a mark
        ("-3", None), ("Rating: -4", None), ("Rating: \u22124", None), ("minus 4", None), ("4/10", None),
        ("Rating: 4/10", None), ("8 out of 10", None), ("4.0/5.0", 4.0), ("4-5", None), ("Rating: 4 - 5", None),
        ("4,5", None), ("Rating: 4,5", None), ("1,000", None), ("4%", None), ("4.2.1", None), ("4th", None),
        ("\u0664", 4.0), ("- 4", 4.0), ("Rating: +4", 4.0), ("4 - well done", 4.0), ("Rating: **4**", 4.0),
    ],
)  # fmt: skip
def test_a_rating_is_the_one_mark_of_an_answer(text: str, mark: float | None) -> None:
    assert rating(text) == mark


def test_verdicts_and_yes_or_no() -> None:
    assert [yes_or_no(text) for text in ("Yes, it is.", " no", "**No**", "Nothing", "yesterday", "")] == [
        True, False, False, None, None, None,
    ]  # fmt: skip
    assert verdicts("1. yes\n2: No - it is red\n3) yes", 3) == [True, False, True]
    assert verdicts("1. yes\n3. no", 3) is None
    assert verdicts("1. yes\n1. no", 1) is None
    assert verdicts("1. yes\n2. no", 1) is None


def test_braces_in_a_value_stay_as_they_are() -> None:
    assert filled("a {piece} {piece} {other}", {"piece": "{question}"}) == "a {question} {question} {other}"


def text_of(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1].text


class Policy:
    """A sampler: answers by `says` from the question, and P(yes) by `chance`."""

    def __init__(self, says: Callable[[str], str] = lambda question: "", chance: float = 0.5) -> None:
        self.says, self.chance = says, chance
        self.asked: list[str] = []

    async def sample(self, image: Any, prompt: Any, n: int, **options: Any) -> Any:
        self.asked.append(text_of(prompt))
        await asyncio.sleep(0)
        return SimpleNamespace(candidates=[SimpleNamespace(text=self.says(text_of(prompt)), finish_reason="eos")])

    async def score_tokens(self, image: Any, prompt: Any, ids: Sequence[int], **options: Any) -> Any:
        self.asked.append(text_of(prompt))
        (yes,) = GATE.template.response(prompt, "yes")[:1]
        return SimpleNamespace(logprobs=np.log([self.chance / 2 if list(ids) == [yes] else (1 - self.chance) / 2]))


class Scorer:
    """CLIPScore by the object that a text names."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores, self.calls = scores, 0

    async def score(self, image: Any, texts: Sequence[str], **_: Any) -> Any:
        self.calls += 1
        values = np.array([next(v for name, v in self.scores.items() if name in text) for text in texts])
        return SimpleNamespace(cosine=values / 100, clip_score=values, logit=values)


def context(policy: Any, tmp_path: Path, scorer: Any = None, part: Any = None, kept: bool = True) -> TermContext:
    return TermContext(
        SimpleNamespace(model=""), policy, scorer, tmp_path, GATE, lambda address, seconds: policy, AsyncExitStack(),
        kept=tmp_path / "judgements" if kept else None, names={id(part): "ask"},
    )  # type: ignore[arg-type]  # fmt: skip


def scores(term: str, policy: Any, tmp_path: Path, *texts: str, scorer: Any = None, **settings: Any) -> list[Score]:
    part = REWARDS[term].model_validate(settings)
    opened = part.open(context(policy, tmp_path, scorer, part))
    candidates = [Response("p", at, text, [1], prompt="what ?") for at, text in enumerate(texts)]
    return asyncio.run(opened(PROMPT, candidates, version=3))


def test_vlfeedback_is_the_mean_mark_over_aspects(tmp_path: Path) -> None:
    marks = {"helpful": "Rating: 5", "faithful": "Rating: 2", "ethical": "Rating: 5"}
    policy = Policy(lambda question: marks[question.split()[0]])
    templates = {aspect: f"{aspect} {{question}} {{answer}}" for aspect in marks}
    (score,) = scores("ask", policy, tmp_path, "a cat", templates=templates)
    assert score.reward == 4.0
    assert policy.asked == ["helpful what ? a cat", "faithful what ? a cat", "ethical what ? a cat"]


def test_rlaif_v_is_minus_the_number_of_denied_claims(tmp_path: Path) -> None:
    def says(question: str) -> str:
        if question.startswith("split"):
            return "- there is a cat\n2. there is a dog\n\n* it is red"
        return "no" if "dog" in question or "red" in question else "Yes."

    settings: dict[str, Any] = {"split": "split {answer}", "by": "claims", "parser": "yes_no", "pool": "rejected"}
    (score,) = scores("ask", Policy(says), tmp_path, "text", templates={"truth": EXACT}, **settings)
    assert (score.reward, score.sentences) == (-2.0, [1.0, 0.0, 0.0])
    (none,) = scores(
        "ask", Policy(lambda question: ""), tmp_path / "other", "t", templates={"truth": EXACT}, **settings
    )
    assert none.reward == 0.0  # nothing is claimed, nothing denied


def test_p_yes_is_the_share_of_yes_among_yes_and_no(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text(json.dumps({"objects": ["cat", "dog"]}))
    policy = Policy(chance=0.75)
    settings: dict[str, Any] = {"by": "objects", "parser": "p_yes", "templates": {"there": "is there a {object} ?"}}
    found = scores("ask", policy, tmp_path, "a cat and a dog and a cat", "a cat", "nothing", **settings)
    assert [score.reward for score in found] == [pytest.approx(0.75), pytest.approx(0.75), None]
    assert found[2].error == "NOTHING_TO_JUDGE"
    assert policy.asked == ["is there a cat ?"] * 2 + ["is there a dog ?"] * 2  # yes and no, each object once


def test_another_samplers_likeliest_first_tokens_tell_p_yes(tmp_path: Path) -> None:
    """0.3 + 0.3 of 0.3 + 0.3 + 0.2; a sampler with neither word among its tokens gives no mark."""

    class Other(Policy):
        def __init__(self, *likeliest: tuple[str, float]) -> None:
            super().__init__()
            self.likeliest = likeliest

        async def sample(self, image: Any, prompt: Any, n: int, **options: Any) -> Any:
            assert (n, options["beams"].groups, options["max_tokens"]) == (5, 1, 1)
            found = [SimpleNamespace(text=text, logprobs=np.log([chance])) for text, chance in self.likeliest]
            return SimpleNamespace(candidates=found)

    judge: dict[str, Any] = {"who": "sampler", "address": "localhost:1", "parser": "p_yes", "templates": {"a": EXACT}}
    other = Other(("Yes", 0.3), (" yes", 0.3), ("No", 0.2), ("Maybe", 0.2))
    (score,) = scores("ask", other, tmp_path, "a cat", **judge)
    assert score.reward == pytest.approx(0.75)
    (score,) = scores("ask", Other(("Maybe", 0.9)), tmp_path / "none", "a cat", **judge)
    assert (score.reward, score.error) == (None, "ANSWER_UNREADABLE")


def test_finesumfact_is_a_verdict_for_each_sentence(tmp_path: Path) -> None:
    policy = Policy(lambda question: "1: yes\n2: no")
    text = "a cat sat. a dog ran."
    settings: dict[str, Any] = {"parser": "verdicts", "templates": {"true": "{numbered}"}}
    (score,) = scores("ask", policy, tmp_path, text, **settings)
    assert (score.reward, score.sentences, policy.asked) == (0.5, [1.0, 0.0], ["1. a cat sat.\n2. a dog ran."])
    (score,) = scores("ask", policy, tmp_path, text, pool="min", **settings)
    assert score.reward == 0.0


@pytest.mark.parametrize("answer", ["I like it", "", "maybe 3 or 4"])
def test_an_answer_that_cannot_be_read_is_no_mark(tmp_path: Path, answer: str) -> None:
    found = scores("ask", Policy(lambda question: answer), tmp_path, "a cat", " ", templates={"good": "{answer}"})
    assert [(score.reward, score.error) for score in found] == [(None, "ANSWER_UNREADABLE"), (None, "EMPTY_TEXT")]


def test_a_judge_that_refuses_a_text_has_no_mark_for_it_and_one_that_is_away_ends_the_stage(tmp_path: Path) -> None:
    def refuses(question: str) -> str:
        if "bad" in question:
            raise InvalidInput("too long", reason="PROMPT_TOO_LONG")
        return "4"

    found = scores("ask", Policy(refuses), tmp_path, "bad", "good", templates={"good": "{answer}"})
    assert [(score.reward, score.error) for score in found] == [(None, "PROMPT_TOO_LONG"), (4.0, "")]

    def away(question: str) -> str:
        raise Unavailable("gone", reason="AWAY")

    with pytest.raises(Unavailable):
        scores("ask", Policy(away), tmp_path, "x", templates={"good": "{answer}"})


def test_a_judged_text_is_judged_once_in_a_run_also_after_it_was_killed(tmp_path: Path) -> None:
    policy = Policy(lambda question: "4")
    part = REWARDS["ask"].model_validate({"templates": {"good": "{answer}"}})
    term = part.open(context(policy, tmp_path, part=part))
    texts = [Response("p", at, text, [1]) for at, text in enumerate(["a", "b", "a"])]

    async def twice() -> None:  # at the same time
        await asyncio.gather(term(PROMPT, texts, version=3), term(PROMPT, texts, version=3))

    asyncio.run(twice())
    assert sorted(policy.asked) == ["a", "b"]
    kept = tmp_path / "judgements" / "ask.jsonl"
    whole = kept.read_bytes()
    kept.write_bytes(whole + whole[:20])  # killed in the middle of a line
    again = part.open(context(policy, tmp_path, part=part))
    found = asyncio.run(again(PROMPT, [*texts, Response("p", 3, "c", [1])], version=3))
    assert [score.reward for score in found] == [4.0] * 4
    assert policy.asked[2:] == ["c"]
    assert kept.read_bytes().startswith(whole)
    assert len(kept.read_bytes().splitlines()) == 3
    asyncio.run(again(PROMPT, texts[:1], version=4))  # a policy that has changed is another judge
    assert policy.asked[3:] == ["a"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"templates": {"a": "{anser}"}}, "anser"),
        ({"templates": {}}, "at least 1"),
        ({"who": "openai"}, "needs a model"),
        ({"who": "sampler"}, "needs a sampler"),
        ({"parser": "verdicts", "by": "sentence"}, "leave by at whole"),
        ({"pool": "rejected"}, "a rating has none"),
    ],
)
def test_what_no_judge_can_do_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        REWARDS["ask"].model_validate({"templates": {"good": "{answer}"}, **settings})


def test_one_part_stands_twice_under_names_of_the_recipes_own_and_its_addresses_are_looked_at() -> None:
    judge = {"part": "ask", "who": "openai", "model": "m", "url": "http://judge/v1", "templates": {"good": "{answer}"}}
    value = {
        "name": "x", "model": "m", "data": {"train": "a", "test": "b"},
        "reward": {"terms": {"right": judge, "whole": {**judge, "weight": 0.5}}},
    }  # fmt: skip
    recipe = Recipe.model_validate(value)
    assert {name: part.weight for name, part in recipe.reward.terms.chosen().items()} == {"right": 1.0, "whole": 0.5}
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    with pytest.raises(InvalidInput, match=r"reward\.terms\.right\.url=http://judge/v1") as caught:
        Allowed().check(recipe, Connections())
    assert caught.value.reason == "ADDRESS_NOT_ALLOWED"
    with pytest.raises(ValidationError, match="Extra inputs"):
        Recipe.model_validate({**value, "reward": {"terms": {"right": {**judge, "part": "asc"}}}})


def test_the_scorer_over_the_vocabulary_finds_objects_and_between_its_bounds_nobody_knows(tmp_path: Path) -> None:
    objects = {"cat": 30.0, "dog": 22.0, "bus": 15.0, "cup": 10.0}
    (tmp_path / "vocabulary.json").write_text(json.dumps({"objects": list(objects)}))
    scorer, texts = Scorer(objects), ("a cat and a dog", "a cat, a bus, a bus and a cup", "nothing", "")
    settings: dict[str, Any] = {"there": 25.0, "absent": 20.0}
    found = scores("detected", None, tmp_path, *texts, scorer=scorer, **settings)
    assert [score.reward for score in found] == [0.0, -2.0, 0.0, None]
    found = scores("detected", None, tmp_path, *texts, scorer=scorer, cover=True, cost=2.0, **settings)
    assert [score.reward for score in found] == [1.0, 1.0 - 4.0, 0.0, None]
    assert scorer.calls == 1  # the picture is examined once, and the result kept in the run
    assert scores("detected", None, tmp_path, "a dog", scorer=scorer, there=25.0)[0].reward == -1.0


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]], list[Any]]]:
    """An HTTP server that answers from the list and repeats its last entry: URL, questions, answers."""
    asked: list[dict[str, Any]] = []
    answers: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", asked, answers
    http.shutdown()


def test_a_detector_over_http_is_sent_the_picture_and_the_names(tmp_path: Path, server: Any) -> None:
    url, asked, answers = server
    (tmp_path / "vocabulary.json").write_text(json.dumps({"objects": ["cat", "dog", "bus"]}))
    answers += [(503, {}), (200, {"scores": {"cat": 0.9, "dog": 0.1, "bus": None}})]
    (score,) = scores("detected", None, tmp_path, "a cat, a dog, a bus", by="http", url=url, there=0.5)
    assert score.reward == -1.0  # the bus has no score, so it is unknown
    assert asked[-1]["labels"] == ["bus", "cat", "dog"]
    picture = Image.open(io.BytesIO(base64.b64decode(asked[-1]["image"])))
    assert np.array_equal(picture, Image.open(PROMPT.images[0]).convert("RGB"))
    answers[:] = [(200, {"boxes": []})]
    (score,) = scores("detected", None, tmp_path, "a cat", by="http", url=f"{url}/v2", there=0.5)
    assert (score.reward, score.error) == (None, "IMAGE_REFUSED_BY_DETECTOR")


def test_an_endpoint_sees_the_picture_and_tells_p_yes(tmp_path: Path, server: Any) -> None:
    url, asked, answers = server
    alternatives = [("Yes", 0.3), (" yes", 0.3), ("No", 0.2), ("Maybe", 0.2)]
    told = {"content": [{"top_logprobs": [{"token": token, "logprob": np.log(p)} for token, p in alternatives]}]}
    answers += [(200, {"choices": [{"message": {"content": "Yes"}, "logprobs": told}]})]
    judge: dict[str, Any] = {"who": "openai", "url": url, "model": "m", "templates": {"true": "{answer}"}}
    (score,) = scores("ask", None, tmp_path, "a cat", parser="p_yes", **judge)
    assert score.reward == pytest.approx(0.75)  # 0.6 of 0.8
    picture, text = asked[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "a cat"}
    held = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(Image.open(io.BytesIO(held)), Image.open(PROMPT.images[0]).convert("RGB"))
    answers[:] = [(200, {"choices": [{"message": {"content": "Yes"}}]})]
    (score,) = scores("ask", None, tmp_path, "a dog", parser="p_yes", **judge)
    assert (score.reward, score.error) == (None, "ANSWER_UNREADABLE")  # it returned no log-probs
    said = [{"type": "text", "text": "Rating: "}, {"type": "text", "text": "4"}]
    answers[:] = [(200, {"choices": [{"message": {"content": said}}]})]
    assert scores("ask", None, tmp_path, "a cow", **judge)[0].reward == 4.0
    for number, empty in enumerate(({"content": None}, {"content": None, "refusal": "no"}, {"content": 4})):
        answers[:] = [(200, {"choices": [{"message": empty}]})]
        (score,) = scores("ask", None, tmp_path, f"a pig {number}", **judge)
        assert (score.reward, score.error) == (None, "ANSWER_UNREADABLE")
    for number, broken in enumerate(([], {"choices": []}, {"choices": [{}]}, {"error": "x"}, "x", None)):
        answers[:] = [(200, broken)]
        (score,) = scores("ask", None, tmp_path, f"a hen {number}", **judge)
        assert (score.reward, score.error) == (None, "CANDIDATE_NOT_WRITTEN")
    answers[:] = [(400, {"error": "filtered"})]
    (score,) = scores("ask", None, tmp_path, "a bus", **judge)
    assert (score.reward, score.error) == (None, "CANDIDATE_NOT_WRITTEN")


def made(name: str, policy: Any, ask: SourceRequest, **settings: Any) -> list[Response]:
    sampling = Recipe.model_validate({"name": "t", "model": "m", "data": {"train": "a", "test": "b"}}).sampling
    part = CANDIDATES[name].model_validate(settings)
    source = part.open(
        SourceContext(sampling, 0, policy, GATE, Path(), lambda address, seconds: policy, AsyncExitStack())
    )
    assert source is not None
    return asyncio.run(source(PROMPT, ask))


def test_a_text_is_written_on_request_from_an_answer_and_a_caption() -> None:
    policy = Policy(lambda question: '"there is a red star ."' if question.startswith("improve") else "a star")
    first = Response("p", 0, "a ring", [1], prompt="what ?")
    template = "improve {answer} of {question} by {caption} and {objects}"
    (response,) = made("asked", policy, SourceRequest(1, 2, (first,)), template=template, caption="look")
    assert policy.asked == ["look", "improve a ring of what ? by a star and red star, blue ring"]
    assert (response.text, response.source, response.prompt, response.index) == (
        "there is a red star .", "asked", "what ?", 1,
    )  # fmt: skip
    assert response.token_ids[-1] == GATE.template.response(user_turn("what ?", 1), "there is a red star .")[-1]
    assert made("asked", Policy(lambda question: " "), SourceRequest(1, 2), template="{question}") == []
    with pytest.raises(ValidationError, match="piece"):
        CANDIDATES["asked"].model_validate({"template": "{piece}"})


def test_candidates_of_other_models_are_worded_as_the_policys() -> None:
    policy = Policy(lambda question: "there is a red star .")
    addresses = {"one": "localhost:1", "other": "localhost:2"}
    found = made("models", policy, SourceRequest(1, 2), addresses=addresses)
    assert [(each.index, each.source, each.policy_version, each.logprobs) for each in found] == [
        (0, "models", -1, []), (1, "models", -1, []),
    ]  # fmt: skip
    assert found[0].token_ids == GATE.template.response(PROMPT.asked(), "there is a red star .")


def test_somebodys_picks_are_marks_and_what_nobody_looked_at_has_none(tmp_path: Path) -> None:
    picks = tmp_path / "picks.jsonl"
    rows = [("p", "a star", True), ("p", "a ring", True), ("p", "a ring", False), ("q", "a cup", True)]
    lines = [json.dumps({"id": one, "text": text, "picked": picked}) for one, text, picked in rows]
    picks.write_text("\n".join(lines) + "\n\n")
    found = scores("picked", None, tmp_path, "a star ", "a ring", "a cup", file=str(picks))
    assert [(score.reward, score.error) for score in found] == [(1.0, ""), (0.0, ""), (None, "NOT_LOOKED_AT")]
    picks.write_text('{"id": "p", "text": "a", "picked": 1}\n')
    with pytest.raises(InvalidInput, match="line 1: needs id, text and picked"):
        scores("picked", None, tmp_path, "a", file=str(picks))
    (tmp_path / "vocabulary.json").write_text(json.dumps({"objects": ["red star", "blue ring", "cup"]}))
    texts = ("a red star and a blue ring", "a red star", "nothing", "a red star and a cup")
    assert [score.reward for score in scores("picked", None, tmp_path, *texts)] == [1.0, 1.0, 0.0, 0.0]


def test_a_service_reads_picks_where_datasets_may_lie_only(tmp_path: Path) -> None:
    value = {
        "name": "x", "model": "m", "data": {"train": str(tmp_path), "test": str(tmp_path)},
        "reward": {"terms": {"picked": {"file": "/etc/passwd"}}},
    }  # fmt: skip
    with pytest.raises(InvalidInput, match=r"reward\.terms\.picked\.file") as caught:
        Allowed(data_roots=[tmp_path]).check(Recipe.model_validate(value), Connections())
    assert caught.value.reason == "DATA_NOT_ALLOWED"
