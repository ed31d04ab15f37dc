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
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import Field

HIDDEN = ("token", "secret", "password")

Keys = tuple[str, ...]


class SettingsError(ValueError):
    """The settings cannot be used; the message is one paragraph for the person who wrote them."""


class Section(pydantic.BaseModel):
    """A part of the settings: frozen, closed to unknown keys. An empty section in YAML means its defaults."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @pydantic.model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        return {} if value is None else value


class ServerSettings(Section):
    """Where the service listens and how it stops."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(default=0, ge=0, le=65535, description="gRPC port; 0 takes a free one (see `announce`).")
    health_port: int = Field(default=0, ge=0, le=65535, description="Port of grpc.health.v1; 0 takes a free one.")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="Port of HTTP /metrics; 0 takes a free one.")
    max_message_mib: int = Field(default=64, ge=1, le=1024, description="Largest message in MiB, both ways.")
    notice_seconds: float = Field(
        default=0.5,
        ge=0,
        le=120,
        description="Seconds from saying NOT_SERVING to refusing new calls.",
    )
    drain_seconds: float = Field(
        default=30, ge=0, le=3600, description="Seconds that calls in flight get to finish when stopping."
    )
    liveness_seconds: float = Field(
        default=30,
        gt=0,
        le=3600,
        description="Seconds of a stuck event loop after which liveness is NOT_SERVING.",
    )
    reflection: bool = Field(default=True, description="Whether the service lists its methods (grpcurl).")
    announce: Path | None = Field(
        default=None,
        description="JSON file with pid and addresses, there while the service serves.",
    )


class AdmissionSettings(Section):
    """How much work the service takes on at a time. Health and reflection are exempt."""

    max_concurrent: int = Field(default=16, ge=1, le=100_000, description="Calls that run at the same time.")
    max_queue: int = Field(default=64, ge=0, le=1_000_000, description="Calls that may wait for their turn.")
    max_wait_seconds: float = Field(default=10, ge=0, le=3600, description="Longest wait of a call for its turn.")
    retry_after_seconds: float = Field(default=1, gt=0, le=3600, description="What a refused caller is told to wait.")


class LogSettings(Section):
    """What the service logs, to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Lowest level logged.")
    format: Literal["json", "text"] = Field(default="json", description="JSON lines, or text for people.")


class ServiceSettings(Section):
    """What every service has; a service adds its own sections in a subclass."""

    server: ServerSettings = Field(default=ServerSettings(), description="Where the service listens and how it stops.")
    admission: AdmissionSettings = Field(default=AdmissionSettings(), description="How much work is taken on.")
    log: LogSettings = Field(default=LogSettings(), description="What is logged.")


S = TypeVar("S", bound=Section)


def load_settings(cls: type[S], *, service: str, config: Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Reads the settings of `service`.

    Args:
        cls: the settings' class.
        service: the service's name; the environment's prefix is `SIGHTLINE_<SERVICE>__`.
        config: a YAML file, or None.
        overrides: "section.key=value" from the command line.

    Raises:
        SettingsError: the file cannot be read, a key is unknown, or a value does not fit.
    """
    tree = _read(config) if config is not None else {}
    origins: dict[Keys, str] = {}
    texts: dict[Keys, str] = {}
    for keys, text, origin in [*_environment(service), *_flags(overrides)]:
        _put(tree, keys, _parse(text, origin), origin)
        origins[keys], texts[keys] = origin, text
    try:
        return cls.model_validate(tree)
    except pydantic.ValidationError as error:
        # YAML made a number or a date of what was meant as a string ("007", "1.10", "yes"): take it as written.
        plain = [_keys(e) for e in error.errors() if e["type"] in ("string_type", "path_type")]
        if any(keys in texts for keys in plain):
            for keys in plain:
                if keys in texts:
                    _put(tree, keys, texts[keys], origins[keys])
            try:
                return cls.model_validate(tree)
            except pydantic.ValidationError as second:
                error = second
        raise SettingsError(_explain(cls, error, origins, str(config or "defaults"))) from None


def resolved(settings: pydantic.BaseModel) -> dict[str, Any]:
    """The settings as plain JSON values for the log; what is named like a secret is hidden."""
    return typing.cast(dict[str, Any], _hide(settings.model_dump(mode="json")))


def _read(config: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{config}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config}: is no YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{config}: must hold a mapping of sections, not a {type(tree).__name__}")
    return tree


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
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _put(tree: dict[str, Any], keys: Keys, value: Any, origin: str) -> None:
    for key in keys[:-1]:
        below = tree.get(key)
        if below is None:
            below = tree[key] = {}
        if not isinstance(below, dict):
            raise SettingsError(f"{origin}: {key} is a value, not a section")
        tree = below
    if isinstance(value, dict) and isinstance(tree.get(keys[-1]), dict):
        for key, inner in value.items():
            _put(tree[keys[-1]], (str(key),), inner, origin)
    else:
        tree[keys[-1]] = value


def _keys(error: Any) -> Keys:
    return tuple(str(key) for key in error["loc"])


def _explain(cls: type[Section], error: pydantic.ValidationError, origins: Mapping[Keys, str], source: str) -> str:
    lines = []
    for item in error.errors():
        keys = _keys(item)
        path = ".".join(keys) or "the settings"
        origin = next((origins[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in origins), source)
        if item["type"] == "extra_forbidden":
            lines.append(f"{path} is unknown{_did_you_mean(cls, keys)} [{origin}]")
        else:
            shown = "***" if _is_hidden(path) else repr(item["input"])[:80]
            lines.append(f"{path} = {shown}: {item['msg']} [{origin}]")
    return "settings refused: " + "; ".join(lines)


def _did_you_mean(cls: type[Section], keys: Keys) -> str:
    model: Any = cls
    for key in keys[:-1]:
        field = model.model_fields.get(key) if model is not None else None
        model = _section_of(field.annotation) if field is not None else None
    if model is None:
        return ""
    names = list(model.model_fields)
    close = difflib.get_close_matches(keys[-1], names, n=1)
    if close:
        return f" (did you mean {'.'.join((*keys[:-1], close[0]))}?)"
    return f" (known here: {', '.join(names)})"


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next((s for a in typing.get_args(annotation) if (s := _section_of(a)) is not None), None)
    return None


def _is_hidden(path: str) -> bool:
    return any(word in path.lower() for word in HIDDEN)


def _hide(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: "***" if _is_hidden(str(k)) and v is not None else _hide(v) for k, v in value.items()}
    return [_hide(item) for item in value] if isinstance(value, list) else value
