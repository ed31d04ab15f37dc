"""The scorer's settings. Sources in order: flags, environment `SIGHTLINE_SCORER__*`, a YAML file, these defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from sightline_chassis.sections import AdmissionSettings, ImageLimits, ImageStoreSettings, Section, ServiceSettings
from sightline_chassis.shipped import known_model

from sightline_scorer.triton.settings import TritonSettings

__all__ = [
    "CacheSettings",
    "EnsembleSettings",
    "FetchSettings",
    "ModelSettings",
    "ProbeSettings",
    "ReloadSettings",
    "SamplerConnection",
    "ScorerLimits",
    "ScorerSettings",
    "TritonSettings",
]

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class SamplerConnection(Section):
    """How to reach the sampler of a vqa model."""

    ca_file: Path | None = Field(None, description="PEM file of the authority: speak TLS to the sampler")
    certificate_file: Path | None = Field(None, description="PEM file of our certificate, if it requires one")
    key_file: Path | None = Field(None, description="PEM file with that certificate's key")
    token_file: Path | None = Field(None, description="File with the bearer token for the sampler")
    timeout_seconds: float = Field(60, gt=0, le=3600, description="Longest time for one answer, retries included")
    max_in_flight: int = Field(8, ge=1, le=256, description="Number of concurrent requests to it")

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together: set both or neither")
        return self


class ModelSettings(Section):
    """One model."""

    kind: Literal["clip", "pickscore", "hpsv2", "longclip", "aesthetic", "imagereward", "vqa"] = Field(
        "clip",
        description="Kind of model: clip (also SigLIP, SigLIP 2 and MobileCLIP, by open_clip), or a checkpoint as"
        " released: pickscore, hpsv2, longclip, imagereward; aesthetic: a CLIP model and a `head`; vqa: the probability"
        " that a language model behind a sampler answers yes",
    )

    source: Annotated[str, AfterValidator(known_model)] = Field(
        min_length=1,
        description="An open_clip name such as ViT-B-32, hf-hub:ORG/REPO, a directory (local-dir:PATH or PATH), or "
        "playground:clip; of a released checkpoint its file, its directory or its hub name; vqa: the sampler's gRPC"
        " target, such as 127.0.0.1:50052",
    )
    pretrained: Annotated[str, AfterValidator(os.path.expanduser)] | None = Field(
        None, description="For an open_clip name: its pretrained tag, or a weights file. Directories bring their own"
    )
    architecture: str | None = Field(None, description="hpsv2: the open_clip name of its weights; default ViT-H-14")
    head: Path | None = Field(None, description="aesthetic: the file of its network, .safetensors or .pth")
    tokenizer: str | None = Field(
        None,
        description="A transformers tokenizer, by directory or hub name. imagereward: BERT's; default: the files beside"
        " the checkpoint, or google-bert/bert-base-uncased. vqa: the language model's own, or playground:llava",
    )
    question: str = Field(
        'Does this figure show "{text}"? Please answer yes or no.',
        description="vqa: the question to the language model; {text} is replaced by the text to score",
    )
    answer: str = Field("Yes", min_length=1, description="vqa: the answer whose probability is the score")
    against: str | None = Field(
        None, description="vqa: the other answer, such as No: the score is then answer / (answer + against)"
    )
    sampler: SamplerConnection | None = Field(None, description="vqa: how to reach the sampler, besides its address")
    precision: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="Precision of the towers")
    calibration: Path | None = Field(
        None,
        description="A file made by `sightline scorer calibrate`, for percentiles; else calibration.json in the model's"
        " directory, if there is one",
    )

    @model_validator(mode="after")
    def _head_goes_with_aesthetic(self) -> Self:
        if (self.kind == "aesthetic") != (self.head is not None):
            raise ValueError("set head, the file of the network, with kind=aesthetic, and only with it")
        if self.architecture is not None and self.kind != "hpsv2":
            raise ValueError("architecture works only with kind=hpsv2: other models take it from their source")
        return self

    @model_validator(mode="after")
    def _keys_go_with_kinds(self) -> Self:
        if self.tokenizer is not None and self.kind not in ("imagereward", "vqa"):
            raise ValueError("tokenizer works only with kind=imagereward or kind=vqa: other models have their own")
        if self.kind != "vqa":
            given = {"question", "answer", "against", "sampler"} & self.model_fields_set
            if given:
                raise ValueError(f"{', '.join(sorted(given))} works only with kind=vqa: leave it out")
            return self
        if self.tokenizer is None:
            raise ValueError("set tokenizer with kind=vqa: the language model's own decides which tokens say `answer`")
        if self.question.count("{text}") != 1:
            raise ValueError("question must contain {text} once, the place of the text to score")
        return self


class EnsembleSettings(Section):
    """A weighted mean of models, with its own name."""

    members: dict[ModelName, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="Weight of each model, relative to the others'"
    )
    kind: Literal["cosine", "clip_score", "logit", "probability", "percentile", "reward"] = Field(
        "clip_score", description="The kind of score for requests that name none"
    )


class ScorerLimits(ImageLimits):
    """The limits of a request. Larger requests are refused before any work."""

    max_texts: int = Field(1024, ge=1, le=100_000, description="Maximum number of texts per request")
    max_text_bytes: int = Field(8192, ge=1, le=2**20, description="Maximum UTF-8 bytes of a text")
    max_digests: int = Field(1024, ge=1, le=100_000, description="Maximum number of digests per FindMissingImages")
    max_images: int = Field(256, ge=1, le=100_000, description="Maximum number of images per Embed")
    stream_in_flight: int = Field(32, ge=1, le=1024, description="Number of items of a ScoreStream processed at once")


class CacheSettings(Section):
    """The cache of embeddings, by the SHA-256 of the image's or text's bytes; one for each model."""

    image_bytes: int = Field(64 * 2**20, ge=0, description="Bytes for image embeddings of each model; 0: none are kept")
    shared: bool = Field(
        False,
        description=(
            "Share embeddings among teams. The speed of an answer and its count of known texts then "
            "reveal what other teams scored"
        ),
    )
    text_bytes: int = Field(128 * 2**20, ge=0, description="Bytes for text embeddings of each model; 0: none are kept")


class FetchSettings(Section):
    """Images that requests name by URI. Nothing is fetched unless a host or directory is listed here."""

    hosts: tuple[str, ...] = Field(
        (),
        description=("Allowed hosts of http and https URIs: images.example.org, or *.example.org for its subdomains"),
    )
    http: bool = Field(False, description="Allow http, not only https")
    ports: tuple[int, ...] = Field((80, 443), description="Allowed ports")
    private_addresses: bool = Field(
        False, description="Allow private, loopback and link-local addresses of the listed hosts"
    )
    directories: tuple[Path, ...] = Field(
        (), description="Allowed directories of file URIs; links must not lead out of them"
    )
    timeout_seconds: float = Field(10, gt=0, le=300, description="Longest time for one fetch")
    max_at_once: int = Field(16, ge=1, le=256, description="Maximum number of concurrent fetches")


class ReloadSettings(Section):
    """Changing models during service. SIGHUP always triggers it."""

    rpc: bool = Field(False, description="Let callers request a reload with ReloadModels")
    drain_seconds: float = Field(60, ge=0, le=3600, description="Time for requests to a replaced model to finish")


class ProbeSettings(Section):
    """The real inference that decides whether the service is ready."""

    every_seconds: float = Field(
        5, gt=0, le=300, description="Time between probes; a successful score counts as a probe"
    )
    timeout_seconds: float = Field(10, gt=0, le=300, description="Longest time for a probe of one model")


class ScorerSettings(ServiceSettings):
    """All settings of the scorer."""

    admission: AdmissionSettings = Field(
        AdmissionSettings(max_concurrent=64, max_queue=256),
        description=("How much work the service accepts at a time; allow enough requests to fill Triton's batches"),
    )

    models: dict[ModelName, ModelSettings] = Field(
        min_length=1,
        description="The models, by the name that callers use: models.default.source=ViT-B-32",
    )
    default_model: str = Field(
        "", description="The model for requests that name none; may be empty if there is only one model"
    )
    ensembles: dict[ModelName, EnsembleSettings] = Field(
        default_factory=dict, description="Weighted means of models, by the name that callers use"
    )
    triton: TritonSettings = Field(default_factory=TritonSettings, description="Where the towers run")
    limits: ScorerLimits = Field(default_factory=ScorerLimits, description="Limits of a request")
    image_store: ImageStoreSettings = Field(default_factory=ImageStoreSettings, description="Uploaded images")
    cache: CacheSettings = Field(default_factory=CacheSettings, description="Cache of embeddings")
    fetch: FetchSettings = Field(default_factory=FetchSettings, description="Images named by URI")
    reload: ReloadSettings = Field(default_factory=ReloadSettings, description="Change of models")
    probe: ProbeSettings = Field(default_factory=ProbeSettings, description="The readiness probe")
    decode_threads: int = Field(
        os.cpu_count() or 1, ge=1, le=256, description="Threads that decode images and split long texts"
    )

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        known = {**self.models, **self.ensembles}
        if self.default_model and self.default_model not in known:
            raise ValueError(f"default_model={self.default_model!r} is not one of models: {', '.join(known)}")
        for name, ensemble in self.ensembles.items():
            if name in self.models:
                raise ValueError(f"{name!r} is both a model and an ensemble: rename one")
            if unknown := set(ensemble.members) - set(self.models):
                raise ValueError(f"ensembles.{name} has members that are not models: {', '.join(sorted(unknown))}")
        if not self.default_model and len(self.models) > 1:
            raise ValueError(f"with several models ({', '.join(self.models)}) default_model must name one of them")
        return self

    @property
    def default_name(self) -> str:
        """The model or ensemble for requests that do not name one."""
        return self.default_model or next(iter(self.models))

    @property
    def first_model(self) -> str:
        """The model whose towers are called `clip_image` and `clip_text`: the default one, or the first."""
        return self.default_name if self.default_name in self.models else next(iter(self.models))
