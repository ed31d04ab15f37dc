"""The sampler's settings. `SIGHTLINE_SAMPLER__ENGINE__MODEL=...`, a YAML file, or `--set engine.model=...`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from sightline_chassis.sections import AdmissionSettings, Section, ServiceSettings


class EngineSettings(Section):
    """The model and how it is run."""

    kind: Literal["transformers"] = Field(default="transformers", description="Which engine samples.")
    model: str = Field(min_length=1, description="A model directory, or a name on the Hugging Face hub.")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto takes a GPU where there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        default="auto", description="auto is float32 on a CPU, else what the checkpoint says."
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads of PyTorch's operators; 0 is one less than the cores (gRPC and images take one).",
    )
    preprocess_threads: int = Field(
        default=2, ge=1, le=64, description="Threads that decode images and render prompts."
    )
    max_rows: int = Field(
        default=512, ge=1, le=65536, description="Most candidates decoded at the same time; more wait."
    )
    cache_mib: int = Field(
        default=4096, ge=1, le=1 << 20, description="About how many MiB keys and values of the candidates may take."
    )
    feature_cache_mib: int = Field(default=256, ge=0, le=1 << 20, description="MiB of image features kept.")
    chat_template: Path | None = Field(
        default=None, description="Jinja file, for a model that brings no chat template."
    )


class LimitSettings(Section):
    """What a request may ask for; more is INVALID_ARGUMENT."""

    max_candidates: int = Field(default=64, ge=1, le=65536, description="Most candidates of one request (K).")
    max_tokens: int = Field(default=1024, ge=1, le=1 << 20, description="Most new tokens of a candidate.")
    default_max_tokens: int = Field(default=256, ge=1, le=1 << 20, description="New tokens where none are asked for.")
    max_prompt_bytes: int = Field(default=65536, ge=1, le=1 << 26, description="Most bytes (UTF-8) of a prompt.")
    max_image_bytes: int = Field(default=20 << 20, ge=1, le=1 << 30, description="Most bytes of an encoded image.")
    max_image_pixels: int = Field(
        default=40_000_000, ge=1, le=1 << 32, description="Most pixels (width x height), seen before decoding."
    )
    image_store_mib: int = Field(
        default=64, ge=0, le=1 << 20, description="MiB of encoded images kept, to be named by their SHA-256."
    )


class PolicySettings(Section):
    """Policies beside the base model."""

    max_loaded: int = Field(
        default=4, ge=2, le=1024, description="Most policies loaded, the base not counted; the oldest idle one goes."
    )
    root: Path | None = Field(default=None, description="Only directories under this one may be staged; null is any.")
    state_dir: Path | None = Field(
        default=None, description="Where the activated version is remembered, and taken up again at start; null is not."
    )


class SamplerSettings(ServiceSettings):
    """All of it. Calls wait cheaply in the engine's own queue, so admission is wide."""

    admission: AdmissionSettings = Field(
        default=AdmissionSettings(max_concurrent=256, max_queue=1024, max_wait_seconds=60),
        description="How much work is taken on.",
    )
    engine: EngineSettings = Field(description="The model and how it is run.")
    limits: LimitSettings = Field(default=LimitSettings(), description="What a request may ask for.")
    policies: PolicySettings = Field(default=PolicySettings(), description="Policies beside the base model.")
