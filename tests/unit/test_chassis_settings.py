"""Settings: which source wins, what is refused, and with which message."""

from pathlib import Path

import pytest
from pydantic import Field, ValidationError
from sightline_chassis.settings import Section, ServiceSettings, SettingsError, load_settings, resolved
from sightline_chassis.shipped import model_place


class ModelSettings(Section):
    """A model."""

    path: Path = Field(default=Path("tiny"), description="Where it is.")
    revision: str = Field(default="main", description="Which one.")
    temperature: float = Field(default=1.0, gt=0, le=5, description="How wild.")
    max_new_tokens: int = Field(default=64, ge=1, description="How long.")


class ProbeSettings(ServiceSettings):
    """Settings of the tests' service."""

    model: ModelSettings = Field(default=ModelSettings(), description="The one.")
    others: dict[str, ModelSettings] = Field(default={}, description="More.")
    several: tuple[ModelSettings, ...] = Field(default=(), description="More still.")
    label: str = Field(default="", description="A text.")
    count: int | str = Field(default=0, description="Either.")
    access_token: str | None = Field(default=None, description="A secret.")


def load(tmp_path: Path, text: str = "", *overrides: str) -> ProbeSettings:
    """Settings from a file with this text, and flags."""
    config = tmp_path / "probe.yaml"
    config.write_text(text)
    return load_settings(ProbeSettings, service="probe", config=config, overrides=overrides)


def refusal(tmp_path: Path, text: str = "", *overrides: str) -> str:
    """The message with which these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "server: {drain_seconds: 1, notice_seconds: 1, liveness_seconds: 1}"
    monkeypatch.setenv("SIGHTLINE_PROBE__SERVER__NOTICE_SECONDS", "2")
    monkeypatch.setenv("SIGHTLINE_PROBE__SERVER__LIVENESS_SECONDS", "2")
    monkeypatch.setenv("SIGHTLINE_OTHER__SERVER__LIVENESS_SECONDS", "9")
    monkeypatch.setenv("SIGHTLINE_PROBE_PORT", "tcp://10.0.0.1:80")  # what Kubernetes puts there
    server = load(tmp_path, text, "server.liveness_seconds=3").server
    assert (server.port, server.drain_seconds, server.notice_seconds, server.liveness_seconds) == (0, 1, 2, 3)


def test_no_file_no_flags_are_the_defaults() -> None:
    assert load_settings(ProbeSettings, service="probe") == ProbeSettings()


def test_values_are_yaml_but_strings_are_as_written(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "model:\n",
        "label=007",
        "model.revision=1.10",
        "server.reflection=no",
        "server.announce=null",
        "model.path=2024-01-01",
        "model.temperature=1e-1",
        "count=5",
        "others={a: {revision: 'yes'}, b: }",
        "others.a.temperature=2",
    )
    assert (settings.label, settings.model.revision, str(settings.model.path)) == ("007", "1.10", "2024-01-01")
    assert (settings.server.reflection, settings.server.announce, settings.model.temperature) == (False, None, 0.1)
    assert settings.count == 5
    assert settings.others["b"] == ModelSettings()


@pytest.mark.parametrize("text", ["runs/my run #2/data", "a\n  b # c", "[x]/a", "{x}/a", "a: b", "C# and D"])
def test_a_plain_text_is_neither_cut_nor_folded(tmp_path: Path, text: str) -> None:
    """YAML takes " #" for a comment: a run logged to another directory than its own."""
    settings = load(tmp_path, "", f"label={text}", f"model.path={text}")
    assert (settings.label, str(settings.model.path)) == (text, text)
    assert load(tmp_path, "", 'label="a #b"  # quoted').label == "a #b"


def test_mappings_merge(tmp_path: Path) -> None:
    settings = load(tmp_path, "model: {revision: a, temperature: 2}", "model={revision: b}")
    assert (settings.model.revision, settings.model.temperature) == ("b", 2)


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("servr: {port: 1}", (), ("servr is unknown", "did you mean server?", "probe.yaml")),
        ("server: {prot: 1}", (), ("server.prot is unknown", "did you mean server.port?")),
        ("server: {zzz: 1}", (), ("server.zzz is unknown", "known here: host, port")),
        ("", ("admission.max_queu=1",), ("did you mean admission.max_queue?", "--set admission.max_queu")),
        ("others: {a: {pth: x}}", (), ("others.a.pth is unknown", "did you mean others.a.path?")),
        ("several: [{pth: x}]", (), ("several.0.pth is unknown", "did you mean several.0.path?")),
        ("server: {port: 70000}", (), ("server.port = 70000", "less than or equal to 65535")),
        ("model: {temperature: .nan}", (), ("model.temperature = nan",)),
        ("server: 3", (), ("server = 3",)),
        ("", ("server=3",), ("server = 3", "--set server")),
        ("label: 3", ("label.x=3",), ("label is a value, not a section",)),
        ("", ('others."a.b:c".pth=x',), ("others.a.b:c.pth is unknown", "did you mean others.a.b:c.path?")),
        ("", ("label",), ("must look like section.key=value",)),
        ("- a", (), ("must hold a mapping",)),
        ("a: [", (), ("is not YAML at line 1",)),
        ("label: a\nlabel: b", (), ("label is given twice", "line 1")),
        ("access_token: [s3cret]", (), ("access_token: ",)),
        ("access_token: 5.5", (), ("access_token = 5.5",)),
    ],
)
def test_refusals_name_the_key_the_source_and_the_remedy(
    tmp_path: Path, text: str, overrides: tuple[str, ...], words: tuple[str, ...]
) -> None:
    message = refusal(tmp_path, text, *overrides)
    for word in words:
        assert word in message


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "server: {prot: 1, port: -1}", "admission.max_concurrent=0")
    assert message.count(";") == 2


def test_the_environment_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_PROBE__SERVER__PROT", "1")
    assert "SIGHTLINE_PROBE__SERVER__PROT" in refusal(tmp_path)


def test_a_refusal_does_not_tell_secrets(tmp_path: Path) -> None:
    assert "s3cret" not in refusal(tmp_path, "access_token: {a: s3cret}")
    assert "s3cret" not in refusal(tmp_path, "access_token: [s3cret]\nlabel: [")
    assert "s3cret" not in refusal(tmp_path, "server: {access_tokens: s3cret, port: x}")


def test_a_missing_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load_settings(ProbeSettings, service="probe", config=tmp_path / "none.yaml")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        ProbeSettings().server.port = 1  # type: ignore[misc]


def test_resolved_hides_secrets_and_only_them(tmp_path: Path) -> None:
    shown = resolved(load(tmp_path, "access_token: s3cret"))
    assert "s3cret" not in str(shown)
    assert shown["access_token"] == "***"
    assert shown["model"]["max_new_tokens"] == 64
    assert resolved(load(tmp_path))["access_token"] is None


def test_every_field_of_the_chassis_is_explained() -> None:
    for section in (ServiceSettings, *(f.annotation for f in ServiceSettings.model_fields.values())):
        assert section is not None
        assert all(field.description for field in section.model_fields.values())


def test_a_path_may_begin_with_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--set runs=~/runs`, which no shell expands, made a directory named ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load(tmp_path, "server: {announce: ~/at.json}", "model.path=~/model")
    assert (settings.server.announce, settings.model.path) == (tmp_path / "at.json", tmp_path / "model")
    assert model_place("~/clip") == str(tmp_path / "clip")
    assert model_place("local-dir:~/clip") == f"local-dir:{tmp_path / 'clip'}"
    assert (model_place("org/name"), model_place("ViT-B-32")) == ("org/name", "ViT-B-32")
