"""Sources of candidates, on a stand-in for the sampler and the playground's tokenizer."""

import asyncio
import io
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from running import WEIGHTS
from sightline.errors import InvalidInput
from sightline.sampler import DiffusionNoise, PixelNoise, Turn
from sightline_trainer.candidates import CANDIDATES
from sightline_trainer.candidates.declared import declared
from sightline_trainer.candidates.noised_image import noised
from sightline_trainer.candidates.question_answer import QuestionIndex
from sightline_trainer.candidates.source import CandidatePart, SourceContext, SourceRequest
from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.row_gate import RowGate

REFERENCE = "there is a red star ."
PROMPT = Prompt("p", (WEIGHTS.parent / "world.png",), "what do you see ?", reference=REFERENCE)
GATE = RowGate(ModelProcessor(str(WEIGHTS / "llava")))
TEMPLATE = GATE.template


class Sampler:
    """Answers with the text of the request."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    async def sample(self, image: Any, turns: Sequence[Turn], n: int, **options: Any) -> Any:
        prompt = turns[-1].text
        self.calls.append({"image": image, "prompt": prompt, "n": n, **options})
        return SimpleNamespace(
            rendered_prompt=f"USER: {prompt}",
            candidates=[
                SimpleNamespace(
                    index=i,
                    text=f"{prompt} {i}",
                    token_ids=np.array([i]),
                    logprobs=np.array([-1.0]),
                    finish_reason="eos",
                    seed=seed,
                    policy_version=options["policy"].version,
                )
                for i, seed in enumerate(options["seeds"])
            ],
        )


def made(
    part: CandidatePart,
    *,
    ask: SourceRequest | None = None,
    dataset: Path = Path(),
    prompt: Prompt = PROMPT,
    sampler: Sampler | None = None,
) -> Any:
    recipe = Recipe.model_validate(
        {"name": "test", "model": "m", "data": {"train": "a", "test": "b"}, "sampling": {"candidates": 3}}
    )
    sampler = sampler or Sampler()
    source = part.open(SourceContext(recipe.sampling, recipe.seed, sampler, GATE, dataset, None, AsyncExitStack()))  # type: ignore[arg-type]
    assert source is not None
    return asyncio.run(source(prompt, ask or SourceRequest(iteration=2, version=7))), sampler.calls


def part(name: str, **settings: Any) -> CandidatePart:
    return CANDIDATES[name].model_validate(settings)


def test_policy_asks_the_datasets_text_k_times_with_seeds_of_its_own() -> None:
    candidates, (call,) = made(part("policy"))
    assert (call["prompt"], call["n"], call["policy"].version) == ("what do you see ?", 3, 7)
    assert [candidate.index for candidate in candidates] == [0, 1, 2]
    assert len({candidate.seed for candidate in candidates}) == 3
    assert {candidate.source for candidate in candidates} == {"policy"}
    again, _ = made(part("policy"))
    assert again == candidates


def test_policy_draws_paraphrases_by_the_prompts_seed() -> None:
    texts = ["one ?", "two ?", "three ?"]
    settings = part("policy", paraphrases=texts, per_image=2)
    candidates, calls = made(settings)
    assert len(calls) == 2
    assert {call["prompt"] for call in calls} < set(texts)
    assert [candidate.index for candidate in candidates] == list(range(6))
    assert len({candidate.seed for candidate in candidates}) == 6
    assert [candidate.prompt for candidate in candidates] == [call["prompt"] for call in calls for _ in range(3)]
    assert made(settings)[0] == candidates
    drawn = {made(settings, ask=SourceRequest(i, 0))[1][0]["prompt"] for i in range(12)}
    assert drawn == set(texts)


def tokens(candidate: Response) -> list[str]:
    return list(TEMPLATE._processor.tokenizer.convert_ids_to_tokens(candidate.token_ids))


def test_the_reference_is_worded_as_the_policy_would_have_to() -> None:
    (candidate,), _ = made(part("reference"))
    assert (candidate.text, candidate.source, candidate.policy_version) == (REFERENCE, "reference", -1)
    assert tokens(candidate) == ["there", "is", "a", "red", "star", ".", "</s>"]
    assert candidate.rendered_prompt == "USER: <image>\nwhat do you see ? ASSISTANT:"
    assert made(part("reference"), prompt=Prompt("q", (Path("x"),), "look"))[0] == []


def sampled(*prompts: str) -> Sequence[Response]:
    return [Response("p", i, f"an answer {i}", [1], prompt=text) for i, text in enumerate(prompts)]


def test_the_reference_answers_every_text_that_was_asked() -> None:
    candidates, _ = made(part("reference"), ask=SourceRequest(1, 0, sampled("a", "a", "b")))
    assert [(candidate.index, candidate.prompt) for candidate in candidates] == [(3, "a"), (4, "b")]


def test_noise_is_put_over_the_image_by_the_sampler() -> None:
    candidates, (call,) = made(part("noised_image", step=900, count=2, temperature=0.2))
    noise = call["distortion"]
    assert isinstance(noise, DiffusionNoise)
    assert (noise.step, call["temperature"], call["n"]) == (900, 0.2, 2)
    assert {candidate.source for candidate in candidates} == {"noised_image"}
    _, (other,) = made(part("noised_image", pixels="unit"), ask=SourceRequest(3, 0))
    assert isinstance(other["distortion"], PixelNoise)
    assert other["distortion"].seed != noise.seed  # drawn again in each iteration


def test_noise_that_the_update_must_see_too_is_drawn_here(tmp_path: Path) -> None:
    pixels = np.full((40, 40, 3), 128, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    (tmp_path / "grey.png").write_bytes(buffer.getvalue())

    def seen(step: int, seed: int = 3) -> Any:
        return np.asarray(Image.open(io.BytesIO(noised(buffer.getvalue(), step, seed)))) / 255

    # By the schedule, signal and noise are 0.994 and 0.110 at step 200, 0.863 and 0.505 at 500.
    assert seen(200).mean() == pytest.approx(0.994 * 128 / 255, abs=0.005)
    assert seen(200).std() == pytest.approx(0.110, abs=0.005)
    assert seen(500).std() == pytest.approx(0.38, abs=0.03)  # 0.505, except for clamped values
    assert (seen(500) == seen(500)).all()
    assert (seen(500) != seen(500, seed=4)).any()
    prompt = Prompt("p", (tmp_path / "grey.png",), "look")
    (candidate,), (call,) = made(part("noised_image", pixels="unit", conditioned=True), prompt=prompt)
    assert call["distortion"] is None
    assert call["image"] == candidate.images != [buffer.getvalue()]
    with pytest.raises(ValidationError, match="pixels: unit"):
        part("noised_image", conditioned=True)


def test_errors_are_injected_into_the_reference_or_the_policys_answer(tmp_path: Path) -> None:
    words = {"objects": ["red star", "blue ring"], "companions": {"red star": "blue ring"}}
    (tmp_path / "vocabulary.json").write_text(json.dumps(words))
    (candidate,), _ = made(part("injected", kinds=["add_object"]), dataset=tmp_path)
    assert candidate.text == "there is a red star and a blue ring ."
    assert (candidate.source, tokens(candidate)[-1]) == ("injected", "</s>")
    answers = [Response("p", i, f"i see a {name} .", [1], prompt="q") for i, name in enumerate(("red star", "ring"))]
    ask = SourceRequest(1, 0, answers)
    (candidate,), _ = made(part("injected", of="policy", kinds=["add_object"]), dataset=tmp_path, ask=ask)
    assert (candidate.text, candidate.prompt, candidate.index) == ("i see a red star and a blue ring .", "q", 2)
    assert made(part("injected", kinds=["swap_relation"]), dataset=tmp_path)[0] == []


def questions(directory: Path, count: int = 20) -> Path:
    rows = [
        {"id": f"p{i % 10}", "text": f"is there a cat {i} ?", "right": "yes .", "wrong": "no ."} for i in range(count)
    ]
    rows[3]["right_statement"] = "a cat"
    (directory / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_questions_are_found_by_prompt_and_a_share_of_prompts_gets_one(tmp_path: Path) -> None:
    index = QuestionIndex(questions(tmp_path) / "questions.jsonl")
    assert [row["text"] for row in index.of("p3")] == ["is there a cat 3 ?", "is there a cat 13 ?"]
    assert index.of("nobody") == []
    prompts = [Prompt(f"p{i % 10}", (Path("x"),), "look") for i in range(10)]
    asks = [(prompt, SourceRequest(iteration, 0, sampled("look"))) for prompt in prompts for iteration in range(20)]
    answers = [made(part("question_answer", share=0.25), dataset=tmp_path, prompt=p, ask=a)[0] for p, a in asks]
    assert {len(pair) for pair in answers} == {0, 2}
    assert 25 <= sum(map(bool, answers)) <= 75  # of 200
    right, wrong = next(pair for pair in answers if pair)
    assert (right.source, wrong.source, right.text, wrong.text) == ("right_answer", "wrong_answer", "yes .", "no .")
    assert right.prompt.startswith("is there a cat")
    assert (right.index, wrong.index) == (1, 2)
    assert right.statement in (
        "a cat",
        right.prompt.removeprefix("is ").removesuffix(" ?").replace("there", "there is"),
    )


def test_bad_questions_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="leave that part out"):
        QuestionIndex(tmp_path / "questions.jsonl")
    (tmp_path / "questions.jsonl").write_text('{"id": "p", "text": "t", "right": "r"}\n')
    with pytest.raises(InvalidInput, match=r"line 1.*wrong"):
        QuestionIndex(tmp_path / "questions.jsonl")


@pytest.mark.field
@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("Is there a cat in the picture?", "yes", "there is a cat in the picture"),
        ("is there a cat ?", "no .", "there is no cat"),
        ("are there any dogs ?", "no", "there are no dogs"),
        ("are there any dogs ?", "Yes.", "there are dogs"),
        ("what colour is the bus ?", "red", "the bus is red"),
        ("Where is the dog?", "on the sofa", "the dog is on the sofa"),
        ("how many dogs are there?", "two", "two dogs"),
        ("is the star red ?", "no .", "the star is not red"),
        ("Is the dog black?", "yes", "the dog is black"),
        ("Is the dog black?", "No.", "the dog is not black"),
        ("Is the red dog black?", "yes", "the red dog is black"),
        ("Are the two men riding horses?", "no", "the two men are not riding horses"),
        ("Is the building tall?", "yes", "the building is tall"),
        ("Is the man in the blue shirt smiling?", "yes", "the man in the blue shirt is smiling"),
        ("Is the cat on the sofa?", "no", "the cat is not on the sofa"),
        ("Is this a kitchen?", "yes", "this is a kitchen"),
        ("Is it raining?", "no", "it is not raining"),
        ("Was there any snow?", "No", "there was no snow"),
        ("Can you see a clock?", "Yes, on the wall", "there is a clock"),
        ("is there a north wind ?", "north", "is there a north wind north"),
        ("is the sign yellow ?", "nothing", "is the sign yellow nothing"),
        ("what is it?", "It is a long answer of many words.", "It is a long answer of many words"),
    ],
)
def test_questions_become_statements(question: str, answer: str, statement: str) -> None:
    assert declared(question, answer) == statement


class Writer(Sampler):
    """Continues with "blue ring" and ends."""

    async def sample(self, image: Any, turns: Sequence[Turn], n: int, **options: Any) -> Any:
        samples = await super().sample(image, turns, n, **options)
        samples.candidates[0].token_ids = np.array(TEMPLATE.response(PROMPT.asked(), "blue ring"))
        return samples


def test_a_segment_of_the_annotation_is_written_anew_and_what_comes_after_stays() -> None:
    """Of a y of six tokens, y[:t] + "blue ring" + y[t + 2:], t even over 0..5, for twelve pieces."""
    reference, _ = made(part("reference"))
    whole = TEMPLATE.response(PROMPT.asked(), REFERENCE)[:-1]
    assert len(whole) == 6
    piece = TEMPLATE.response(PROMPT.asked(), "blue ring")[:-1]
    ask = SourceRequest(iteration=2, version=7, made=reference)
    found, calls = made(part("segment", tokens=2, count=12), ask=ask, sampler=Writer())
    begun = [len(call["continue_from"]) for call in calls]
    assert len(set(begun)) > 2
    for call, candidate, t in zip(calls, found, begun, strict=True):
        assert call["continue_from"] == whole[:t]
        assert candidate.token_ids[:-1] == [*whole[:t], *piece, *whole[t + 2 :]]
        assert (call["max_tokens"], call["temperature"], call["top_k"], call["top_p"]) == (2, 0.7, 50, 0.95)
    assert [each.index for each in found] == list(range(1, 13))
    assert {(each.source, each.policy_version, len(each.logprobs)) for each in found} == {("segment", -1, 0)}
    alone, _ = made(part("segment"), sampler=Writer())
    assert alone == []
