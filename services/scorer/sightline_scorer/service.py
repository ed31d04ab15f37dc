"""The scorer as a service of the chassis: what it starts, and in which order."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import grpc
from sightline_chassis.errors import PreconditionFailed
from sightline_chassis.service import Service

from sightline_scorer import images, metrics
from sightline_scorer.costs import COSTS
from sightline_scorer.preprocessing import Preprocessor
from sightline_scorer.probe import Probe
from sightline_scorer.scoring import Scoring, ServedModel
from sightline_scorer.servicer import ScorerServicer
from sightline_scorer.settings import ModelSettings, ScorerSettings
from sightline_scorer.store import ImageStore
from sightline_scorer.texts import Tokenizer
from sightline_scorer.triton import repository
from sightline_scorer.triton.backend import RemoteTriton, TritonBackend, TritonServer
from sightline_scorer.triton.card import ModelCard
from sightline_scorer.triton.embedded import EmbeddedTriton
from sightline_scorer.v1 import scorer_pb2 as pb
from sightline_scorer.v1 import scorer_pb2_grpc

LOG = logging.getLogger(__name__)


class ScorerService(Service):
    """Serves `sightline_scorer.v1.ScorerService` by a Triton, embedded or remote."""

    name: ClassVar[str] = "scorer"
    proto_services: ClassVar[tuple[str, ...]] = ("sightline_scorer.v1.ScorerService",)
    costs = COSTS

    def __init__(self, settings: ScorerSettings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self.triton: TritonServer = (
            EmbeddedTriton(settings.triton, self._build)
            if settings.triton.mode == "embedded"
            else RemoteTriton(settings.triton)
        )
        self._backend = TritonBackend(self.triton, settings.triton, settings.default_name)
        self._scoring: Scoring | None = None
        self._probe: Probe | None = None

    async def start(self) -> None:
        """Start or find Triton, load what is needed before it, and score once.

        Raises PreconditionFailed saying what is missing, or what the model or Triton had to complain about.
        """
        images.lift_pillow_limit()
        metrics.preregister()
        settings = self._settings
        try:
            await self.triton.start()
            models = {name: await self._serve_model(name) for name in settings.models}
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise PreconditionFailed(f"{type(error).__name__}: {error}") from error
        store = ImageStore(settings.image_store)
        self._scoring = Scoring(models, settings.default_name, self._backend, store, settings.limits, self._pool)
        self._servicer = ScorerServicer(self._scoring, store, settings.limits)
        self._probe = Probe(
            models, self._backend, self.triton, self._scoring, settings.probe, settings.triton.hung_after_seconds
        )
        await self._probe.start()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        scorer_pb2_grpc.add_ScorerServiceServicer_to_server(self._servicer, server)

    async def ready(self) -> str | None:
        """The probe's verdict."""
        return self._probe.trouble() if self._probe is not None else "it is starting"

    async def stop(self) -> None:
        """Stop the probe, Triton and the threads."""
        if self._probe is not None:
            await self._probe.stop()
        await self._backend.close()
        await self.triton.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _build(self, out: Path) -> None:
        settings = self._settings
        cards = [repository.describe(name, model) for name, model in settings.models.items()]
        repository.build(cards, settings.default_name, out, settings.triton, copy=False)

    async def _serve_model(self, name: str) -> ServedModel:
        settings = self._settings.models[name]
        card = await self._backend.card(name)
        architecture = repository.open_clip_name(settings.source)
        tokenizer = await asyncio.to_thread(_tokenizer, architecture, card)
        if self._settings.triton.mode == "remote":
            await asyncio.to_thread(_check_weights, architecture, settings, card)
        info = pb.ModelInfo(
            name=name,
            architecture=settings.source,
            weights_digest=card.weights_digest,
            preprocessing_digest=card.preprocessing_digest,
            embedding_size=card.embedding_size,
            image_size=max(card.image_height, card.image_width),
            context_length=card.context_length,
            logit_scale=card.logit_scale,
            logit_bias=card.logit_bias,
            is_default=name == self._settings.default_name,
        )
        metrics.MODEL_INFO.labels(
            name, settings.source, card.weights_digest, card.preprocessing_digest, card.precision
        ).set(1)
        return ServedModel(card, info, Preprocessor(card, self._settings.limits), tokenizer)


def _check_weights(architecture: str, settings: ModelSettings, card: ModelCard) -> None:
    """Where a directory is named that holds weights, they must be those that a remote Triton serves."""
    if not architecture.startswith(repository.LOCAL_DIR):
        return
    try:
        weights = repository.find_weights(architecture, settings.pretrained)
    except ValueError:
        return  # configuration and tokenizer are all that is needed here
    digest = repository.sha256_of(weights)
    if digest != card.weights_digest:
        raise RuntimeError(
            f"{weights} has other weights (SHA-256 {digest}) than Triton's {card.name} ({card.weights_digest}): build "
            "its model repository again, or name the model that it serves"
        )


def _tokenizer(architecture: str, card: ModelCard) -> Tokenizer:
    import open_clip

    tokenizer = open_clip.get_tokenizer(architecture)
    if tokenizer.context_length != card.context_length:
        raise ValueError(
            f"the tokenizer of {architecture} has a window of {tokenizer.context_length} tokens, but Triton serves "
            f"{card.architecture} with {card.context_length}: name the same model"
        )
    return Tokenizer(tokenizer, card.context_length, card.vocabulary_size)
