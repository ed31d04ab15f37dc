"""The sampler's settings. `SIGHTLINE_SAMPLER__ENGINE__MODEL=...`, a YAML file, or `--set engine.model=...`."""

from __future__ import annotations

from pathlib import Path

import pydantic
from pydantic import Field
from sightline_chassis.sections import AdmissionSettings, ImageLimits, Section, ServiceSettings

from sightline_sampler.engine_settings import EngineSettings

__all__ = ["EngineSettings", "GateSettings", "PolicySettings", "SamplerLimits", "SamplerSettings"]


class SamplerLimits(ImageLimits):
    """Limits of a request; exceeding one is INVALID_ARGUMENT."""

    max_candidates: int = Field(default=64, ge=1, le=65536, description="Maximum number of candidates per request (K).")
    max_tokens: int = Field(default=1024, ge=1, le=1 << 20, description="Maximum number of new tokens of a candidate.")
    default_max_tokens: int = Field(
        default=256, ge=1, le=1 << 20, description="New tokens of a request that does not set a number."
    )
    max_prompt_bytes: int = Field(
        default=65536, ge=1, le=1 << 26, description="Maximum UTF-8 bytes of a prompt with all its turns."
    )
    max_images: int = Field(
        default=16, ge=1, le=1024, description="Maximum number of images per request, over all turns."
    )
    max_images_pixels: int = Field(
        default=100_000_000, ge=1, le=1 << 34, description="Maximum number of pixels of all images of a request."
    )
    max_turns: int = Field(default=64, ge=1, le=4096, description="Maximum number of turns per request.")
    image_store_mib: int = Field(
        default=64,
        ge=0,
        le=1 << 20,
        description="MiB of encoded images to keep, so that requests can refer to them by SHA-256.",
    )


class GateSettings(Section):
    """When a policy with probes may answer; `gate` explains the numbers."""

    required: bool = Field(
        default=True,
        description=(
            "Let a policy answer only after probes have proved that it arrived; false: any policy may answer."
        ),
    )
    min_tokens: int = Field(default=16, ge=2, le=1 << 20, description="Minimum number of probe tokens.")
    min_correlation: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Minimum correlation between the change of log-probs in the engine and in the trainer.",
    )
    significance: float = Field(
        default=4,
        ge=0,
        le=10,
        description=("The correlation must also exceed this value divided by the square root of the number of tokens."),
    )
    max_gap: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="Maximum mean |log-prob difference| per token between engine and trainer, in nats.",
    )
    gap_factor: float = Field(
        default=3, ge=1, le=1000, description="Maximum ratio of this difference to the one under the previous policy."
    )
    sampled: int = Field(default=2, ge=0, le=64, description="Number of probe prompts that are also sampled.")
    sampled_tokens: int = Field(default=16, ge=1, le=1024, description="Number of tokens of those samples.")


class PolicySettings(Section):
    """Policies besides the base model."""

    max_loaded: int = Field(
        default=4,
        ge=2,
        le=1024,
        description=("Maximum number of loaded policies, without the base model; the oldest idle one is unloaded."),
    )
    root: Path | None = Field(
        default=None, description="Only directories below this one may be staged; null: any directory."
    )
    state_dir: Path | None = Field(
        default=None,
        description=(
            "Directory that stores the active version, so that it is restored at start; null: it is not stored."
        ),
    )
    schemes: tuple[str, ...] = Field(
        default=("file",),
        description='Allowed URL schemes for policies, of those that fsspec supports: "s3", "gs" ...',
    )
    download_dir: Path | None = Field(
        default=None,
        description=("Directory for downloaded and pushed policies; null: below state_dir, or a temporary directory."),
    )
    max_download_gib: float = Field(
        default=100, gt=0, le=1e6, description="Largest policy that may be downloaded or pushed."
    )
    max_stored_gib: float = Field(
        default=200,
        gt=0,
        le=1e6,
        description="Maximum size of all pushed policies; those that are not loaded are deleted first.",
    )
    pause_wait_seconds: float = Field(
        default=60, ge=0, le=86400, description="Longest time that a request waits during a pause or a swap."
    )
    gate: GateSettings = Field(default=GateSettings(), description="When a policy with probes may answer.")


class SamplerSettings(ServiceSettings):
    """All settings. Calls wait cheaply in the engine's own queue, so admission is wide."""

    admission: AdmissionSettings = Field(
        default=AdmissionSettings(max_concurrent=256, max_queue=1024, max_wait_seconds=60),
        description="How much work the service accepts.",
    )
    engine: EngineSettings = Field(description="The model and how it runs.")
    limits: SamplerLimits = Field(default=SamplerLimits(), description="Limits of a request.")
    policies: PolicySettings = Field(default=PolicySettings(), description="Policies besides the base model.")

    @pydantic.model_validator(mode="after")
    def _no_silent_eviction(self) -> SamplerSettings:
        if self.engine.kind == "vllm" and self.engine.vllm.max_loras < self.policies.max_loaded:
            raise ValueError(
                f"vLLM with --max-loras {self.engine.vllm.max_loras} evicts adapters silently: set "
                f"engine.vllm.max_loras (and vLLM's flag) to policies.max_loaded, {self.policies.max_loaded}, or more"
            )
        return self
