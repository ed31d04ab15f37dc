"""Third-party parts: who may import them, and that none of their failures becomes a number."""

import asyncio
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import WEIGHTS
from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline_chassis.settings import SettingsError
from sightline_trainer.allowed import Allowed
from sightline_trainer.candidates.guarded import GuardedSource
from sightline_trainer.candidates.source import SourceRequest
from sightline_trainer.connections import Connections
from sightline_trainer.left_out import no_pairs
from sightline_trainer.pairs.build import PairBuilder
from sightline_trainer.pairs.guarded import filters_of, rules_of
from sightline_trainer.pairs.rules import BestWorst
from sightline_trainer.parts import NotImported
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score
from sightline_trainer.rewards.guarded import Guarded
from sightline_trainer.rewards.judge import Judge
from sightline_trainer.rollout import Rollout
from sightline_trainer.runs import RunDirectory
from sightline_trainer.session import _opened

PLAIN = "name: plain\nmodel: m\ndata: {train: a, test: b}\n"
PICTURE = WEIGHTS.parent / "world.png"
PROMPT = Prompt("p", (PICTURE,), "what do you see ?")
MODULE = """
from pydantic import Field
from sightline_trainer.candidates.source import CandidatePart
from sightline_trainer.pairs.filter import FilterPart
from sightline_trainer.pairs.rule import RulePart, Picked
from sightline_trainer.rewards.term import TermPart

def brevity(images, prompts, texts):
    assert all(image.mode == "RGB" for image in images) and len(images) == len(prompts) == len(texts)
    return [-len(text.split()) for text in texts]

class NoDigits(FilterPart):
    most: int = Field(0, ge=0, description="Digits that may stand in a text.")

    def candidate_fault(self, scored):
        return "digits" if sum(map(str.isdigit, scored.text)) > self.most else None

    def pair_fault(self, chosen, rejected):
        raise RuntimeError("broken")

class FirstLast(RulePart):
    def pick(self, group, fault):
        picked = Picked()
        picked.offer(group[0], group[-1], fault, self.weight)
        return picked

class Echo(CandidatePart):
    writes = ("echo",)

class Silent(CandidatePart):
    def open(self, context):
        return None

class Misspelt(FilterPart):
    def candidat_fault(self, scored):
        return "never asked"

def two(images, texts):
    return [0.0 for _ in texts]

def turned(images, texts, prompts):
    return [0.0 for _ in texts]

def named(*, images, prompts, texts):
    return [0.0 for _ in texts]

NUMBER = 3
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A third-party module that was not imported yet; each test gets a new name."""
    name = f"theirs_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def read(tmp_path: Path, more: str, **options: Any) -> Recipe:
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN + more)
    return load_recipe(path, **options)


def candidates(*texts: str, rewards: tuple[float, ...] = ()) -> list[Response]:
    return [
        Response("p", at, text, [1, 2], prompt="what ?", score=Score(rewards[at]) if rewards else Score(None))
        for at, text in enumerate(texts)
    ]


def test_parts_by_place_stand_in_a_recipe_with_their_settings_and_come_back_from_its_file(
    tmp_path: Path, theirs: str
) -> None:
    more = (
        f"filters: {{finished: {{}}, '{theirs}:NoDigits': {{most: 1}}}}\n"
        f"pairing: {{'{theirs}:FirstLast': {{weight: 2}}}}\n"
        f"reward: {{terms: {{'{theirs}:brevity': {{weight: 0.5}}}}}}\n"
    )
    recipe = read(tmp_path, more)
    assert list(recipe.filters.chosen()) == ["finished", f"{theirs}:NoDigits"]
    assert recipe.filters.chosen()[f"{theirs}:NoDigits"].most == 1
    assert recipe.pairing.opened()[f"{theirs}:FirstLast"].weight == 2.0
    run = RunDirectory(tmp_path / "run")
    run.open(recipe)
    assert run.recipe(["*"]) == recipe
    looked = run.recipe()  # a reader imports nothing and sees the same settings
    assert looked is not None
    assert isinstance(looked.filters.opened()[f"{theirs}:NoDigits"], NotImported)
    assert looked.model_dump() == recipe.model_dump()
    with pytest.raises(PreconditionFailed, match="NoDigits is a third-party part that was not imported"):
        looked.filters.usable()


def test_an_entry_point_names_a_part_too(tmp_path: Path, theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path / f"{theirs}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {theirs}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[sightline.filters]\nno_digits_{theirs} = {theirs}:NoDigits\n")
    assert list(read(tmp_path, f"filters: {{no_digits_{theirs}: {{}}}}\n").filters.opened()) == [f"no_digits_{theirs}"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("filters: {'%s:NoDigits': {most: -1}}", "greater than or equal to 0"),
        ("filters: {'%s:NoDigits': {least: 1}}", "NoDigits.least = 1: unknown key (known here: most)"),
        ("filters: {'%s:NoDigits': {mst: 1}}", "NoDigits.mst = 1: unknown key (did you mean most?)"),
        ("filters: {'%s:Misspelt': {}}", "must define prompt_fault or group_fault or candidate_fault or pair_fault"),
        ("candidates: {'%s:Echo': {}}", "must define open"),
        ("candidates: {'%s:Silent': {}}", "must name the sources of its candidates in `writes`"),
        ("reward: {terms: {'%s:two': {}}}", "it takes (images, texts); it must take (images, prompts, texts)"),
        ("reward: {terms: {'%s:named': {}}}", "it takes (*, images, prompts, texts); it must take (images, prompts"),
        ("reward: {terms: {'%s:turned': {}}}", "(images, prompts, texts), by position, in this order"),
        ("filters: {theirs.gap: {}}", "a part of your own is named package.module:Name"),
        ("filters: {'%s:brevity': {}}", "must be a FilterPart"),
        ("filters: {'%s:Nothing': {}}", "cannot be imported: AttributeError"),
        ("filters: {'no_such_module:Nothing': {}}", "cannot be imported: ModuleNotFoundError"),
        ("reward: {terms: {'%s:NUMBER': {}}}", "must be a TermPart or a function"),
        ("filters: {gapp: {}}", "filters.gapp is unknown (did you mean filters.gap?)"),
        ("filters: {'a:b:c': {}}", "filters.a:b:c is unknown"),
    ],
)
def test_what_is_no_part_is_refused(tmp_path: Path, theirs: str, more: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, (more % theirs if "%s" in more else more) + "\n")
    assert words in str(caught.value)


def test_a_service_imports_what_its_operator_listed_and_nothing_else(tmp_path: Path, theirs: str) -> None:
    more = f"filters: {{'{theirs}:NoDigits': {{}}}}\n"
    for listed in ([], [f"{theirs}:brevity"], ["other:*"]):
        recipe = read(tmp_path, more, parts=listed)
        assert theirs not in sys.modules
        with pytest.raises(InvalidInput, match=f"{theirs}:NoDigits names code") as caught:
            Allowed(parts=listed).check(recipe, Connections())
        assert caught.value.reason == "PART_NOT_ALLOWED"
    listed = [f"{theirs}:*"]
    recipe = read(tmp_path, more, parts=listed)
    assert theirs in sys.modules
    with pytest.raises(InvalidInput, match=r"data\.train"):  # the next thing that it looks at
        Allowed(parts=listed).check(recipe, Connections())


def term(function: Any) -> Guarded:
    from sightline_trainer.rewards.function import term_of

    part = term_of(function)()
    return Guarded("theirs", part.open(SimpleNamespace()))  # type: ignore[arg-type]


def marks(function: Any, *texts: str) -> list[Score]:
    return asyncio.run(term(function)(PROMPT, candidates(*texts), version=0))


def raising(images: Any, prompts: Any, texts: Any) -> Any:
    raise ValueError("broken")


async def late(images: Any, prompts: Any, texts: Any) -> Any:
    await asyncio.sleep(0)
    return [1.0 for _ in texts]


def test_a_function_marks_the_candidates_of_a_prompt() -> None:
    seen: list[Any] = []

    def lengths(images: list[Image.Image], prompts: list[str], texts: list[str]) -> Any:
        seen.append((images[0].size, prompts, texts))
        return np.array([len(text) for text in texts])

    assert [score.reward for score in marks(lengths, "a", "bcd")] == [1.0, 3.0]
    assert seen == [(Image.open(PICTURE).size, ["what ?", "what ?"], ["a", "bcd"])]
    assert [score.reward for score in marks(late, "a")] == [1.0]

    class Later:
        async def __call__(self, images: Any, prompts: Any, texts: Any) -> Any:
            return [2.0 for _ in texts]

    assert [score.reward for score in marks(Later(), "a")] == [2.0]
    assert [score.reward for score in marks(lambda i, p, t: late(i, p, t), "a")] == [1.0]


@pytest.mark.parametrize(
    ("answer", "errors"),
    [
        (None, ["NO_MARK", "NO_MARK"]),
        ([None, 2.0], ["NO_MARK", ""]),
        ([math.nan, math.inf], ["TERM_NO_NUMBER", "TERM_NO_NUMBER"]),
        (["3", 2], ["TERM_NO_NUMBER", ""]),
        ([1.0], ["TERM_COUNT", "TERM_COUNT"]),
        ([1.0, 2.0, 3.0], ["TERM_COUNT", "TERM_COUNT"]),
        (7.0, ["TERM_NO_NUMBER", "TERM_NO_NUMBER"]),
        ("ab", ["TERM_NO_NUMBER", "TERM_NO_NUMBER"]),
        ({1.0, 2.0}, ["TERM_NO_NUMBER", "TERM_NO_NUMBER"]),
        ({1.0: "a", 2.0: "b"}, ["TERM_NO_NUMBER", "TERM_NO_NUMBER"]),
        ([object(), 10**400], ["TERM_NO_NUMBER", "TERM_NO_NUMBER"]),
    ],
)
def test_a_failure_is_never_a_number(answer: Any, errors: list[str]) -> None:
    found = marks(lambda images, prompts, texts: answer, "a", "b")
    assert [score.error for score in found] == errors
    assert [score.reward is None for score in found] == [bool(error) for error in errors]


def test_a_function_that_raises_marks_nobody_and_a_service_that_is_away_is_no_failure_of_a_term() -> None:
    assert [score.error for score in marks(raising, "a", "b")] == ["TERM_RAISED", "TERM_RAISED"]
    ends = [score.error for score in marks(lambda images, prompts, texts: sys.exit(3), "a", "b")]
    assert ends == ["TERM_RAISED", "TERM_RAISED"]

    def away(images: Any, prompts: Any, texts: Any) -> Any:
        raise Unavailable("gone", reason="AWAY")

    with pytest.raises(Unavailable):
        marks(away, "a")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raising, "the term theirs raised for prompt p"),
        (lambda images, prompts, texts: [1.0], "the term theirs did not give one value for each text"),
        (lambda images, prompts, texts: ["3", 2], "gave no list, or a value in it that is not a finite number"),
    ],
)
def test_the_first_failure_of_a_term_is_logged(function: Any, words: str, caplog: pytest.LogCaptureFixture) -> None:
    theirs = term(function)
    for _ in range(2):
        asyncio.run(theirs(PROMPT, candidates("a", "b"), version=0))
    (record,) = caplog.records
    assert words in record.getMessage()
    assert bool(record.exc_info) == (function is raising)


def test_an_iteration_without_a_reward_says_why_and_is_scored_again_without_new_candidates(tmp_path: Path) -> None:
    asked: list[str] = []

    class Words:
        async def __call__(self, prompt: Prompt, ask: SourceRequest) -> list[Response]:
            asked.append(prompt.id)
            return candidates("a", "b c")

    class Gate:
        def asked(self, prompt: Prompt) -> None: ...

        def rendered(self, prompt: Prompt, each: Response) -> None: ...

        def candidate(self, each: Response) -> None: ...

    rollout = Rollout(tmp_path)

    def built(function: Any) -> PairBuilder:
        judge = Judge({"theirs": (term(function), 1.0)}, "sum")
        more = {"iteration": 1, "version": 0, "in_flight": 2, "progress": lambda done, total: None}
        asyncio.run(rollout.collect([PROMPT], [Words()], judge, Gate(), **more))  # type: ignore[arg-type]
        builder = PairBuilder({}, {"best_worst": BestWorst()}, iteration=1)
        list(builder.build({"p": PROMPT}, rollout.read()))
        return builder

    builder = built(lambda images, prompts, texts: [1.0])
    assert builder.unscored == {"TERM_COUNT": 2}
    error = no_pairs(1, 1, builder.counts, [], builder.unscored)
    assert error.reason == "NOTHING_SCORED"
    assert "no candidate has a reward (TERM_COUNT 2); correct reward.terms" in str(error)
    rollout.forget_scores()
    assert not rollout.complete([PROMPT])
    builder = built(lambda images, prompts, texts: [float(len(text)) for text in texts])
    assert (builder.counts["pairs"], builder.unscored) == (1, {})
    assert asked == ["p"]


def test_a_candidate_without_a_mark_has_no_reward_whatever_other_terms_say() -> None:
    first = term(lambda images, prompts, texts: [1.0, 2.0])
    judge = Judge({"one": (first, 1.0), "other": (term(lambda i, p, t: [None, 5.0]), 1.0)}, "sum")
    found = asyncio.run(judge(PROMPT, candidates("a", "b"), version=0))
    assert [(score.reward, score.error) for score in found] == [(None, "NO_MARK"), (7.0, "")]


def test_filters_and_rules_that_fail_let_nothing_through(tmp_path: Path, theirs: str) -> None:
    more = f"filters: {{'{theirs}:NoDigits': {{}}}}\npairing: {{'{theirs}:FirstLast': {{}}}}\n"
    recipe = read(tmp_path, more)
    builder = PairBuilder(filters_of(recipe.filters), rules_of(recipe.pairing), iteration=1)
    group = candidates("a 1", "b", "c", rewards=(3.0, 2.0, 1.0))
    assert list(builder.build({"p": PROMPT}, [("p", group)])) == []
    assert builder.counts == {
        "pairs": 0, "candidate_digits": 1, "pair_filter_failed": 1, "prompt_filter_failed": 1
    }  # fmt: skip
    builder = PairBuilder({}, rules_of(recipe.pairing), iteration=1)
    (row,) = builder.build({"p": PROMPT}, [("p", group)])
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("a 1", "c")
    builder = PairBuilder({}, rules_of(recipe.pairing), iteration=1)
    assert list(builder.build({"p": PROMPT}, [("p", candidates("a", rewards=(1.0,)))])) == []  # one against itself
    assert builder.counts["prompt_rule_failed"] == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (["text"], "which is not a Response"),
        ([Response("other", 0, "a", [1], source="echo")], "a candidate of the prompt 'other'"),
        ([Response("p", 4, "a", [1], source="echo")], "numbered its candidate 4"),
        ([Response("p", 0, "a", [1])], "of the source 'policy', which its `writes` does not name"),
        (RuntimeError("broken"), "raised RuntimeError: broken"),
        (SystemExit("the end"), "raised SystemExit: the end"),
    ],
)
def test_a_source_that_fails_costs_its_prompt(answer: Any, words: str, caplog: pytest.LogCaptureFixture) -> None:
    async def source(prompt: Prompt, ask: SourceRequest) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    guarded = GuardedSource("theirs", source, ("echo",))
    for _ in range(2):
        with pytest.raises(InvalidInput, match=words) as caught:
            asyncio.run(guarded(PROMPT, SourceRequest(1, 0)))
        assert caught.value.reason == "CANDIDATE_NOT_WRITTEN"
    assert len(caplog.records) == 1  # of the first


def test_a_source_that_is_not_async_is_told_so() -> None:
    plain: Any = lambda prompt, ask: [Response("p", 0, "a", [1], source="echo")]  # noqa: E731
    with pytest.raises(InvalidInput, match="define it by `async def`"):
        asyncio.run(GuardedSource("theirs", plain, ("echo",))(PROMPT, SourceRequest(1, 0)))


def test_a_part_that_cannot_be_opened_is_named() -> None:
    part = SimpleNamespace(open=lambda context: {}["file"])
    with pytest.raises(
        PreconditionFailed, match="theirs cannot be opened: KeyError: 'file'; correct the part"
    ) as caught:
        _opened("theirs", part, SimpleNamespace())  # type: ignore[arg-type]
    assert caught.value.reason == "PART_UNUSABLE"
