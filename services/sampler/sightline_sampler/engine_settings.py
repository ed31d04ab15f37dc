"""Settings of the sampler's engines: what they have in common over HTTP, a section for each, and which one samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field
from sightline_chassis.sections import Section
from sightline_chassis.shipped import known_model, model_place


class KubernetesSettings(Section):
    """A Deployment that is rolled out anew for each policy, by the API of the cluster that the sampler runs in."""

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
    """What engines behind HTTP have in common."""

    url: str = Field(default="http://127.0.0.1:8000", pattern=r"^https?://", description="Address of the engine.")
    token: str | None = Field(default=None, description="Sent as a bearer token; better set by environment.")
    max_concurrent: int = Field(
        default=64, ge=1, le=65536, description="Requests to the engine at the same time; more wait here."
    )
    connect_seconds: float = Field(default=5, gt=0, le=600, description="Longest wait for a connection.")
    read_seconds: float = Field(
        default=300,
        gt=0,
        le=86400,
        description="Longest silence of the engine in a request (a deadline may be nearer).",
    )
    tries: int = Field(default=2, ge=1, le=10, description="How often a candidate is asked for when the engine fails.")
    overload_seconds: float = Field(
        default=30, ge=0, le=3600, description="How long an engine that is full or starting is asked again."
    )
    poll_seconds: float = Field(default=2, gt=0, le=600, description="Time between looks at what the engine serves.")
    swap_seconds: float = Field(
        default=900, gt=0, le=86400, description="Longest time that the engine may take to come up with a policy."
    )
    policies_at: Path | None = Field(
        default=None,
        description="Where the engine sees the directory that the sampler sees as policies.root (or its downloads).",
    )
    max_body_bytes: int = Field(
        default=2_000_000, ge=1024, le=1 << 30, description="Largest request body; more is refused before it is sent."
    )


class TgiSettings(HttpEngineSettings):
    """Text Generation Inference."""

    url: str = Field(default="http://127.0.0.1:3000", pattern=r"^https?://", description="Address of TGI's router.")
    model_id: str = Field(
        default="", description="What /info names for the base model (its --model-id); empty is `engine.model`."
    )
    merge_into: Path | None = Field(
        default=None,
        description="Where adapters are merged into checkpoints, which TGI must see; null refuses adapters.",
    )
    best_of_above_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Bodies over this are sent once with best_of, where no seeds are asked for; null never.",
    )
    restart_command: tuple[str, ...] = Field(
        default=(),
        description="Restarts TGI with another model; {directory} and {version} are filled in, no shell.",
    )
    kubernetes: KubernetesSettings | None = Field(
        default=None, description="Restarts TGI by a rollout of its Deployment; null is not."
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
        description="Addresses of several vLLMs of one base model, in place of `url`: each is given the policies, and "
        "proves them; all requests with an image go to one.",
    )
    quorum: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the replicas that must take a policy; the others are left out until they do.",
    )
    served_model: str = Field(default="", description="The base model's name there; empty is the first one served.")
    base_path: str = Field(
        default="", description="Where vLLM sees the base model, to go back to it; empty is `engine.model`."
    )
    max_loras: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="As vLLM was started (--max-loras); with fewer than policies.max_loaded it evicts silently.",
    )
    max_lora_rank: int = Field(default=16, ge=1, le=512, description="As vLLM was started (--max-lora-rank).")
    tower_lora: bool = Field(
        default=False, description="Whether vLLM was started with LoRA on the vision tower and the connector."
    )
    logprobs: Literal["auto", "raw", "processed"] = Field(
        default="auto", description="vLLM's --logprobs-mode; auto finds out by a request of a few tokens."
    )
    dev_mode: bool = Field(
        default=False,
        description="Whether vLLM was started with VLLM_SERVER_DEV_MODE=1: merged and full policies, keeping pauses.",
    )
    sleep: bool = Field(
        default=False,
        description="Whether vLLM was started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1: it gives its memory"
        " back where a recipe's sampling.rests asks for it, while the update trains on the same GPU.",
    )
    max_body_bytes: int = Field(
        default=64 << 20, ge=1024, le=1 << 30, description="Largest request body; more is refused before it is sent."
    )

    @pydantic.field_validator("replicas")
    @classmethod
    def _addresses(cls, replicas: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [url for url in replicas if not re.match(r"https?://", url)]:
            raise ValueError(f"replicas are addresses (http://...), and {wrong[0]!r} is none")
        if len(set(replicas)) < len(replicas):
            raise ValueError("a replica is named twice")
        return replicas


class EngineSettings(Section):
    """The model and how it is run. Keys beside `kind` and `model` are of the engine in process, or in its section."""

    kind: Literal["transformers", "tgi", "vllm"] = Field(default="transformers", description="Which engine samples.")
    model: Annotated[str, pydantic.AfterValidator(known_model), pydantic.AfterValidator(model_place)] = Field(
        min_length=1,
        description="A model directory, a name on the Hugging Face hub, or playground:llava. Engines behind HTTP need "
        "a directory: its tokenizer, chat template and weights' digest are read.",
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto takes a GPU where there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        default="auto", description="auto is float32 on a CPU, else what the checkpoint says."
    )
    quantization: Literal["nf4"] | None = Field(
        default=None,
        description="nf4: the decoder's linear layers in 4 bits, by bitsandbytes; the update must have the same.",
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
        default=0,
        ge=0,
        le=1 << 20,
        description="About how many MiB keys and values of the candidates may take; 0 is `cache_share` of the memory"
        " that is free when the model is loaded.",
    )
    cache_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="With cache_mib 0: the share of the free memory for keys and values; less where a trainer or a"
        " scorer is on the same GPU.",
    )
    feature_cache_mib: int = Field(default=256, ge=0, le=1 << 20, description="MiB of image features kept.")
    chat_template: Path | None = Field(
        default=None, description="Jinja file, for a model that brings no chat template."
    )
    min_pixels: int | None = Field(
        default=None,
        ge=1,
        le=1 << 40,
        description="Fewest pixels that an image is shown with; null is the model's own.",
    )
    max_pixels: int | None = Field(
        default=None,
        ge=1,
        le=1 << 40,
        description="Most pixels of an image as shown, for models of any resolution; null is the model's own."
        " The update must have the same.",
    )
    tgi: TgiSettings = Field(default=TgiSettings(), description="For kind tgi.")
    vllm: VllmSettings = Field(default=VllmSettings(), description="For kind vllm.")
