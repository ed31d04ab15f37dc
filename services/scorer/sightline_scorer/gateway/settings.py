"""The gateway's settings. Sources: flags, environment `SIGHTLINE_SCORER_HTTP__*`, a YAML file, these defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from sightline_chassis.sections import LogSettings, Section, Target, TraceSettings


class HttpSettings(Section):
    """Where the gateway listens, and for whom."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 in a container")
    port: int = Field(0, ge=0, le=65535, description="HTTP port; 0 takes a free one (see `announce`)")
    certificate: Path | None = Field(None, description="PEM file: speak HTTPS with this certificate")
    key: Path | None = Field(None, description="PEM file with the certificate's key")
    token_file: Path | None = Field(
        None,
        description=("File with the bearer token that callers must send; read at start. Not set: no token is required"),
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1024, le=2**30, description="Maximum bytes of a request's body")
    max_held_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        le=2**40,
        description="Maximum bytes of all bodies being read or processed; further requests get 429",
    )
    header_seconds: float = Field(10, gt=0, le=3600, description="Longest time to receive a request's headers")
    body_seconds: float = Field(
        60,
        gt=0,
        le=3600,
        description=("Longest time to receive a request's body, and for the caller to accept a piece of the answer"),
    )
    idle_seconds: int = Field(5, ge=1, le=3600, description="Time after which an idle connection is closed")
    max_items: int = Field(
        256, ge=1, le=10_000, description="Maximum number of items of a score_many and of rows of a get_reward"
    )
    max_requests: int = Field(256, ge=1, le=100_000, description="Maximum number of concurrent requests; more get 429")
    drain_seconds: int = Field(
        30, ge=0, le=3600, description="Time for running requests to finish when the gateway stops"
    )
    announce: Path | None = Field(
        None, description="JSON file with pid and address; it exists while the gateway serves"
    )

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("http.certificate and http.key go together: set both or neither")
        return self


class TargetSettings(Section):
    """The scorer behind the gateway."""

    target: Target = Field(
        "", validate_default=False, description="gRPC target: 127.0.0.1:50051, dns:///scorer.ns.svc:50051"
    )
    ca_file: Path | None = Field(None, description="PEM file of the authority: speak TLS to the scorer")
    certificate_file: Path | None = Field(
        None, description="PEM file of our client certificate, if the scorer requires one"
    )
    key_file: Path | None = Field(None, description="PEM file with that certificate's key")
    token_file: Path | None = Field(None, description="File with the bearer token for the scorer")
    timeout_seconds: float = Field(60, gt=0, le=3600, description="Longest time for one item, retries included")
    max_in_flight: int = Field(
        32, ge=1, le=1024, description="Number of items of a request that are scored concurrently"
    )

    @model_validator(mode="after")
    def _somebody_is_asked(self) -> Self:
        if not self.target:
            raise ValueError("name the scorer, for example scorer.target=127.0.0.1:50051")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("scorer.certificate_file and scorer.key_file go together: set both or neither")
        return self


class OpenRlhfSettings(Section):
    """Settings of `/get_reward`. It is off until `on_failure` is set."""

    on_failure: Literal["raise", "drop", "value"] | None = Field(
        None,
        description=("What a row without a score becomes: raise (an HTTP error), drop (NaN), value (failure_value)"),
    )
    failure_value: float | None = Field(None, description="with on_failure=value: the reward")
    response_after: str = Field(
        "", description="The response starts after the last occurrence of this text; empty: after the prompt"
    )
    model: str = Field("", description="The scorer's model; empty for its default")
    kind: Literal["default", "cosine", "clip_score", "logit", "probability", "percentile", "reward"] = Field(
        "default", description="The kind of score that is the reward"
    )

    @model_validator(mode="after")
    def _value_goes_with_value(self) -> Self:
        if (self.on_failure == "value") != (self.failure_value is not None):
            raise ValueError("set openrlhf.failure_value and openrlhf.on_failure=value together, or neither")
        return self


class GatewaySettings(Section):
    """All settings of the gateway."""

    http: HttpSettings = Field(default_factory=HttpSettings, description="Where the gateway listens")
    scorer: TargetSettings = Field(
        default_factory=lambda: TargetSettings(), description="The scorer behind the gateway", validate_default=True
    )
    openrlhf: OpenRlhfSettings = Field(default_factory=OpenRlhfSettings, description="OpenRLHF's /get_reward")
    log: LogSettings = Field(default_factory=LogSettings, description="What is logged")
    traces: TraceSettings = Field(default_factory=TraceSettings, description="Where spans are sent")
