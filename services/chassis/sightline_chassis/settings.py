"""Settings of a service: defaults < YAML file < environment < flags, unknown keys refused, secrets hidden.

    file           admission: {max_concurrent: 4}
    environment    SIGHTLINE_SCORER__ADMISSION__MAX_CONCURRENT=4
    flag           --set admission.max_concurrent=4

Values of the environment and of flags are YAML, so `[a, b]`, `null` and `true` mean the same as in the file; for a
string, the text is taken unchanged. `layers` explains how values are merged.
"""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import pydantic
import yaml

from sightline_chassis.layers import Keys, Layers, SettingsError
from sightline_chassis.sections import (
    AdmissionSettings,
    AuthSettings,
    LogSettings,
    Section,
    ServerSettings,
    ServiceSettings,
    Table,
    Target,
    TlsSettings,
)
from sightline_chassis.yaml_text import MOST_BYTES, KeyTwice, YamlRefused, load_yaml

__all__ = [
    "AdmissionSettings",
    "AuthSettings",
    "LogSettings",
    "Section",
    "ServerSettings",
    "ServiceSettings",
    "SettingsError",
    "SettingsRead",
    "Table",
    "Target",
    "TlsSettings",
    "load_settings",
    "read_settings",
    "read_yaml",
    "resolved",
]

S = TypeVar("S", bound=Section)

# A refusal is sent in a status, which is short: no line begins after this many characters.
_MOST_LINES, _MOST_LETTERS, _ENOUGH_LETTERS = 20, 300, 800
_MARKED = ('"', "'", "|", ">", "!", "&", "#")  # how YAML's other texts begin
_PASSWORD = re.compile(r"//[^/\s]*@")
_KEY = re.compile(r'"[^"]*"|[^.]+')
_SECRET_WORDS = {"token", "tokens", "secret", "secrets", "password", "passwords"}


@dataclass(frozen=True)
class SettingsRead(Generic[S]):
    """Settings, and the layers that they came from."""

    settings: S
    layers: Layers
    file: str

    def origin(self, keys: Keys) -> str:
        """Where a value came from: default, file, environment or --set."""
        known = self.layers.origin(keys)
        if known is None or known == self.file:
            return "default" if known is None else "file"
        return "--set" if known.startswith("--set ") else "environment"


def load_settings(cls: type[S], *, service: str, config: Path | None = None, overrides: Sequence[str] = ()) -> S:
    """The settings of `service`; see `read_settings`."""
    return read_settings(cls, service=service, config=config, overrides=overrides).settings


def read_settings(
    cls: type[S],
    *,
    service: str,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    environment: bool = True,
) -> SettingsRead[S]:
    """Reads the settings of `service`.

    Args:
        cls: the settings' class.
        service: the service's name; the environment's prefix is `SIGHTLINE_<SERVICE>__`.
        config: a YAML file, or None.
        overrides: "section.key=value" from the command line.
        environment: whether to read this process's environment.

    Raises:
        SettingsError: the file cannot be read, a key is unknown, or a value does not fit.
    """
    layers, file = Layers(cls), str(config or "defaults")
    if config is not None:
        layers.lay((), read_yaml(config), file)
    texts: dict[Keys, tuple[str, str]] = {}
    for keys, text, origin in (*(_environment(service) if environment else ()), *_flags(overrides)):
        layers.lay(keys, _parse(text, origin), origin)
        texts[keys] = (text, origin)
    try:
        try:
            return SettingsRead(cls.model_validate(layers.tree), layers, file)
        except pydantic.ValidationError as error:
            # YAML read a number or a date, but a string is wanted ("007", "1.10", "yes"): take it as written.
            for item in error.errors():
                keys = _keys(item)
                if item["type"] in ("string_type", "path_type") and keys in texts:
                    layers.lay(keys, *texts[keys])
            return SettingsRead(cls.model_validate(layers.tree), layers, file)
    except pydantic.ValidationError as error:
        raise SettingsError(_explain(cls, error, layers, file)) from None


def resolved(settings: pydantic.BaseModel) -> dict[str, Any]:
    """The settings as plain JSON values for the log; values named like a secret (except numbers) are hidden."""
    return typing.cast(dict[str, Any], _hide(settings.model_dump(mode="json")))


def read_yaml(config: Path) -> dict[str, Any]:
    """The mapping in a YAML file; error messages do not show its content.

    Raises:
        SettingsError: it cannot be read, is not YAML, or holds no mapping.
    """
    try:
        with config.open("rb") as file:
            held = file.read(MOST_BYTES + 1)
        if len(held) > MOST_BYTES:
            raise YamlRefused(f"holds over {MOST_BYTES} bytes")
        tree = load_yaml(held.decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{config}: cannot be read: {error.strerror}") from None
    except YamlRefused as error:
        raise SettingsError(f"{config}: {error}") from None
    except yaml.MarkedYAMLError as error:  # without its snippet: the file may hold secrets
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise SettingsError(f"{config}: is not YAML at line {line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingsError(f"{config}: is not UTF-8 YAML") from None
    if not isinstance(tree, dict | None):
        raise SettingsError(f"{config}: must hold a mapping of sections, not a {type(tree).__name__}")
    return tree or {}


def _environment(service: str) -> Iterator[tuple[Keys, str, str]]:
    prefix = f"SIGHTLINE_{service.upper()}__"
    for name in sorted(os.environ):
        if name.startswith(prefix):
            yield tuple(name.removeprefix(prefix).lower().split("__")), os.environ[name], name


def _flags(overrides: Sequence[str]) -> Iterator[tuple[Keys, str, str]]:
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise SettingsError(f"--set {override[:_MOST_LETTERS]}: must look like section.key=value")
        yield _split(path.strip()), text, f"--set {path.strip()[:_MOST_LETTERS]}"


def _split(path: str) -> Keys:
    """The keys of a dotted path; a key with dots of its own is in double quotes."""
    return tuple(key.strip('"') for key in _KEY.findall(path)) if '"' in path else tuple(path.split("."))


def _parse(text: str, origin: str) -> Any:
    try:
        value = load_yaml(text)
    except YamlRefused as error:
        raise SettingsError(f"{origin}: {error}") from None
    except KeyTwice as error:
        raise SettingsError(f"{origin}: {error.problem}") from None
    except yaml.YAMLError as error:
        return NotYaml(text, str(getattr(error, "problem", None) or ""))
    plain = text.strip()
    # A plain text, in which YAML would take " #" for a comment and fold lines.
    return plain if isinstance(value, str) and not plain.startswith(_MARKED) else value


class NotYaml(str):
    """A text that YAML refuses: a plain text, or a mistake if a list or a table is wanted."""

    why: str

    def __new__(cls, text: str, why: str) -> Self:
        """The text, and YAML's complaint."""
        made = super().__new__(cls, text)
        made.why = why
        return made


def _keys(error: Any) -> Keys:
    return tuple(str(key) for key in error["loc"])


def _explain(cls: type[Section], error: pydantic.ValidationError, layers: Layers, source: str) -> str:
    lines: list[str] = []
    for item in error.errors(include_url=False)[:_MOST_LINES]:
        if sum(map(len, lines)) > _ENOUGH_LETTERS:
            break
        keys, value = _keys(item), item["input"]
        said = item["msg"].removeprefix("Value error, ")[:_MOST_LETTERS]
        path = ".".join(keys)[:_MOST_LETTERS] or "the settings"
        origin = layers.layer_of(keys) or source
        if item["type"] == "extra_forbidden":
            lines.append(f"{path} is unknown{_did_you_mean(cls, keys)} [{origin}]")
        elif isinstance(value, dict | list):  # may hold secrets further down
            lines.append(f"{path}: {said} [{origin}]")
        else:
            shown = "***" if any(_is_secret(key, value) for key in keys) else _PASSWORD.sub("//***@", repr(value)[:500])
            shown = shown[:80]
            lines.append(f"{path} = {shown}: {said}{_no_yaml(value)} [{origin}]")
    if (more := error.error_count() - len(lines)) > 0:
        lines.append(f"and {more} more")
    return "settings refused: " + "; ".join(lines)


def _no_yaml(value: Any) -> str:
    """Why a text that looks like a list or a table is not one."""
    if not isinstance(value, NotYaml) or not value.lstrip().startswith(("[", "{")):
        return ""
    return f"; it is not YAML ({value.why}): put texts with punctuation into double quotes"


def _did_you_mean(cls: type[Section], keys: Keys) -> str:
    model = cls
    for key in keys[:-1]:  # an index of a list or a key of a mapping stays in the same model
        if key in model.model_fields:
            model = _section_in(model.model_fields[key].annotation) or model
    names = list(model.model_fields)
    if close := difflib.get_close_matches(keys[-1], names, n=1):
        return f" (did you mean {'.'.join((*keys[:-1], close[0]))}?)"
    return f" (known here: {', '.join(names)})"


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _section_in(part))), None)


def _is_secret(key: str, value: Any) -> bool:
    if key.lower().endswith("_file"):  # the path of a secret is not secret
        return False
    return not _SECRET_WORDS.isdisjoint(key.lower().split("_")) and not isinstance(value, int | float | None)


def _hide(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "***" if _is_secret(key, inner) else _hide(inner) for key, inner in value.items()}
    return [_hide(inner) for inner in value] if isinstance(value, list) else value
