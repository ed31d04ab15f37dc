"""The sampler's settings. `SIGHTLINE_SAMPLER__ENGINE__MODEL=...`, a YAML file, or `--set engine.model=...`."""

from __future__ import annotations

from pathlib import Path

import pydantic
from pydantic import Field
from sightline_chassis.sections import AdmissionSettings, ImageLimits, Section, ServiceSettings

from sightline_sampler.engine_settings import EngineSettings

__all__ = ["EngineSettings", "GateSettings", "PolicySettings", "SamplerLimits", "SamplerSettings"]


class SamplerLimits(ImageLimits):
    """What a request may ask for; more is INVALID_ARGUMENT."""

    max_candidates: int = Field(default=64, ge=1, le=65536, description="Most candidates of one request (K).")
    max_tokens: int = Field(default=1024, ge=1, le=1 << 20, description="Most new tokens of a candidate.")
    default_max_tokens: int = Field(default=256, ge=1, le=1 << 20, description="New tokens where none are asked for.")
    max_prompt_bytes: int = Field(
        default=65536, ge=1, le=1 << 26, description="Most bytes (UTF-8) of a prompt, all its turns together."
    )
    max_images: int = Field(default=16, ge=1, le=1024, description="Most images of one request, in all its turns.")
    max_images_pixels: int = Field(
        default=100_000_000, ge=1, le=1 << 34, description="Most pixels of all images of one request together."
    )
    max_turns: int = Field(default=64, ge=1, le=4096, description="Most turns of one request.")
    image_store_mib: int = Field(
        default=64, ge=0, le=1 << 20, description="MiB of encoded images kept, to be named by their SHA-256."
    )


class GateSettings(Section):
    """When a policy that came with probes may answer; `gate` has the reasons for the numbers."""

    required: bool = Field(
        default=True,
        description="Whether a policy answers only after probes showed that it arrived; false lets any policy answer.",
    )
    min_tokens: int = Field(default=16, ge=2, le=1 << 20, description="Least number of probe tokens.")
    min_correlation: float = Field(
        default=0.2, ge=0, le=1, description="Least correlation of the engine's change with the trainer's."
    )
    significance: float = Field(
        default=4, ge=0, le=10, description="The correlation must also exceed this over the root of the tokens."
    )
    max_gap: float = Field(
        default=0.1, gt=0, le=10, description="Most mean |log-prob difference| a token to the trainer, in nats."
    )
    gap_factor: float = Field(
        default=3, ge=1, le=1000, description="Most times that this may be what it was under the previous policy."
    )
    sampled: int = Field(default=2, ge=0, le=64, description="Probe prompts that are also sampled from.")
    sampled_tokens: int = Field(default=16, ge=1, le=1024, description="Tokens of those candidates.")


class PolicySettings(Section):
    """Policies beside the base model."""

    max_loaded: int = Field(
        default=4, ge=2, le=1024, description="Most policies loaded, the base not counted; the oldest idle one goes."
    )
    root: Path | None = Field(default=None, description="Only directories under this one may be staged; null is any.")
    state_dir: Path | None = Field(
        default=None, description="Where the activated version is remembered, and taken up again at start; null is not."
    )
    schemes: tuple[str, ...] = Field(
        default=("file",),
        description='URL schemes that policies may come by, of those that fsspec knows: "s3", "gs" ...',
    )
    download_dir: Path | None = Field(
        default=None,
        description="Where policies that are downloaded or pushed are put; null is below state_dir, or a temporary "
        "directory.",
    )
    max_download_gib: float = Field(
        default=100, gt=0, le=1e6, description="Largest policy that is downloaded or pushed."
    )
    max_stored_gib: float = Field(
        default=200,
        gt=0,
        le=1e6,
        description="Most that pushed policies may take there; those that are not loaded leave first.",
    )
    pause_wait_seconds: float = Field(
        default=60, ge=0, le=86400, description="Longest wait of a request at a pause or a swap."
    )
    gate: GateSettings = Field(default=GateSettings(), description="When a policy that came with probes may answer.")


class SamplerSettings(ServiceSettings):
    """All of it. Calls wait cheaply in the engine's own queue, so admission is wide."""

    admission: AdmissionSettings = Field(
        default=AdmissionSettings(max_concurrent=256, max_queue=1024, max_wait_seconds=60),
        description="How much work is taken on.",
    )
    engine: EngineSettings = Field(description="The model and how it is run.")
    limits: SamplerLimits = Field(default=SamplerLimits(), description="What a request may ask for.")
    policies: PolicySettings = Field(default=PolicySettings(), description="Policies beside the base model.")

    @pydantic.model_validator(mode="after")
    def _no_silent_eviction(self) -> SamplerSettings:
        if self.engine.kind == "vllm" and self.engine.vllm.max_loras < self.policies.max_loaded:
            raise ValueError(
                f"vLLM with --max-loras {self.engine.vllm.max_loras} evicts adapters without a word: set "
                f"engine.vllm.max_loras (and vLLM's flag) to policies.max_loaded, {self.policies.max_loaded}, or more"
            )
        return self
