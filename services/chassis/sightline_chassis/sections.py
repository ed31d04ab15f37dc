"""The sections of settings that every service has, and the base of those that a service adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field


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
        default=0.5, ge=0, le=120, description="Seconds from saying NOT_SERVING to refusing new calls."
    )
    drain_seconds: float = Field(
        default=30, ge=0, le=3600, description="Seconds that calls in flight get to finish when stopping."
    )
    liveness_seconds: float = Field(
        default=30, gt=0, le=3600, description="Seconds of a stuck event loop after which liveness is NOT_SERVING."
    )
    reflection: bool = Field(default=True, description="Whether the service lists its methods (grpcurl).")
    announce: Path | None = Field(
        default=None, description="JSON file with pid and addresses, there while the service serves."
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
