"""Settings of a service: defaults < YAML file < environment < flags, unknown keys refused, secrets hidden.

    file           admission: {max_concurrent: 4}
    environment    SIGHTLINE_SCORER__ADMISSION__MAX_CONCURRENT=4
    flag           --set admission.max_concurrent=4

Values of the environment and of flags are YAML, so `[a, b]`, `null` and `true` mean what they mean in the file; where a
string is asked for, the text is taken as it stands. Mappings are merged key by key.
"""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from sightline_chassis.sections import (
    AdmissionSettings,
    AuthSettings,
    LogSettings,
    Section,
    ServerSettings,
    ServiceSettings,
    Target,
    TlsSettings,
)
from sightline_chassis.yaml_text import MOST_BYTES, YamlRefused, load_yaml

__all__ = [
    "AdmissionSettings",
    "AuthSettings",
    "LogSettings",
    "Section",
    "ServerSettings",
    "ServiceSettings",
    "SettingsError",
    "Target",
    "TlsSettings",
    "load_settings",
    "read_yaml",
    "resolved",
]

Keys = tuple[str, ...]
S = TypeVar("S", bound=Section)

_MOST_LINES, _MOST_LETTERS = 20, 300  # of a refusal: it travels in a status, which has room for little
_SECRET_WORDS = {"token", "tokens", "secret", "secrets", "password", "passwords"}


class SettingsError(ValueError):
    """The settings cannot be used; the message is one paragraph for the person who wrote them."""


def load_settings(cls: type[S], *, service: str, config: Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Read the settings of `service`.

    Args:
        cls: the settings' class.
        service: the service's name; the environment's prefix is `SIGHTLINE_<SERVICE>__`.
        config: a YAML file, or None.
        overrides: "section.key=value" from the command line.

    Raises:
        SettingsError: the file cannot be read, a key is unknown, or a value does not fit.
    """
    tree = {} if config is None else read_yaml(config)
    given: dict[Keys, tuple[str, str]] = {}
    for keys, text, origin in (*_environment(service), *_flags(overrides)):
        _put(tree, keys, _parse(text, origin), origin)
        given[keys] = (text, origin)
    try:
        try:
            return cls.model_validate(tree)
        except pydantic.ValidationError as error:
            # YAML read a number or a date where a string is asked for ("007", "1.10", "yes"): take it as written.
            for item in error.errors():
                keys = _keys(item)
                if item["type"] in ("string_type", "path_type") and keys in given:
                    _put(tree, keys, *given[keys])
            return cls.model_validate(tree)
    except pydantic.ValidationError as error:
        raise SettingsError(_explain(cls, error, given, str(config or "defaults"))) from None


def resolved(settings: pydantic.BaseModel) -> dict[str, Any]:
    """The settings as plain JSON values for the log; what is named like a secret (and is no number) is hidden."""
    return typing.cast(dict[str, Any], _hide(settings.model_dump(mode="json")))


def read_yaml(config: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; messages of errors show nothing of its content.

    Raises:
        SettingsError: it cannot be read, is no YAML, or holds no mapping.
    """
    try:
        with config.open("rb") as file:
            tree = load_yaml(file.read(MOST_BYTES + 1).decode("utf-8"))
    except OSError as error:
        raise SettingsError(f"{config}: cannot be read: {error.strerror}") from None
    except YamlRefused as error:
        raise SettingsError(f"{config}: {error}") from None
    except yaml.MarkedYAMLError as error:  # without its snippet: the file may hold secrets
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise SettingsError(f"{config}: is no YAML at line {line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingsError(f"{config}: is no text of YAML in UTF-8") from None
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
            raise SettingsError(f"--set {override}: must look like section.key=value")
        yield tuple(path.strip().split(".")), text, f"--set {path.strip()}"


def _parse(text: str, origin: str) -> Any:
    try:
        return load_yaml(text)
    except YamlRefused as error:
        raise SettingsError(f"{origin}: {error}") from None
    except yaml.YAMLError:
        return text


def _put(tree: dict[str, Any], keys: Keys, value: Any, origin: str) -> None:
    for key in keys[:-1]:
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise SettingsError(f"{origin}: {key} is a value, not a section")
    if isinstance(value, dict) and isinstance(tree.get(keys[-1]), dict):
        for key, inner in value.items():
            _put(tree[keys[-1]], (str(key),), inner, origin)
    else:
        tree[keys[-1]] = value


def _keys(error: Any) -> Keys:
    return tuple(str(key) for key in error["loc"])


def _explain(
    cls: type[Section], error: pydantic.ValidationError, given: Mapping[Keys, tuple[str, str]], source: str
) -> str:
    lines = []
    for item in error.errors(include_url=False)[:_MOST_LINES]:
        keys, value = _keys(item), item["input"]
        path = ".".join(keys)[:_MOST_LETTERS] or "the settings"
        origin = next((given[keys[:n]][1] for n in range(len(keys), 0, -1) if keys[:n] in given), source)
        if item["type"] == "extra_forbidden":
            lines.append(f"{path} is unknown{_did_you_mean(cls, keys)} [{origin}]")
        elif isinstance(value, dict | list):  # may hold secrets further down
            lines.append(f"{path}: {item['msg'][:_MOST_LETTERS]} [{origin}]")
        else:
            shown = "***" if any(_is_secret(key, value) for key in keys) else repr(value)[:80]
            lines.append(f"{path} = {shown}: {item['msg'][:_MOST_LETTERS]} [{origin}]")
    if (more := error.error_count() - len(lines)) > 0:
        lines.append(f"and {more} more")
    return "settings refused: " + "; ".join(lines)


def _did_you_mean(cls: type[Section], keys: Keys) -> str:
    model = cls
    for key in keys[:-1]:  # an index of a list or a key of a mapping stays in the model
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
    if key.lower().endswith("_file"):  # where a secret lies is none
        return False
    return not _SECRET_WORDS.isdisjoint(key.lower().split("_")) and not isinstance(value, int | float | None)


def _hide(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "***" if _is_secret(key, inner) else _hide(inner) for key, inner in value.items()}
    return [_hide(inner) for inner in value] if isinstance(value, list) else value
