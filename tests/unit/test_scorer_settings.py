"""The scorer's settings, and the errors for unusable ones."""

from pathlib import Path

import pytest
from sightline.errors import PreconditionFailed
from sightline_chassis.settings import SettingsError, load_settings
from sightline_scorer import imagereward
from sightline_scorer.loader import calibration_path
from sightline_scorer.released import open_clip_directory
from sightline_scorer.server import main
from sightline_scorer.settings import ScorerSettings


def load(*overrides: str) -> ScorerSettings:
    return load_settings(ScorerSettings, service="scorer", overrides=overrides)


def test_one_model_is_the_default() -> None:
    settings = load("models.tiny.source=ViT-B-32", "models.tiny.pretrained=laion2b_s34b_b79k")
    assert settings.default_name == "tiny"
    assert settings.models["tiny"].precision == "fp32"
    assert settings.triton.mode == "embedded"


def test_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scorer.yaml"
    path.write_text("models: {b: {source: ViT-B-32, pretrained: openai}}\ntriton: {threads: 3}\n")
    monkeypatch.setenv("SIGHTLINE_SCORER__TRITON__THREADS", "2")
    settings = load_settings(ScorerSettings, service="scorer", config=path, overrides=["triton.image_batch=4"])
    assert (settings.triton.threads, settings.triton.image_batch, settings.default_name) == (2, 4, "b")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "models"),
        (["models.a b.source=x"], "models"),
        (["models.a.source=x", "models.b.source=y"], "default_model must name one of them"),
        (["models.a.source=x", "default_model=b"], "is not one of models: a"),
        (["models.a.source=x", "triton.mode=remote"], "needs triton.address"),
        (["models.a.source=x", "triton.image_batch=0"], "triton.image_batch"),
        (["models.a.source=x", "models.a.precission=fp16"], "precission"),
        (["models.a.source=x", "limits.max_text=3"], "did you mean limits.max_texts"),
    ],
)
def test_unusable_settings(overrides: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match=says):
        load(*overrides)
    assert main(None, overrides) == 2
    assert says in capsys.readouterr().err


def test_every_kind_of_source_may_begin_with_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "reward/ImageReward.pt"
    file.parent.mkdir()
    file.touch()
    for source in ("~/reward", "local-dir:~/reward", "~/reward/ImageReward.pt"):
        assert imagereward.checkpoint(load(f"models.a.source={source}").models["a"].source) == file
    for source in ("~/reward", "local-dir:~/reward"):
        place = calibration_path(load(f"models.a.source={source}").models["a"])
        assert place is not None
        assert place.parent == file.parent
    (tmp_path / "hps.pt").write_bytes(b"no checkpoint")
    with pytest.raises(PreconditionFailed, match=f"{tmp_path}/hps.pt is damaged"):
        open_clip_directory("hpsv2", "local-dir:~/hps.pt")
    tokenizer = load("models.a.source=x", "models.a.kind=imagereward", "models.a.tokenizer=~/bert").models["a"]
    assert imagereward.tokenizer_of(tokenizer, file) == str(tmp_path / "bert")


def test_every_setting_is_described_and_bounded() -> None:
    for name, section in ScorerSettings.model_json_schema()["$defs"].items():
        for key, field in section.get("properties", {}).items():
            assert "$ref" in field or field.get("description"), f"{name}.{key} has no description"
            if field.get("type") in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & field.keys(), f"{name}.{key} has no lower bound"


def test_the_readme_names_every_setting() -> None:
    readme = (Path(__file__).parents[2] / "services/scorer/README.md").read_text()
    definitions = ScorerSettings.model_json_schema()["$defs"]
    sections = {"triton": "TritonSettings", "limits": "ScorerLimits", "probe": "ProbeSettings"}
    sections |= {"image_store": "ImageStoreSettings", "models.NAME": "ModelSettings"}
    for section, definition in sections.items():
        for key in definitions[definition]["properties"]:
            assert f"`{section}.{key}`" in readme
