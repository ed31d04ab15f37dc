"""Makes served models of settings and Triton, at the start and when models change while the service serves.

A change: the settings are read again; a model whose settings or files differ is described, put beside the old version
into Triton's repository, loaded and warmed by Triton, and asked once. Only then requests go to it; those that have the
old version keep it to their end, and then that one is unloaded. A version that cannot be loaded changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from sightline.errors import PreconditionFailed, SightlineError, first_line
from sightline.picture_rule import PICTURE_RULE
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_chassis.shipped import model_place

from sightline_scorer import calibration as calibrations
from sightline_scorer import metrics
from sightline_scorer.aesthetic import AestheticHead
from sightline_scorer.cache import EmbeddingTable
from sightline_scorer.formulas import Scale, default_kind
from sightline_scorer.models import Ensemble, ModelRegistry, ServedModel
from sightline_scorer.preprocessing import Preprocessor
from sightline_scorer.released import RELEASED
from sightline_scorer.settings import ModelSettings, ScorerSettings
from sightline_scorer.tokens import Tokenizer
from sightline_scorer.tower import Tower
from sightline_scorer.triton import repository
from sightline_scorer.triton.backend import TritonBackend
from sightline_scorer.triton.card import ModelCard
from sightline_scorer.triton.embedded import EmbeddedTriton
from sightline_scorer.triton.servers import TritonServer
from sightline_scorer.vocabularies import vocabulary

logger = logging.getLogger(__name__)
_WHAT_LOADING_RAISES = (OSError, ValueError, RuntimeError, ImportError, SightlineError)


class Loader:
    """See the module.

    Args:
        settings: of the service.
        server: where Triton runs.
        backend: asks it.
    """

    def __init__(self, settings: ScorerSettings, server: TritonServer, backend: TritonBackend) -> None:
        self._settings = settings
        self._server = server
        self._backend = backend
        self._versions: dict[str, int] = {}
        self._triton_version = 1
        """Part of the names of Triton's models that are added later."""
        self._fingerprints: dict[str, str] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()

    def build(self, out: Path) -> None:
        """Write the model repository that an embedded Triton starts with."""
        settings = self._settings
        cards = []
        for name, model in settings.models.items():
            with _naming(name):
                self._fingerprints[name] = fingerprint(model)
                cards.append(repository.describe(name, model))
        repository.build(cards, settings.first_model, out, settings.triton, copy=False)

    async def load_all(self) -> ModelRegistry:
        """The models of a Triton that has started. Raises what loading raises."""
        settings = self._settings
        served = {}
        for name, model in settings.models.items():
            served[name] = await self._serve(settings, name, 1, self._fingerprints.get(name, ""))
            served[name].scale = _scale(served[name], model)
            _tell(served[name])
        ensembles = {name: Ensemble.of(name, ensemble) for name, ensemble in settings.ensembles.items()}
        return ModelRegistry(served, ensembles, settings.default_name)

    async def reload(
        self, models: ModelRegistry, settings: ScorerSettings, try_out: Callable[[ServedModel], Awaitable[None]]
    ) -> tuple[list[str], list[str]]:
        """Serve what `settings` say from now on; answers the names that changed and those that went.

        `try_out` asks a new version once. Raises PreconditionFailed where a version cannot be loaded; then nothing has
        changed.
        """
        async with self._one_at_a_time:
            served, fresh = dict(models.served), []
            models.others = [info for info in models.others if info.state != pb.MODEL_STATE_FAILED]
            try:
                for name, model in settings.models.items():
                    new = await self._changed(models, settings, name, model)
                    if new is not None:
                        fresh.append(new)
                        await try_out(new)
                        served[name] = new
            except _WHAT_LOADING_RAISES as error:
                for new in fresh:
                    await self._retire(models, new)
                raise PreconditionFailed(f"the models stay as they were: {error}", reason="RELOAD_FAILED") from error
            changed = [name for name in settings.models if served.get(name) is not models.served.get(name)]
            removed = [name for name in models.served if name not in settings.models]
            old = [version for name, version in models.served.items() if name in changed or name in removed]
            for name, model in settings.models.items():
                scale = _scale(served[name], model)
                if name not in changed and scale.digest != served[name].scale.digest:
                    changed.append(name)
                served[name].scale = scale
                _tell(served[name])
            ensembles = {name: Ensemble.of(name, ensemble) for name, ensemble in settings.ensembles.items()}
            models.change({name: served[name] for name in settings.models}, ensembles, settings.default_name)
            self._settings = settings
            for gone in old:
                self._drain(models, gone)
            return changed, removed

    async def close(self) -> None:
        """Stop waiting for old versions."""
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)

    async def _changed(
        self, models: ModelRegistry, settings: ScorerSettings, name: str, model: ModelSettings
    ) -> ServedModel | None:
        """A new version of the model, loaded and warm, where there is reason for one."""
        now = models.served.get(name)
        if isinstance(self._server, EmbeddedTriton):
            with _naming(name):
                mark = await asyncio.to_thread(fingerprint, model)
            if now is not None and mark == now.fingerprint:
                return None
            version = self._versions.get(name, 0) + 1
            self._triton_version += 1
            info = pb.ModelInfo(name=name, architecture=model.source, version=version, state=pb.MODEL_STATE_LOADING)
            models.others.append(info)
            try:
                await self._add(self._server.repository, settings, name, model)
                new = await self._serve(settings, name, self._triton_version, mark, version)
            except _WHAT_LOADING_RAISES as error:
                info.state, info.error = pb.MODEL_STATE_FAILED, str(error)[:500]
                raise
            models.others.remove(info)
            return new
        # A remote Triton: whoever runs it has changed the models of its repository, or not.
        names = _triton_names(name, settings, 1)
        card = dataclasses.replace(await self._backend.card(*names), name=name)
        if now is not None and card == now.card and model == self._settings.models.get(name):
            return None
        return await self._serve(settings, name, 1, "", self._versions.get(name, 0) + 1)

    async def _add(self, out: Path, settings: ScorerSettings, name: str, model: ModelSettings) -> None:
        with _naming(name):
            card = await asyncio.to_thread(repository.describe, name, model)
        names = _triton_names(name, settings, self._triton_version)
        try:
            for tower, triton_name in zip(repository.TOWERS, names, strict=True):
                repository.add(card, tower, triton_name, out, settings.triton, copy=False)
                await self._backend.load(triton_name)
        except BaseException:
            for triton_name in names:
                await self._let_go(triton_name)
            raise

    async def _serve(
        self, settings: ScorerSettings, name: str, triton_version: int, mark: str, version: int = 1
    ) -> ServedModel:
        """The version of a model that Triton has, ready to be asked."""
        model = settings.models[name]
        names = _triton_names(name, settings, triton_version)
        card = dataclasses.replace(await self._backend.card(*names), name=name)
        embedded = isinstance(self._server, EmbeddedTriton)
        if card.kind != model.kind:
            raise ValueError(f"models.{name}.kind is {model.kind}, but Triton serves {card.kind}: name what it serves")
        # A released checkpoint is made into an open_clip model where its towers run.
        here = embedded or model.kind not in RELEASED
        architecture = await asyncio.to_thread(repository.architecture_of, model) if here else card.architecture
        tokenizer = await asyncio.to_thread(_tokenizer, architecture if here else "", card)
        if here and not embedded:
            await asyncio.to_thread(_check_weights, architecture, model, card)
        head = None if model.head is None else await asyncio.to_thread(AestheticHead.read, model.head)
        if head is not None:
            card = _with_head(card, head)
        self._versions[name] = version
        info = pb.ModelInfo(
            name=name,
            architecture=model.source,
            weights_digest=card.weights_digest,
            preprocessing_digest=card.preprocessing_digest,
            embedding_size=card.embedding_size,
            image_size=max(card.image_height, card.image_width),
            context_length=card.context_length,
            logit_scale=card.logit_scale,
            logit_bias=card.logit_bias,
            version=self._versions[name],
            state=pb.MODEL_STATE_READY,
            precision=card.precision,
            default_kind=default_kind(card),
            model_kind=card.kind,
            backend=settings.triton.backend,
        )
        image_name, text_name = names
        cache, triton, backend = settings.cache, settings.triton, self._backend
        limits = {"in_flight": triton.most_in_flight, "max_waiting": triton.max_queue}
        return ServedModel(
            card=card,
            info=info,
            scale=Scale.of(card, None, "", head),
            preprocess=Preprocessor(card, settings.limits),
            tokenizer=tokenizer,
            image=Tower(
                EmbeddingTable(card.embedding_size, cache.image_bytes, name, "image"),
                lambda pixels: backend.embed_images(image_name, pixels),
                (name, "image"),
                batch=triton.image_batch,
                tokens=0,
                **limits,
            ),
            text=Tower(
                EmbeddingTable(card.embedding_size, cache.text_bytes, name, "text"),
                lambda rows: backend.embed_texts(text_name, rows),
                (name, "text"),
                batch=triton.text_batch,
                tokens=triton.text_batch_tokens,
                **limits,
            ),
            triton_names=names,
            fingerprint=mark,
        )

    def _drain(self, models: ModelRegistry, model: ServedModel) -> None:
        model.info.state = pb.MODEL_STATE_DRAINING
        model.info.is_default = False
        models.others.append(model.info)
        task = asyncio.create_task(self._retire(models, model))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _retire(self, models: ModelRegistry, model: ServedModel) -> None:
        await model.drained(self._settings.reload.drain_seconds)
        await model.close()
        still_there = [served.triton_names for served in models.served.values()]
        if isinstance(self._server, EmbeddedTriton) and model.triton_names not in still_there:
            for name in model.triton_names:
                await self._let_go(name)
        if model.info in models.others:
            models.others.remove(model.info)
        logger.info("a version of a model is gone", extra={"model": model.name, "version": model.info.version})

    async def _let_go(self, triton_name: str) -> None:
        """Take a Triton model out of the repository and out of Triton."""
        assert isinstance(self._server, EmbeddedTriton)
        try:
            await self._backend.unload(triton_name)
        except (ValueError, SightlineError) as error:  # a Triton that restarts will not load it again
            logger.warning("triton did not unload a model", extra={"model": triton_name, "why": str(error)})
        shutil.rmtree(self._server.repository / triton_name, ignore_errors=True)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors of a model's files and code name the model, in one sentence."""
    try:
        yield
    except SightlineError:
        raise
    except Exception as error:  # whatever open_clip, the format of the weights or a damaged file may raise
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise PreconditionFailed(
            f"the model {name} cannot be loaded: {kind}{first_line(error, 500)}", reason="MODEL_UNREADABLE"
        ) from error


def fingerprint(settings: ModelSettings) -> str:
    """What changes with a model's settings and files, but not with its calibration. Raises as finding weights."""
    architecture = repository.architecture_of(settings)
    weights = repository.find_weights(architecture, settings.pretrained)
    facts = {
        "head": "" if settings.head is None else repository.sha256_of(settings.head),
        "settings": settings.model_dump(mode="json", exclude={"calibration"}),
        "weights": repository.sha256_of(weights),
    }
    if architecture.startswith(repository.LOCAL_DIR):
        folder = Path(architecture.removeprefix(repository.LOCAL_DIR))
        files = sorted(file for file in folder.iterdir() if file.is_file() and file.resolve() != weights)
        facts["files"] = {
            file.name: repository.sha256_of(file) for file in files if file.name != calibrations.FILE_NAME
        }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def calibration_path(settings: ModelSettings) -> Path | None:
    """Where the model's calibration is, or would be; None for a model without a directory of its own."""
    if settings.calibration is not None:
        return settings.calibration
    folder = Path(model_place(settings.source).removeprefix(repository.LOCAL_DIR))
    return folder / calibrations.FILE_NAME if folder.is_dir() else None


def _with_head(card: ModelCard, head: AestheticHead) -> ModelCard:
    """The card of a CLIP model with a network on it: its weights are both files. Raises ValueError."""
    if head.size != card.embedding_size:
        raise ValueError(
            f"models.{card.name}.head takes embeddings of {head.size} numbers, and the model gives "
            f"{card.embedding_size}: it belongs to another model (LAION's to ViT-L-14 of OpenAI)"
        )
    both = hashlib.sha256(f"{card.weights_digest} {head.digest}".encode()).hexdigest()
    return dataclasses.replace(card, weights_digest=both)


def _scale(model: ServedModel, settings: ModelSettings) -> Scale:
    """The model's scale, with its calibration where there is one that fits. Raises ValueError for a broken file."""
    card, head = model.card, model.scale.head
    path = calibration_path(settings)
    if path is None or not path.is_file():
        if settings.calibration is not None:
            raise ValueError(f"models.{card.name}.calibration={path} is no file")
        return Scale.of(card, None, "", head)
    found = calibrations.read(path)
    if found.picture_rule != PICTURE_RULE:
        made = f"rule {found.picture_rule}" if found.picture_rule else "no named rule, as by Sightline 0.1.0"
        logger.warning(
            "a calibration was made with another picture rule: make it again by `sightline scorer calibrate`",
            extra={"model": card.name, "file": str(path), "rule": found.picture_rule},
        )
        why = f" for picture rule {PICTURE_RULE} ({path.name} was made with {made})"
        return Scale.of(card, None, why, head)
    if (found.weights_digest, found.preprocessing_digest) != (card.weights_digest, card.preprocessing_digest):
        logger.warning("a calibration belongs to other weights", extra={"model": card.name, "file": str(path)})
        return Scale.of(card, None, f" for these weights ({path.name} was fitted for others)", head)
    return Scale.of(card, found, "", head)


def _tell(model: ServedModel) -> None:
    """Put what a model can do into its info, and the metrics."""
    del model.info.kinds[:]
    model.info.kinds.extend(model.scale.kinds)
    model.info.calibration_digest = model.scale.digest
    card = model.card
    metrics.MODEL_INFO.labels(
        card.name, model.info.architecture, card.weights_digest, card.preprocessing_digest, card.precision
    ).set(1)
    metrics.MODEL_VERSION.labels(card.name).set(model.info.version)


def _triton_names(name: str, settings: ScorerSettings, version: int) -> tuple[str, str]:
    image, text = (repository.triton_name(tower, name, settings.first_model, version) for tower in repository.TOWERS)
    return image, text


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
    window = _window(architecture)
    if window not in (None, card.context_length):
        raise ValueError(
            f"the tokenizer of {architecture} has a window of {window} tokens, but Triton serves "
            f"{card.architecture} with {card.context_length}: name the same model"
        )
    tokenizer = vocabulary(card.tokenizer, architecture, card.context_length)
    return Tokenizer(tokenizer, card.context_length, card.vocabulary_size, trim=card.trim_padding)


def _window(architecture: str) -> int | None:
    """Tokens of the window that a directory's configuration states; None where there is none to read."""
    if not architecture.startswith(repository.LOCAL_DIR):
        return None
    config = json.loads((Path(architecture.removeprefix(repository.LOCAL_DIR)) / "open_clip_config.json").read_text())
    return int(config.get("model_cfg", {}).get("text_cfg", {}).get("context_length", 77))
