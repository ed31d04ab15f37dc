"""Settings of the Triton Inference Server behind the service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from sightline_chassis.settings import Section

from sightline_scorer.triton.gpu import cuda_is_there


class TritonSettings(Section):
    """The Triton Inference Server behind the service."""

    mode: Literal["embedded", "remote", "worker"] = Field(
        "embedded",
        description="embedded: start and supervise the wheel's tritonserver; remote: one that runs already; worker: no"
        " Triton, the same towers in processes of our own (where the wheel does not run: macOS, arm64, musl)",
    )
    address: str = Field("", description="remote: host:port of Triton's gRPC endpoint")
    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="embedded, worker: its port on loopback, so that other services on this machine can use it as"
        " their remote one; 0: a free one",
    )
    home: Path | None = Field(
        None,
        description="embedded: where the nvidia-pytriton wheel is unpacked; else SIGHTLINE_TRITON_HOME, or .triton in"
        " the working directory, its parents or those of the installed package, or where `sightline triton install`"
        " puts it",
    )
    work_dir: Path | None = Field(
        None, description="embedded: directory for the model repository and Triton's log; a temporary one if not set"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description=("Where the towers run; auto: on a GPU if there is one. Set cuda for a remote Triton on a GPU"),
    )
    threads: int = Field(
        max(1, (os.cpu_count() or 1) // 2), ge=1, le=256, description="Threads of torch in each tower, on a CPU"
    )
    instances: int = Field(1, ge=1, le=64, description="Copies of each tower")
    image_batch: int = Field(16, ge=1, le=1024, description="Maximum number of images per batch")
    text_batch: int = Field(64, ge=1, le=4096, description="Maximum number of texts per batch")
    text_batch_tokens: int = Field(
        1024,
        ge=0,
        le=10_000_000,
        description=(
            "Maximum number of tokens per batch of texts, padding included; larger batches do not fit"
            " a CPU's cache; 0: no limit (for a GPU)"
        ),
    )
    batches_in_flight: int = Field(
        0,
        ge=0,
        le=64,
        description=(
            "Number of batches of a tower in Triton at a time; waiting requests share the next one. "
            "0: the number of instances on a CPU, one more on a GPU"
        ),
    )
    gather_milliseconds: float = Field(
        40,
        ge=0,
        le=1000,
        description="How long a batch that is not full waits for images of other requests that are being decoded, so"
        " that Triton is called less often; twice as long if these fill it; 0: not at all. A caller alone never waits",
    )
    queue_delay_microseconds: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="How long Triton waits to fill a batch; useful if several scorers share a remote Triton",
    )
    max_queue: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description=("Maximum number of images or texts waiting for a tower; further requests are refused as overload"),
    )
    shared_memory: Literal["auto", "on", "off"] = Field(
        "auto",
        description=(
            "Send pixels to Triton through system shared memory; auto: if Triton runs on this host "
            "and accepts it, else through gRPC"
        ),
    )
    gpu_graphs: Literal["off", "compile", "cuda_graphs"] = Field(
        "off",
        description="On a GPU: torch.compile, or one CUDA graph for each batch size of 1, 2, 4 ... (both make the start"
        " longer)",
    )
    request_timeout_seconds: float = Field(
        30, gt=0, le=3600, description="Longest time for a call to Triton (the caller's deadline may be shorter)"
    )
    start_timeout_seconds: float = Field(
        180, gt=0, le=3600, description="Longest time until Triton and its models are ready"
    )
    stop_grace_seconds: float = Field(
        5, ge=0, le=300, description="embedded: time between SIGTERM and SIGKILL for Triton (it takes about 2 s)"
    )
    restart_delay_seconds: float = Field(
        0.2, ge=0, le=60, description="embedded: wait before the first restart; doubled after each failure"
    )
    restart_delay_max_seconds: float = Field(10, ge=0, le=600, description="embedded: longest wait before a restart")
    hung_after_seconds: float = Field(
        60, ge=1, le=3600, description="embedded: restart Triton after this time without a successful inference"
    )

    @model_validator(mode="after")
    def _remote_has_an_address(self) -> Self:
        if self.mode == "remote" and not self.address:
            raise ValueError("triton.mode=remote needs triton.address, for example triton.address=triton:8001")
        if self.mode == "worker" and self.shared_memory == "on":
            raise ValueError("triton.mode=worker cannot use triton.shared_memory=on: leave it at auto")
        return self

    @property
    def backend(self) -> str:
        """What runs the towers, as in ListModels and metrics: triton-embedded, triton-remote or worker."""
        return self.mode if self.mode == "worker" else f"triton-{self.mode}"

    @property
    def from_one_import(self) -> bool:
        """Whether both towers of a model come from one process's import of torch (triton/beside.py)."""
        return self.mode == "embedded" and self.instances == 1 and not self.on_gpu

    @property
    def most_in_flight(self) -> int:
        """Maximum batches of a tower in Triton at a time."""
        return self.batches_in_flight or self.instances + self.on_gpu

    @property
    def on_gpu(self) -> bool:
        """Whether the towers run on a GPU. For a remote Triton, `device` decides."""
        if self.device != "auto":
            return self.device == "cuda"
        return self.mode != "remote" and cuda_is_there()
