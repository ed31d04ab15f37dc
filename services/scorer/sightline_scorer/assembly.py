"""Assembles a version of a model: its facts, its towers and the preparation of their inputs."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from sightline.picture_rule import PICTURE_RULE
from sightline.pictures import write_png
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_chassis import images

from sightline_scorer.aesthetic import AestheticHead
from sightline_scorer.cache import EmbeddingTable
from sightline_scorer.formulas import Scale, default_kind
from sightline_scorer.joint import JointModel
from sightline_scorer.joint_scale import JointScale
from sightline_scorer.language_model import LanguageModel
from sightline_scorer.models import ServedModel
from sightline_scorer.preprocessing import Preprocessor
from sightline_scorer.released import RELEASED
from sightline_scorer.settings import ModelSettings, SamplerConnection, ScorerSettings
from sightline_scorer.tokens import Tokenizer, WholeTexts
from sightline_scorer.tower import Embeddings, Tower
from sightline_scorer.triton import repository
from sightline_scorer.triton.backend import TritonBackend
from sightline_scorer.triton.card import ModelCard, sha256_of
from sightline_scorer.vocabularies import vocabulary

_PROBE = "a photo of a probe"
_GREY = write_png(np.full((32, 32, 3), 128, np.uint8))


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Makes versions of models.

    Attributes:
        settings: the service's settings to apply.
        backend: calls Triton.
        embedded: whether Triton is ours, with local files.
    """

    settings: ScorerSettings
    backend: TritonBackend
    embedded: bool

    async def clip(self, name: str, names: tuple[str, ...], told: ModelCard, mark: str, version: int) -> ServedModel:
        """A model with embeddings, with the card that Triton returned. Raises the errors of loading."""
        model = self.settings.models[name]
        card = self._checked(name, told)
        # A released checkpoint is converted to an open_clip model where its towers run.
        here = self.embedded or model.kind not in RELEASED
        architecture = await asyncio.to_thread(repository.architecture_of, model) if here else card.architecture
        tokenizer = await asyncio.to_thread(_tokenizer, architecture if here else "", card)
        if here and not self.embedded:
            await asyncio.to_thread(_check_weights, architecture, model, card)
        head = None if model.head is None else await asyncio.to_thread(AestheticHead.read, model.head)
        if head is not None:
            card = _with_head(card, head)
        image_name, text_name = names
        cache, triton, backend = self.settings.cache, self.settings.triton, self.backend
        in_flight, max_waiting = triton.most_in_flight, triton.max_queue
        image_tower = Tower(
            EmbeddingTable(card.embedding_size, cache.image_bytes, name, "image"),
            lambda pixels: backend.embed_images(image_name, pixels),
            (name, "image"),
            batch=triton.image_batch,
            tokens=0,
            in_flight=in_flight,
            max_waiting=max_waiting,
            gather=triton.gather_milliseconds / 1000,
        )
        return ServedModel(
            card=card,
            told=told,
            info=_info(card, model, version, self.settings.triton.backend, default_kind(card)),
            scale=Scale.of(card, None, "", head),
            preprocess=Preprocessor(card, self.settings.limits),
            tokenizer=tokenizer,
            image=image_tower,
            text=Tower(
                EmbeddingTable(card.embedding_size, cache.text_bytes, name, "text"),
                lambda rows: backend.embed_texts(text_name, rows),
                (name, "text"),
                batch=triton.text_batch,
                tokens=triton.text_batch_tokens,
                in_flight=in_flight,
                max_waiting=max_waiting,
                gather=triton.gather_milliseconds / 1000,
                beside=image_tower,
            ),
            triton_names=names,
            fingerprint=mark,
        )

    async def joint(self, name: str, names: tuple[str, ...], told: ModelCard, mark: str, version: int) -> JointModel:
        """ImageReward, with the card that Triton returned. Raises the errors of loading."""
        model, triton, backend = self.settings.models[name], self.settings.triton, self.backend
        card = self._checked(name, told)
        if model.tokenizer is not None:
            card = dataclasses.replace(card, tokenizer={**card.tokenizer, "source": model.tokenizer})
        tokenizer = await asyncio.to_thread(_tokenizer, "", card)
        (joint_name,) = names
        grey = np.full((3, card.image_height, card.image_width), 128, np.uint8)
        (row,) = tokenizer.encode([_PROBE], [0])

        async def probe() -> float:
            return float((await backend.mark_pairs(joint_name, [(grey, row.ids)]))[0, 0])

        return JointModel(
            told=told,
            info=_info(card, model, version, triton.backend, pb.SCORE_KIND_REWARD),
            scale=JointScale(name, card.kind, probability=False),
            texts=tokenizer,
            picture=Preprocessor(card, self.settings.limits),
            payload=lambda picture, row, text: (picture, row.ids),
            tower=Tower(
                EmbeddingTable(1, self.settings.cache.text_bytes, name, "joint"),
                lambda pairs: backend.mark_pairs(joint_name, pairs),
                (name, "joint"),
                batch=triton.image_batch,
                tokens=0,
                in_flight=triton.most_in_flight,
                max_waiting=triton.max_queue,
                unit=False,
            ),
            probe=probe,
            triton_names=names,
            fingerprint=mark,
        )

    def answers(self, name: str, speaker: LanguageModel, mark: str, version: int) -> JointModel:
        """A language model's probability of yes."""
        model, limits = self.settings.models[name], self.settings.limits
        connection = model.sampler or SamplerConnection()

        async def ask(pairs: list[Any]) -> Embeddings:
            return np.array([[await speaker(picture, text)] for picture, text in pairs], np.float32)

        def picture(content: bytes) -> bytes:
            images.read_header(content, limits)  # refuses non-pictures here, like every other model
            return content

        async def probe() -> float:
            return await speaker(_GREY, _PROBE)

        info = pb.ModelInfo(
            name=name,
            architecture=f"{model.source}, policy {speaker.policy.version}",
            weights_digest=speaker.weights_digest,
            preprocessing_digest=hashlib.sha256(
                json.dumps({"question": speaker.question_digest, "picture_rule": PICTURE_RULE}).encode()
            ).hexdigest(),
            version=version,
            state=pb.MODEL_STATE_READY,
            default_kind=pb.SCORE_KIND_REWARD,
            model_kind=model.kind,
            backend="sampler",
        )
        return AnsweringModel(
            told=None,
            info=info,
            scale=JointScale(name, model.kind, probability=True),
            texts=WholeTexts(),
            picture=picture,
            payload=lambda picture, row, text: (picture, text),
            tower=Tower(
                EmbeddingTable(1, self.settings.cache.text_bytes, name, "joint"),
                ask,
                (name, "joint"),
                batch=1,  # so that a refused text fails alone
                tokens=0,
                in_flight=connection.max_in_flight,
                max_waiting=self.settings.triton.max_queue,
                unit=False,
            ),
            probe=probe,
            triton_names=(),
            fingerprint=mark,
            speaker=speaker,
        )

    def _checked(self, name: str, told: ModelCard) -> ModelCard:
        """The card, with the callers' name for the model. Raises ValueError if Triton serves another kind of model."""
        wanted = self.settings.models[name].kind
        if told.kind != wanted:
            raise ValueError(f"models.{name}.kind is {wanted}, but Triton serves {told.kind}: name what it serves")
        return dataclasses.replace(told, name=name)


@dataclasses.dataclass(eq=False, kw_only=True)
class AnsweringModel(JointModel):
    """A model that a sampler answers; it owns the connection."""

    speaker: LanguageModel

    async def close(self) -> None:
        await super().close()
        await self.speaker.close()


def _info(card: ModelCard, model: ModelSettings, version: int, backend: str, kind: pb.ScoreKind) -> pb.ModelInfo:
    return pb.ModelInfo(
        name=card.name,
        architecture=model.source,
        weights_digest=card.weights_digest,
        preprocessing_digest=card.preprocessing_digest,
        embedding_size=card.embedding_size,
        image_size=max(card.image_height, card.image_width),
        context_length=card.context_length,
        logit_scale=card.logit_scale,
        logit_bias=card.logit_bias,
        version=version,
        state=pb.MODEL_STATE_READY,
        precision=card.precision,
        default_kind=kind,
        model_kind=card.kind,
        backend=backend,
    )


def _with_head(card: ModelCard, head: AestheticHead) -> ModelCard:
    """The card of a CLIP model with a network on top: both files are its weights. Raises ValueError."""
    if head.size != card.embedding_size:
        raise ValueError(
            f"models.{card.name}.head takes embeddings of {head.size} numbers, but the model gives "
            f"{card.embedding_size}: it belongs to another model (LAION's to ViT-L-14 of OpenAI)"
        )
    both = hashlib.sha256(f"{card.weights_digest} {head.digest}".encode()).hexdigest()
    return dataclasses.replace(card, weights_digest=both)


def _check_weights(architecture: str, settings: ModelSettings, card: ModelCard) -> None:
    """If a directory with weights is named, a remote Triton must serve the same weights."""
    if not architecture.startswith(repository.LOCAL_DIR):
        return
    try:
        weights = repository.find_weights(architecture, settings.pretrained)
    except ValueError:
        return  # only configuration and tokenizer are needed here
    digest = sha256_of(weights)
    if digest != card.weights_digest:
        raise RuntimeError(
            f"{weights} has other weights (SHA-256 {digest}) than Triton's {card.name} ({card.weights_digest}): build "
            "its model repository again, or name the model that it serves"
        )


def _tokenizer(architecture: str, card: ModelCard) -> Tokenizer:
    window = _window(architecture)
    if window not in (None, card.context_length):
        raise ValueError(
            f"the tokenizer of {architecture} has a window of {window} tokens, but Triton serves "
            f"{card.architecture} with {card.context_length}: name the same model"
        )
    tokenizer = vocabulary(card.tokenizer, architecture, card.context_length)
    return Tokenizer(tokenizer, card.context_length, card.vocabulary_size, trim=card.trim_padding)


def _window(architecture: str) -> int | None:
    """The window in tokens by a directory's configuration; None if there is none."""
    if not architecture.startswith(repository.LOCAL_DIR):
        return None
    config = json.loads(
        (Path(architecture.removeprefix(repository.LOCAL_DIR)) / "open_clip_config.json").read_text(encoding="utf-8")
    )
    return int(config.get("model_cfg", {}).get("text_cfg", {}).get("context_length", 77))
