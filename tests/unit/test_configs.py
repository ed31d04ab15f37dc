"""Every recipe and settings file of the repository loads."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from field import controls
from sightline_chassis.settings import ServiceSettings, SettingsError, load_settings
from sightline_sampler.settings import SamplerSettings
from sightline_scorer.settings import ScorerSettings
from sightline_trainer.recipe import load_recipe
from sightline_trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, type[ServiceSettings]] = {
    "scorer": ScorerSettings,
    "sampler": SamplerSettings,
    "trainer": TrainerSettings,
}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert path.read_text().startswith("# "), "a recipe begins with the commands that run it"


@pytest.mark.field
@pytest.mark.parametrize(
    "path",
    [controls(path)[0] if path.stem != "clip_dpo" else path for path in sorted((ROOT / "recipes").glob("*.yaml"))],
    ids=lambda path: path.stem,
)
def test_the_command_in_a_recipes_header_is_taken(path: Path) -> None:
    """For YAML, `?` ends a text in brackets: the paraphrases of clip_dpo.yaml were not a list."""
    header = "\n".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    command = re.search(r"a real LVLM: (sightline run .*?)(?:\n\n|$)", header, re.S)
    assert command is not None
    words = shlex.split(command[1].replace("\\\n", " ").replace("\n", " "))
    overrides = [word for before, word in itertools.pairwise(words) if before == "--set"]
    assert load_recipe(path, overrides).model == "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize("path", sorted(ROOT.glob("services/*/*.yaml")), ids=lambda path: path.name)
def test_settings_file(path: Path) -> None:
    service = path.parent.name
    load_settings(SETTINGS[service], service=service, config=path)


def test_an_unknown_key_of_a_recipe_is_refused_with_its_path() -> None:
    with pytest.raises(SettingsError, match=r"dpo\.betta.*did you mean dpo\.beta"):
        load_recipe(ROOT / "recipes/clip_dpo.yaml", ["dpo.betta=0.2"])
    with pytest.raises(SettingsError, match=r"dpo\.beta"):
        load_recipe(ROOT / "recipes/clip_dpo.yaml", ["dpo.beta=-1"])


def test_overrides_reach_the_recipe() -> None:
    assert load_recipe(ROOT / "recipes/clip_dpo.yaml", ["dpo.beta=0.2", "iterations=7"]).dpo.beta == 0.2


def test_a_list_that_yaml_refuses_is_told_as_that() -> None:
    """For YAML, `?` ends a text in brackets."""
    with pytest.raises(
        SettingsError, match=r"valid list; it is not YAML \(expected ',' or '\]', but got '\?'\): put texts"
    ):
        load_recipe(ROOT / "recipes/clip_dpo.yaml", ["candidates.policy.paraphrases=[Tell me., What is there?]"])
    assert load_recipe(ROOT / "recipes/clip_dpo.yaml", ["description=[one, two?]"]).description == "[one, two?]"
