"""Settings of the sampler's engines: common ones for HTTP, a section for each, and the choice of engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field
from sightline_chassis.sections import Section
from sightline_chassis.shipped import known_model, model_place


class KubernetesSettings(Section):
    """A Deployment that is rolled out for each policy, by the API of the sampler's own cluster."""

    deployment: str = Field(min_length=1, description="Name of the engine's Deployment.")
    container: str = Field(min_length=1, description="Name of the container in it.")
    namespace: str = Field(default="", description="Its namespace; empty is the sampler's own.")
    variable: str = Field(default="MODEL_ID", min_length=1, description="Environment variable that names the model.")
    api: str = Field(default="https://kubernetes.default.svc", description="Address of the Kubernetes API.")
    account: Path = Field(
        default=Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="Directory with token, ca.crt and namespace of the service account.",
    )


class HttpEngineSettings(Section):
    """Common settings of engines behind HTTP."""

    url: str = Field(default="http://127.0.0.1:8000", pattern=r"^https?://", description="Address of the engine.")
    token: str | None = Field(default=None, description="Sent as a bearer token; better set by environment.")
    max_concurrent: int = Field(
        default=64, ge=1, le=65536, description="Maximum number of concurrent requests to the engine; others wait."
    )
    connect_seconds: float = Field(default=5, gt=0, le=600, description="Longest wait for a connection.")
    read_seconds: float = Field(
        default=300,
        gt=0,
        le=86400,
        description=("Longest time without data from the engine during a request (the deadline may be shorter)."),
    )
    tries: int = Field(
        default=2,
        ge=1,
        le=10,
        description="How often a candidate is requested before a failing engine's error is reported.",
    )
    overload_seconds: float = Field(
        default=30, ge=0, le=3600, description="How long to retry while the engine is full or starting."
    )
    poll_seconds: float = Field(default=2, gt=0, le=600, description="Time between checks of what the engine serves.")
    swap_seconds: float = Field(
        default=900, gt=0, le=86400, description="Longest time for the engine to start with a policy."
    )
    policies_at: Path | None = Field(
        default=None,
        description="Path at which the engine sees the sampler's policies.root (or its downloads).",
    )
    max_body_bytes: int = Field(
        default=2_000_000,
        ge=1024,
        le=1 << 30,
        description="Largest request body; a larger one is refused before it is sent.",
    )


class TgiSettings(HttpEngineSettings):
    """Text Generation Inference."""

    url: str = Field(default="http://127.0.0.1:3000", pattern=r"^https?://", description="Address of TGI's router.")
    model_id: str = Field(
        default="", description="The base model's name in TGI's /info (its --model-id); empty: `engine.model`."
    )
    merge_into: Path | None = Field(
        default=None,
        description=(
            "Directory, visible to TGI, where adapters are merged into checkpoints; null: adapters are refused."
        ),
    )
    best_of_above_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Larger bodies are sent once with best_of if no seeds are requested; null: never.",
    )
    restart_command: tuple[str, ...] = Field(
        default=(),
        description=(
            "Command that restarts TGI with another model; {directory} and {version} are filled in; "
            "it runs without a shell."
        ),
    )
    kubernetes: KubernetesSettings | None = Field(
        default=None, description="Restart TGI by a rollout of its Deployment; null: do not."
    )

    @pydantic.model_validator(mode="after")
    def _one_way_to_restart(self) -> TgiSettings:
        if self.restart_command and self.kubernetes is not None:
            raise ValueError("restart_command and kubernetes are two ways to restart TGI: choose one")
        return self


class VllmSettings(HttpEngineSettings):
    """vLLM's OpenAI-compatible server."""

    replicas: tuple[str, ...] = Field(
        default=(),
        max_length=256,
        description="Addresses of several vLLMs with one base model, instead of `url`: each gets the policies and "
        "proves them; all requests with an image go to one.",
    )
    quorum: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the replicas that must take a policy; the others are left out until they do.",
    )
    served_model: str = Field(default="", description="The base model's name in vLLM; empty: the first model served.")
    base_path: str = Field(
        default="", description="Path at which vLLM sees the base model, to return to it; empty: `engine.model`."
    )
    max_loras: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="vLLM's --max-loras; if it is below policies.max_loaded, vLLM evicts adapters silently.",
    )
    max_lora_rank: int = Field(default=16, ge=1, le=512, description="vLLM's --max-lora-rank.")
    tower_lora: bool = Field(
        default=False, description="Whether vLLM was started with LoRA on the vision tower and the connector."
    )
    logprobs: Literal["auto", "raw", "processed"] = Field(
        default="auto", description="vLLM's --logprobs-mode; auto: determine it with a request of a few tokens."
    )
    dev_mode: bool = Field(
        default=False,
        description="Whether vLLM was started with VLLM_SERVER_DEV_MODE=1: merged and full policies, keeping pauses.",
    )
    sleep: bool = Field(
        default=False,
        description="Whether vLLM was started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1: it gives its memory"
        " back if a recipe's sampling.rests asks for it, while the update trains on the same GPU.",
    )
    max_body_bytes: int = Field(
        default=64 << 20,
        ge=1024,
        le=1 << 30,
        description="Largest request body; a larger one is refused before it is sent.",
    )

    @pydantic.field_validator("replicas")
    @classmethod
    def _addresses(cls, replicas: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [url for url in replicas if not re.match(r"https?://", url)]:
            raise ValueError(f"replicas must be addresses (http://...), but {wrong[0]!r} is not one")
        if len(set(replicas)) < len(replicas):
            raise ValueError("a replica is named twice")
        return replicas


class EngineSettings(Section):
    """The model and how it runs. Keys besides `kind` and `model` are for the engine in process, or in an engine's
    section."""

    kind: Literal["transformers", "tgi", "vllm"] = Field(default="transformers", description="Which engine samples.")
    model: Annotated[str, pydantic.AfterValidator(known_model), pydantic.AfterValidator(model_place)] = Field(
        min_length=1,
        description="A model directory, a name on the Hugging Face hub, or playground:llava. Engines behind HTTP need "
        "a directory: its tokenizer, chat template and weights' digest are read.",
    )
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU if there is one.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        default="auto", description="auto: float32 on a CPU, else the checkpoint's type."
    )
    quantization: Literal["nf4"] | None = Field(
        default=None,
        description=("nf4: run the decoder's linear layers in 4 bits (bitsandbytes); the update must use the same."),
    )
    gpu_graphs: bool = Field(
        default=True,
        description="On a GPU: decode by fused attention kernels (Triton) and recorded CUDA graphs; without effect "
        "on a CPU.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads for PyTorch's operators; 0: one less than the cores (gRPC and images need one).",
    )
    preprocess_threads: int = Field(
        default=2, ge=1, le=64, description="Threads that decode images and render prompts."
    )
    max_rows: int = Field(
        default=512, ge=1, le=65536, description="Maximum number of candidates decoded at the same time; others wait."
    )
    cache_mib: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description=(
            "Approximate size of the KV cache in MiB; 0: `cache_share` of the memory that is free "
            "once the model is loaded."
        ),
    )
    cache_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description=(
            "With cache_mib 0: share of the free memory for the KV cache; use less if a trainer or "
            "scorer uses the same GPU."
        ),
    )
    feature_cache_mib: int = Field(default=256, ge=0, le=1 << 20, description="MiB of image features to keep.")
    chat_template: Path | None = Field(default=None, description="Jinja file, for a model without a chat template.")
    min_pixels: int | None = Field(
        default=None,
        ge=1,
        le=1 << 40,
        description="Minimum number of pixels of an image as the model sees it; null: the model's own value.",
    )
    max_pixels: int | None = Field(
        default=None,
        ge=1,
        le=1 << 40,
        description=(
            "Maximum number of pixels of an image as the model sees it, for models that take any "
            "resolution; null: the model's own value. The update must use the same."
        ),
    )
    tgi: TgiSettings = Field(default=TgiSettings(), description="For kind tgi.")
    vllm: VllmSettings = Field(default=VllmSettings(), description="For kind vllm.")
