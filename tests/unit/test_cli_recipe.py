"""`sightline recipe`: a recipe's values, and the meaning of its keys."""

import json
from pathlib import Path

import pytest
import yaml
from sightline_cli.main import app
from sightline_trainer.recipe import Recipe, load_recipe
from typer.testing import CliRunner

RECIPE = str(Path(__file__).parents[2] / "recipes/clip_dpo.yaml")

pytestmark = pytest.mark.field


def found(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["recipe", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_show_tells_every_value_and_who_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_RECIPE__DPO__BETA", "0.2")
    overrides = ["dpo.loss.ipo=1", "filters.gap={min: 3}"]
    flags = [argument for override in overrides for argument in ("--set", override)]
    shown = json.loads(found("show", RECIPE, *flags, "--json"))
    assert Recipe.model_validate(shown["recipe"]) == load_recipe(Path(RECIPE), overrides)
    origins = shown["origins"]
    assert set(origins.values()) == {"default", "file", "environment", "--set"}
    assert (origins["dpo.beta"], origins["iterations"]) == ("environment", "file")
    assert (origins["dpo.loss.ipo"], origins["dpo.loss.sft"]) == ("--set", "file")
    assert (origins["filters.gap.min"], origins["filters.gap.of"]) == ("--set", "default")
    assert (origins["filters.finished"], origins["dpo.lora.dropout"]) == ("file", "default")


def test_what_is_shown_is_a_recipe(tmp_path: Path) -> None:
    text = found("show", RECIPE, "--set", "filters.gap.min=3")
    assert "# --set" in text
    (tmp_path / "shown.yaml").write_text(text)
    assert load_recipe(tmp_path / "shown.yaml") == load_recipe(Path(RECIPE), ["filters.gap.min=3"])
    assert yaml.safe_load(text)["dpo"]["beta"] == 0.1


def test_show_refuses_what_run_would_refuse() -> None:
    assert "ipoo" in found("show", RECIPE, "--set", "dpo.loss={ipoo: 1}", code=2)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("filters.gap.min", ("number", "default 2.0", "Minimum gap")),
        ("candidates.noised_image.step", ("integer, 0 to 999", "default 500")),
        ("filters.gap", ("section   default on", "filters.gap.of")),
        ("filters.degenerate", ("section   default off", "filters.degenerate.max_repeats")),
        ("dpo.loss", ("sigmoid", "ipo")),
        ("dpo.loss.ipo", ("dpo.loss ",)),
        ("pairing.ith_best_ith_worst", ("small_gap",)),
    ],
)
def test_explain_knows_the_settings_of_parts(key: str, words: tuple[str, ...]) -> None:
    text = found("explain", key)
    for word in words:
        assert word in text


def test_explain_names_what_was_meant() -> None:
    assert "filters.gap.min" in found("explain", "filters.gap.mim", code=2)
