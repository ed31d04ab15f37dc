"""Decoding in recipes, and CSR's tree of sentences, with stand-ins for the services; numbers computed by hand."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sightline.sampler import Beams, Blank, Contrast, DiffusionNoise, ImageFree, Prompted
from sightline_trainer.candidates import CANDIDATES
from sightline_trainer.candidates.source import SourceContext, SourceRequest
from sightline_trainer.decoder_options import DecoderOptions
from sightline_trainer.decoding_settings import Decoding
from sightline_trainer.needs import Needs
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response

PROMPT = Prompt("p", (Path("x.png"),), "what do you see ?")


def recipe(**more: Any) -> Recipe:
    return Recipe.model_validate({"name": "x", "model": "m", "data": {"train": "a", "test": "b"}, **more})


def options(settings: dict[str, Any], **how: Any) -> dict[str, Any]:
    return asyncio.run(DecoderOptions(Decoding.model_validate(settings), 0, **how)(PROMPT, "what ?"))


def test_a_recipes_decoding_is_what_the_sampler_is_asked_for() -> None:
    seed = PROMPT.seed(0, -6)
    assert options({}) == {}
    assert options({"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}) == {
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2
    }  # fmt: skip
    assert options({"distortion": {"diffusion_noise": {"step": 900}}}) == {"distortion": DiffusionNoise(900, seed)}
    assert options({"beams": {"groups": 5, "diversity_penalty": 3}}) == {"beams": Beams(5, 3.0, 1.0)}
    assert options({"guidance": {"contrast": {"alpha": 0.5, "distortion": {"blank": {}}}}}) == {
        "guidance": Contrast(Blank(), 0.5, 0.1)
    }
    assert options({"guidance": {"contrast": {}}}) == {"guidance": Contrast(DiffusionNoise(500, seed), 1.0, 0.1)}
    assert options({"guidance": {"image_free": {"gamma": 2, "beta": 0.25}}}) == {"guidance": ImageFree(2.0, None, 0.25)}


def test_marines_other_prompt_names_the_objects_that_are_found_once_a_picture() -> None:
    looks = []

    class Finder:
        identity = "finder"

        async def __call__(self, prompt: Prompt, objects: Sequence[str]) -> dict[str, float]:
            looks.append(prompt.id)
            return {"cat": 30.0, "dog": 24.9, "cup": 25.0}

        async def close(self) -> None:
            pass

    template = "there is a {objects} . {question}"
    settings = Decoding.model_validate({"guidance": {"prompted": {"template": template, "there": 25.0}}})
    decoder = DecoderOptions(settings, 0, Finder(), ["bus", "cat", "cup", "dog"])

    async def twice() -> list[dict[str, Any]]:
        return [await decoder(PROMPT, "what ?"), await decoder(PROMPT, "and ?")]

    assert asyncio.run(twice()) == [
        {"guidance": Prompted("there is a cat, cup . what ?", 0.7)},
        {"guidance": Prompted("there is a cat, cup . and ?", 0.7)},
    ]
    assert looks == ["p"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guidance": {}}, "guidance is one of"),
        ({"guidance": {"contrast": {}, "image_free": {}}}, "guidance is one of"),
        ({"distortion": {}}, "a distortion is one of"),
        ({"distortion": {"blank": {}, "blur": {"radius": 1}}}, "a distortion is one of"),
        ({"guidance": {"prompted": {"template": "{caption}"}}}, "caption"),
        ({"guidance": {"contrast": {"alpha": -1}}}, "greater than or equal to 0"),
    ],
)
def test_what_no_sampler_does_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Decoding.model_validate(settings)


def test_an_evaluation_searches_no_beams_and_a_recipe_may_train_nothing() -> None:
    with pytest.raises(ValidationError, match="can't use beams"):
        recipe(evaluation={"decoding": {"beams": {}}})
    free = recipe(iterations=0, evaluation={"decoding": {"guidance": {"image_free": {}}}})
    assert Recipe.model_validate(free.model_dump(mode="json")) == free
    assert recipe().evaluation.decoding.plain


class Tree:
    """A sampler that continues each beginning with two sentences and ends after two levels."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    async def sample(self, image: Any, prompt: str, n: int, **how: Any) -> Any:
        given = tuple(how["continue_from"])
        self.asked.append(given)
        ends = len(given) >= 2
        children = []
        for at in range(n):
            text = "".join(f"w{token}." for token in given) + ("" if ends else f"w{len(given)}{at}")
            children.append(
                SimpleNamespace(
                    text=text,
                    token_ids=np.array([2] if ends else [10 * len(given) + at]),
                    logprobs=np.array([0.0 if ends else -float(at) - 1]),
                    finish_reason="eos" if ends else "stop",
                )
            )
        return SimpleNamespace(candidates=children, rendered_prompt="USER: what")


def grown(sampler: Any, **settings: Any) -> list[Response]:
    part = CANDIDATES["sentence_beams"].model_validate({"min_characters": 2, **settings})
    context = SourceContext(recipe().sampling, 0, sampler, None, Path(), None, AsyncExitStack())  # type: ignore[arg-type]
    source = part.open(context)
    assert source is not None
    return asyncio.run(source(PROMPT, SourceRequest(1, 3)))


def test_a_tree_goes_on_with_the_best_and_the_worst_of_a_level() -> None:
    """Level one: log-probs -1, -2, -3 of tokens 0, 1, 2; the best (0) and the worst (2) go on. Level two: token 0 has
    children -2, -3, -4, token 2 has -4, -5, -6 in sum; kept are (0, 10) and (2, 12). Both end at once."""
    sampler = Tree()
    found = grown(sampler, groups=3, best=1, worst=1)
    assert sampler.asked == [(), (0,), (2,), (0, 10), (2, 12)]
    assert [(each.token_ids, each.logprobs) for each in found] == [
        ([0, 10, 2], [-1.0, -1.0, 0.0]),
        ([2, 12, 2], [-3.0, -3.0, 0.0]),
    ]
    assert {(each.source, each.policy_version, each.finish_reason) for each in found} == {("policy", 3, "eos")}
    assert [each.index for each in found] == [0, 1]


def test_a_tree_ends_where_texts_are_long_and_keeps_candidates_from_both_ends() -> None:
    found = grown(Tree(), groups=4, best=2, worst=2, max_sentences=1, count=3)
    assert [(each.token_ids, each.finish_reason) for each in found] == [
        ([0], "length"), ([3], "length"), ([1], "length"),
    ]  # fmt: skip
    assert found[0].text == "w00."
    assert grown(Tree(), groups=2, min_characters=9) == []


def test_a_recipe_says_how_many_candidates_and_tokens_its_parts_ask_for() -> None:
    tree = recipe(candidates={"sentence_beams": {}})
    assert Needs.of(tree) == Needs(5, "candidates.sentence_beams.groups", 70, 8)
    twice = recipe(candidates={"policy": {}, "warm": {"part": "policy", "temperature": 0.9, "count": 3}})
    assert Needs.of(twice) == Needs(8, "sampling.candidates", 64, 11)
    judged = recipe(reward={"terms": {"ask": {"templates": {"good": "{answer}"}, "max_tokens": 300}}})
    assert Needs.of(judged).tokens == 300
