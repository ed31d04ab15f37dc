"""The scorer's settings. Sources in order: flags, environment `SIGHTLINE_SCORER__*`, a YAML file, these defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator
from sightline_chassis.settings import AdmissionSettings, Section, ServiceSettings

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class ModelSettings(Section):
    """One CLIP model."""

    source: str = Field(
        min_length=1,
        description="An open_clip name such as ViT-B-32, hf-hub:ORG/REPO, or a directory (local-dir:PATH or PATH)",
    )
    pretrained: str | None = Field(
        None, description="For an open_clip name: its pretrained tag, or a weights file. Directories bring their own"
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="Precision of the towers")


class TritonSettings(Section):
    """The Triton Inference Server behind the service."""

    mode: Literal["embedded", "remote"] = Field(
        "embedded", description="embedded: start and supervise the wheel's tritonserver; remote: one that runs already"
    )
    address: str = Field("", description="remote: host:port of Triton's gRPC endpoint")
    home: Path | None = Field(
        None,
        description="embedded: where the nvidia-pytriton wheel is unpacked; else SIGHTLINE_TRITON_HOME, else .triton in"
        " the working directory, its parents or those of the installed package",
    )
    work_dir: Path | None = Field(
        None, description="embedded: directory for the model repository and Triton's log; a temporary one if not set"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the towers run")
    threads: int = Field(
        max(1, (os.cpu_count() or 1) // 2), ge=1, le=256, description="Threads of torch in each tower, on a CPU"
    )
    instances: int = Field(1, ge=1, le=64, description="Copies of each tower")
    image_batch: int = Field(16, ge=1, le=1024, description="Most images in one batch")
    text_batch: int = Field(64, ge=1, le=4096, description="Most texts in one batch; longer requests go in pieces")
    queue_delay_microseconds: int = Field(
        500, ge=0, le=1_000_000, description="How long Triton waits for more requests to fill a batch"
    )
    max_queue: int = Field(
        256, ge=8, le=100_000, description="Most calls to a tower in flight at once; more are refused as overload"
    )
    request_timeout_seconds: float = Field(
        30, gt=0, le=3600, description="Longest time for one call to Triton, where the caller's deadline is not shorter"
    )
    start_timeout_seconds: float = Field(
        180, gt=0, le=3600, description="Longest time until Triton and its models are ready"
    )
    stop_grace_seconds: float = Field(
        5, ge=0, le=300, description="embedded: time between SIGTERM and SIGKILL for Triton (it takes about 2 s)"
    )
    restart_delay_seconds: float = Field(
        0.2, ge=0, le=60, description="embedded: wait before the first restart; doubles with each that fails"
    )
    restart_delay_max_seconds: float = Field(10, ge=0, le=600, description="embedded: longest wait before a restart")
    hung_after_seconds: float = Field(
        60, ge=1, le=3600, description="embedded: restart Triton when no inference has worked for so long"
    )

    @model_validator(mode="after")
    def _remote_has_an_address(self) -> Self:
        if self.mode == "remote" and not self.address:
            raise ValueError("triton.mode=remote needs triton.address, for example triton.address=triton:8001")
        return self


class LimitSettings(Section):
    """What a request may hold. Larger requests are refused before any work is done on them."""

    max_image_bytes: int = Field(20 * 2**20, ge=1, le=60 * 2**20, description="Bytes of an encoded image")
    max_image_pixels: int = Field(
        50_000_000, ge=1, le=2**31, description="Width times height of an image, read from its header before decoding"
    )
    max_texts: int = Field(1024, ge=1, le=100_000, description="Texts of one request")
    max_text_bytes: int = Field(8192, ge=1, le=2**20, description="UTF-8 bytes of one text")
    max_digests: int = Field(1024, ge=1, le=100_000, description="Digests of one FindMissingImages")
    stream_in_flight: int = Field(32, ge=1, le=1024, description="Items of one ScoreStream worked on at once")


class ImageStoreSettings(Section):
    """Uploaded images, named by their SHA-256 in later requests."""

    max_bytes: int = Field(
        256 * 2**20, ge=0, description="Bytes of all stored images; the least recently used leave first"
    )
    max_images: int = Field(100_000, ge=0, description="Number of stored images")


class ProbeSettings(Section):
    """The real inference that says whether the service is ready."""

    every_seconds: float = Field(5, gt=0, le=300, description="Time between probes; scores that work count as probes")
    timeout_seconds: float = Field(10, gt=0, le=300, description="Longest time for a probe of one model")


class ScorerSettings(ServiceSettings):
    """All settings of the scorer."""

    admission: AdmissionSettings = Field(
        AdmissionSettings(max_concurrent=64, max_queue=256),
        description="How much work is taken on at a time; enough requests to fill Triton's batches",
    )

    models: dict[ModelName, ModelSettings] = Field(
        min_length=1,
        description="The models by the name that callers use, for example models.default.source=ViT-B-32",
    )
    default_model: str = Field("", description="The model of requests that name none; may be empty with one model")
    triton: TritonSettings = Field(default_factory=TritonSettings, description="Where the towers run")
    limits: LimitSettings = Field(default_factory=LimitSettings, description="What a request may hold")
    image_store: ImageStoreSettings = Field(default_factory=ImageStoreSettings, description="Uploaded images")
    probe: ProbeSettings = Field(default_factory=ProbeSettings, description="The readiness probe")
    decode_threads: int = Field(
        os.cpu_count() or 1, ge=1, le=256, description="Threads that decode images and split long texts"
    )

    @model_validator(mode="after")
    def _default_is_known(self) -> Self:
        if self.default_model and self.default_model not in self.models:
            raise ValueError(f"default_model={self.default_model!r} is not one of models: {', '.join(self.models)}")
        if not self.default_model and len(self.models) > 1:
            raise ValueError(f"with several models ({', '.join(self.models)}) default_model must name one of them")
        return self

    @property
    def default_name(self) -> str:
        """The model of requests that name none."""
        return self.default_model or next(iter(self.models))
