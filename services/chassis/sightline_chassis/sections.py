"""The sections of settings that every service has, and the base of those that a service adds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import pydantic
from pydantic import AfterValidator, Field
from sightline.errors import InvalidInput
from sightline.target import check_target


class Section(pydantic.BaseModel):
    """A part of the settings: frozen, closed to unknown keys. An empty section in YAML means its defaults."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        return {} if value is None else value

    @pydantic.field_validator("*", mode="after")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """Paths with `~`, which a shell leaves as it is in `--set runs=~/runs`."""
        if isinstance(value, list):
            return [cls._home(each) for each in value]
        return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def _checked(target: str) -> str:
    try:
        return check_target(target)
    except InvalidInput as error:
        raise ValueError(error.message) from None


Target: TypeAlias = Annotated[str, AfterValidator(_checked)]
"""The address of a service: a malformed one is refused here, not at the first call."""


class Table(Section):
    """A section whose keys are names of entries: a mapping replaces it as a whole."""


class TlsSettings(Section):
    """Encryption of the gRPC port, by PEM files that are read again when they change.

    The health and metrics ports stay plaintext: a kubelet has no client certificate. Keep them inside the cluster.
    """

    mode: Literal["disabled", "server", "mutual"] = Field(
        default="disabled",
        description="disabled; server (callers check our certificate); mutual (we also check theirs).",
    )
    certificate: Path | None = Field(default=None, description="The service's certificate, followed by its chain.")
    key: Path | None = Field(default=None, description="The certificate's private key, unencrypted.")
    client_ca: Path | None = Field(
        default=None, description="mutual: certificates of the authorities that sign our callers' certificates."
    )

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"disabled": (), "server": ("certificate", "key"), "mutual": ("certificate", "key", "client_ca")}
        names = ("certificate", "key", "client_ca")
        missing = [name for name in needed[self.mode] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"mode {self.mode} needs {' and '.join(missing)}")
        unused = [name for name in names if getattr(self, name) is not None and name not in needed[self.mode]]
        if unused:  # the user believes that it is in force
            raise ValueError(f"mode {self.mode} does not use {' and '.join(unused)}: change the mode or leave them out")
        return self


class ServerSettings(Section):
    """Where the service listens and how it stops."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(default=0, ge=0, le=65535, description="gRPC port; 0 takes a free one (see `announce`).")
    health_port: int = Field(default=0, ge=0, le=65535, description="Port of grpc.health.v1; 0 takes a free one.")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="Port of HTTP /metrics; 0 takes a free one.")
    max_message_mib: int = Field(default=64, ge=1, le=1024, description="Largest message in MiB, both ways.")
    notice_seconds: float = Field(
        default=0.5, ge=0, le=120, description="Seconds between reporting NOT_SERVING and refusing new calls."
    )
    drain_seconds: float = Field(
        default=30, ge=0, le=3600, description="Seconds for running calls to finish when the service stops."
    )
    liveness_seconds: float = Field(
        default=30,
        gt=0,
        le=3600,
        description="Seconds that the event loop may be stuck before liveness becomes NOT_SERVING.",
    )
    reflection: bool = Field(default=True, description="Whether the service lists its methods (grpcurl).")
    tls: TlsSettings = Field(default=TlsSettings(), description="Encryption of the gRPC port.")
    max_connection_seconds: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description=(
            "Age at which a connection is renewed, so that clients find new replicas and present "
            "their certificate again. Running calls are not interrupted. null: connections are never "
            "renewed."
        ),
    )
    announce: Path | None = Field(
        default=None, description="JSON file with pid and addresses; it exists while the service serves."
    )


class AdmissionSettings(Section):
    """How much work the service takes on at a time. Health and reflection are exempt."""

    max_concurrent: int = Field(
        default=16, ge=1, le=100_000, description="Maximum number of calls that run at the same time."
    )
    max_queue: int = Field(default=64, ge=0, le=1_000_000, description="Maximum number of calls that wait.")
    max_wait_seconds: float = Field(default=10, ge=0, le=3600, description="Longest time that a call waits.")
    retry_after_seconds: float = Field(
        default=1, gt=0, le=3600, description="Seconds that a refused caller should wait before it retries."
    )


class TeamLimits(Section):
    """What one team may use on one replica; null is unlimited."""

    concurrent: int | None = Field(
        default=None, ge=1, le=100_000, description="Maximum number of running and waiting calls."
    )
    texts_per_minute: int | None = Field(
        default=None, ge=1, le=10**9, description="Maximum number of texts (or candidates) per minute."
    )
    images_per_minute: int | None = Field(
        default=None, ge=1, le=10**9, description="Maximum number of images per minute."
    )
    stored_image_bytes: int | None = Field(
        default=None,
        ge=1,
        le=1 << 50,
        description="Maximum bytes of its stored images, in memory and on disk; the least recently used go first.",
    )
    staged_policies: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Maximum policies staged at a sampler; a run needs publication.keep + 1.",
    )
    pushed_policy_bytes: int | None = Field(
        default=None,
        ge=1,
        le=1 << 50,
        description="Maximum bytes of its pushed policies at a sampler; those that are not loaded go first.",
    )


class AuthSettings(Section):
    """Who may call. Health is open to all."""

    tokens_file: Path | None = Field(
        default=None, description="YAML file of teams with the hashes of their tokens; it is reloaded when it changes."
    )
    required: bool | None = Field(
        default=None, description="Refuse callers without a token; null: only if tokens_file is set."
    )
    open_reflection: bool = Field(default=False, description="Reflection needs no token.")
    anonymous_limits: TeamLimits = Field(
        default=TeamLimits(), description="What all callers without a token together may use."
    )

    @pydantic.model_validator(mode="after")
    def _enforceable(self) -> Self:
        if self.required and self.tokens_file is None:
            raise ValueError("required needs a tokens_file: name one, or set required to false")
        return self

    @property
    def needs_token(self) -> bool:
        """Whether callers without a token are refused."""
        return self.tokens_file is not None if self.required is None else self.required


class LogSettings(Section):
    """What the service logs, to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Lowest level logged.")
    format: Literal["json", "text"] = Field(default="json", description="JSON lines, or text for people.")


class TraceSettings(Section):
    """Spans of the service's work, sent to a collector. Needs the extra `traces`."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="OTLP endpoint over HTTP, as http://collector:4318; spans go to /v1/traces. null: no traces.",
    )
    ratio: float = Field(
        default=1.0, ge=0, le=1, description="Share of traces started here to keep; callers decide about theirs."
    )


class ImageLimits(Section):
    """Limits of an image, checked before it is decoded. The same for every service."""

    max_image_bytes: int = Field(20 * 2**20, ge=1, le=60 * 2**20, description="Maximum bytes of an encoded image")
    max_image_pixels: int = Field(
        50_000_000, ge=1, le=2**31, description="Maximum width times height, read from the header before decoding"
    )


class ImageStoreSettings(Section):
    """Uploaded images, named by their SHA-256 in later requests."""

    max_bytes: int = Field(
        256 * 2**20, ge=0, description="Maximum bytes of all stored images; the least recently used are dropped first"
    )
    max_images: int = Field(100_000, ge=0, description="Maximum number of stored images")
    shared: bool = Field(
        False, description="Let a team use images that another team sent; otherwise each team sees only its own"
    )
    spill: Path | None = Field(
        None,
        description=(
            "Directory for images that no longer fit into memory; each service needs its own. Not set: they are dropped"
        ),
    )
    spill_max_bytes: int = Field(
        4 * 2**30, ge=0, description="Maximum bytes of all images in it; the least recently used are dropped first"
    )


class ServiceSettings(Section):
    """The settings that every service has; a service adds its own sections in a subclass."""

    server: ServerSettings = Field(default=ServerSettings(), description="Where the service listens and how it stops.")
    admission: AdmissionSettings = Field(default=AdmissionSettings(), description="How much work the service accepts.")
    auth: AuthSettings = Field(default=AuthSettings(), description="Which callers may call, and how much.")
    log: LogSettings = Field(default=LogSettings(), description="What is logged.")
    traces: TraceSettings = Field(default=TraceSettings(), description="Where spans are sent.")
