"""The scorer that a run is given, against the recipe's reward."""

from dataclasses import fields
from typing import Any, cast

import pytest
from sightline.picture_rule import PICTURE_RULE
from sightline.scorer import ModelInfo, Models
from sightline_trainer.preflight.services import scorer
from sightline_trainer.recipe import Recipe


class _Roomy:
    max_texts = 1000


def serving(architecture: str) -> Models:
    known = {"name": "default", "architecture": architecture, "is_default": True}
    model = ModelInfo(**cast(Any, {field.name: known.get(field.name) for field in fields(ModelInfo)}))
    return Models((model,), cast(Any, _Roomy()), (), PICTURE_RULE)


@pytest.mark.parametrize(
    ("source", "architecture", "differs"),
    [
        ("ViT-L-14-336", "ViT-B-32", True),
        ("ViT-L-14-336", "local-dir:/weights/clip", True),
        ("ViT-L-14-336", "ViT-L-14-336", False),
        ("playground:clip", "local-dir:/weights/clip", False),
    ],
)
def test_a_running_scorer_with_another_model_is_a_warning(source: str, architecture: str, differs: bool) -> None:
    """`sightline run --check` said that the run can start, and nothing else."""
    recipe = Recipe.model_validate(
        {"name": "r", "model": "m", "data": {"train": "a", "test": "b"}, "reward": {"source": source, "address": "s:1"}}
    )
    found = list(scorer(recipe, serving(architecture)))
    assert [finding.code for finding in found] == ["REWARD_MODEL_DIFFERS"] * differs
    assert all(finding.severity == "warning" and architecture in finding.message for finding in found)
