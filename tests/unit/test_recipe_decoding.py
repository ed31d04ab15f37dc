"""Decoding in a recipe: what cannot work is refused when the recipe is read, or before anything is trained."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from sightline.errors import InvalidInput, SightlineError, Unsupported
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.session import Session

PLAIN: dict[str, Any] = {"name": "plain", "model": "m", "data": {"train": "a", "test": "b"}}
GUIDED = {"guidance": {"contrast": {"distortion": {"blank": {}}}}}
PROMPT = Prompt("p", (Path("a.png"),), "what ?")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"evaluation": {"decoding": {"distortion": {"crop": {"min_area": 0.5, "max_area": 0.2}}}}},
            "min_area 0.5 is above max_area 0.2",
        ),
        ({"candidates": {"policy": {"decoding": {"beams": {"groups": 3}}}}}, "8 candidates cannot form 3 groups"),
        ({"data": {"train": "a", "test": "b", "mix": {"offline": 0.5}}}, "data.mix mixes in the rows of data.pairs"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Recipe.model_validate({**PLAIN, "sampling": {"candidates": 8}, **more})


def test_settings_that_fit_are_read() -> None:
    more = {"candidates": {"policy": {"count": 6, "decoding": {"beams": {"groups": 3}}}}}
    assert Recipe.model_validate({**PLAIN, **more}).data.mix.offline == 1.0


def tried(decoding: dict[str, Any], error: SightlineError | None) -> list[dict[str, Any]]:
    """The requests of `Session.try_decoding` to a sampler that raises an error."""
    asked: list[dict[str, Any]] = []

    async def sample(prompt: Prompt, count: int, **options: Any) -> None:
        asked.append(options)
        if error is not None:
            raise error

    recipe = Recipe.model_validate({**PLAIN, "evaluation": {"decoding": decoding, "temperature": 0.7}})
    session: Any = SimpleNamespace(recipe=recipe, decoded=lambda: sample)
    asyncio.run(Session.try_decoding(session, PROMPT))
    return asked


def test_an_engine_that_lacks_the_decoding_refuses_before_anything_is_trained() -> None:
    assert tried({}, None) == []  # plain decoding needs no try
    assert tried(GUIDED, None) == [{"iteration": 0, "version": 0, "temperature": 0.7}]
    with pytest.raises(Unsupported):
        tried(GUIDED, Unsupported("no guidance here"))
    with pytest.raises(InvalidInput):
        tried(GUIDED, InvalidInput("alpha", reason="BAD_GUIDANCE"))
    tried(GUIDED, InvalidInput("this picture", reason="IMAGE_DAMAGED"))  # another one may be answered
