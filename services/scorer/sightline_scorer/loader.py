"""Loads the models of the settings into Triton, at the start and when models change during service.

A change works as follows. The settings are read again; a model whose settings or files differ is described, put beside
the old version into Triton's repository, loaded and warmed by Triton, and called once. Only then do requests use it;
running requests keep the old version, which is unloaded after the last of them. If a version cannot be loaded, nothing
changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from sightline.errors import PreconditionFailed, SightlineError
from sightline.picture_rule import PICTURE_RULE
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_chassis.shipped import model_place

from sightline_scorer import calibration as calibrations
from sightline_scorer import describing, metrics
from sightline_scorer.assembly import Assembly
from sightline_scorer.calibration import Calibration
from sightline_scorer.joint import JointModel
from sightline_scorer.language_model import LanguageModel, language_model
from sightline_scorer.models import AnyModel, Ensemble, ModelRegistry
from sightline_scorer.settings import ModelSettings, ScorerSettings
from sightline_scorer.triton import repository
from sightline_scorer.triton.backend import TritonBackend
from sightline_scorer.triton.card import TOWERS, ModelCard
from sightline_scorer.triton.embedded import EmbeddedTriton
from sightline_scorer.triton.servers import TritonServer
from sightline_scorer.triton.settings import TritonSettings

logger = logging.getLogger(__name__)
_WHAT_LOADING_RAISES = (OSError, ValueError, RuntimeError, ImportError, SightlineError)


class Loader:
    """See the module.

    Args:
        settings: of the service.
        server: the Triton server.
        backend: calls it.
    """

    def __init__(self, settings: ScorerSettings, server: TritonServer, backend: TritonBackend) -> None:
        self._settings = settings
        self._server = server
        self._backend = backend
        self._versions: dict[str, int] = {}
        self._triton_version = 1
        """Part of the names of Triton models that are added later."""
        self._fingerprints: dict[str, str] = {}
        self._written: dict[str, tuple[ModelCard, str, TritonSettings]] = {}
        """The Triton models in the repository: what each was written from."""
        self._draining: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()

    def build(self, out: Path) -> None:
        """Write the model repository for an embedded Triton's start; at a restart, with the models that it has now."""
        for triton_name, (card, tower, triton) in list(self._written.items()):
            repository.add(card, tower, triton_name, out, triton, copy=False)
        if self._written:
            return
        settings = self._settings
        here = {name: model for name, model in settings.models.items() if model.kind != "vqa"}
        described = describing.describe_all(here)
        self._fingerprints = {name: each.fingerprint for name, each in described.items()}
        for name, each in described.items():
            self._write(out, settings, each.card, _triton_names(name, settings, 1))

    def _write(self, out: Path, settings: ScorerSettings, card: ModelCard, names: Sequence[str]) -> None:
        for tower, triton_name in zip(card.towers, names, strict=True):
            repository.add(card, tower, triton_name, out, settings.triton, copy=False)
            self._written[triton_name] = card, tower, settings.triton

    async def load_all(self) -> ModelRegistry:
        """The models of a started Triton. Raises the errors of loading."""
        settings = self._settings
        served: dict[str, AnyModel] = {}
        for name, model in settings.models.items():
            if model.kind == "vqa":
                served[name] = await self._answers(settings, name)
            else:
                mark = self._fingerprints.get(name) or describing.remote_mark(model)
                served[name] = await self._serve(settings, name, 1, mark)
            _calibrate(served[name], model)
            _tell(served[name])
        ensembles = {name: Ensemble.of(name, ensemble) for name, ensemble in settings.ensembles.items()}
        return ModelRegistry(served, ensembles, settings.default_name)

    async def reload(
        self, models: ModelRegistry, settings: ScorerSettings, try_out: Callable[[AnyModel], Awaitable[None]]
    ) -> tuple[list[str], list[str]]:
        """Apply `settings`; returns the names of changed and of removed models.

        `try_out` calls a new version once. Raises PreconditionFailed if a version cannot be loaded; then nothing has
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
                raise PreconditionFailed(f"the models are unchanged: {error}", reason="RELOAD_FAILED") from error
            changed = [name for name in settings.models if served.get(name) is not models.served.get(name)]
            removed = [name for name in models.served if name not in settings.models]
            old = [version for name, version in models.served.items() if name in changed or name in removed]
            for name, model in settings.models.items():
                before = served[name].scale.digest
                _calibrate(served[name], model)
                if name not in changed and served[name].scale.digest != before:
                    changed.append(name)
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
    ) -> AnyModel | None:
        """A new version of the model, loaded and warm, if one is needed."""
        now = models.served.get(name)
        if model.kind == "vqa":
            new = await self._answers(settings, name, self._versions.get(name, 0) + 1)
            if now is None or new.fingerprint != now.fingerprint:
                return new
            await new.close()
            self._versions[name] = now.info.version
            return None
        if isinstance(self._server, EmbeddedTriton):
            mark = await asyncio.to_thread(describing.quick_fingerprint, name, model)
            if now is not None and mark == now.fingerprint:
                return None
            version = self._versions.get(name, 0) + 1
            self._triton_version += 1
            info = pb.ModelInfo(name=name, architecture=model.source, version=version, state=pb.MODEL_STATE_LOADING)
            models.others.append(info)
            try:
                described = (await asyncio.to_thread(describing.describe_all, {name: model}))[name]
                added = None
                if now is None or described.fingerprint != now.fingerprint:
                    await self._add(self._server.repository, settings, described.card)
                    added = await self._serve(settings, name, self._triton_version, described.fingerprint, version)
            except _WHAT_LOADING_RAISES as error:
                info.state, info.error = pb.MODEL_STATE_FAILED, str(error)[:500]
                raise
            models.others.remove(info)
            return added
        # A remote Triton: its operator may have changed the models in its repository.
        told = await self._backend.card(*_triton_names(name, settings, 1))
        mark = await asyncio.to_thread(describing.remote_mark, model)
        if now is not None and (told, mark) == (now.told, now.fingerprint):
            return None
        return await self._serve(settings, name, 1, mark, self._versions.get(name, 0) + 1)

    async def _add(self, out: Path, settings: ScorerSettings, card: ModelCard) -> None:
        names = _triton_names(card.name, settings, self._triton_version)
        try:
            self._write(out, settings, card, names)
            for triton_name in names:
                await self._backend.load(triton_name)
        except BaseException:
            for triton_name in names:
                await self._let_go(triton_name)
            raise

    async def _serve(
        self, settings: ScorerSettings, name: str, triton_version: int, mark: str, version: int = 1
    ) -> AnyModel:
        """The version of a model in Triton, ready for requests."""
        self._versions[name] = version
        embedded = isinstance(self._server, EmbeddedTriton)
        assembly = Assembly(settings, self._backend, embedded)
        names = _triton_names(name, settings, triton_version)
        told = await self._backend.card(*names)
        make = assembly.clip if told.embedding_size else assembly.joint
        return await make(name, names, told, mark, version)

    async def _answers(self, settings: ScorerSettings, name: str, version: int = 1) -> AnyModel:
        """A model that a sampler answers. Raises the errors of connecting, which name the model."""
        with describing.naming(name):
            speaker = await language_model(settings.models[name])
        self._versions[name] = version
        mark = _answering_mark(settings.models[name], speaker)
        embedded = isinstance(self._server, EmbeddedTriton)
        return Assembly(settings, self._backend, embedded).answers(name, speaker, mark, version)

    def _drain(self, models: ModelRegistry, model: AnyModel) -> None:
        model.info.state = pb.MODEL_STATE_DRAINING
        model.info.is_default = False
        models.others.append(model.info)
        task = asyncio.create_task(self._retire(models, model))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _retire(self, models: ModelRegistry, model: AnyModel) -> None:
        await model.drained(self._settings.reload.drain_seconds)
        await model.close()
        still_there = [served.triton_names for served in models.served.values()]
        if isinstance(self._server, EmbeddedTriton) and model.triton_names not in still_there:
            for name in model.triton_names:
                await self._let_go(name)
        if model.info in models.others:
            models.others.remove(model.info)
        logger.info("a version of a model was unloaded", extra={"model": model.name, "version": model.info.version})

    async def _let_go(self, triton_name: str) -> None:
        """Take a Triton model out of the repository and out of Triton."""
        assert isinstance(self._server, EmbeddedTriton)
        try:
            await self._backend.unload(triton_name)
        except (ValueError, SightlineError) as error:  # a restarting Triton will not load it again
            logger.warning("triton did not unload a model", extra={"model": triton_name, "why": str(error)})
        self._written.pop(triton_name, None)
        shutil.rmtree(self._server.repository / triton_name, ignore_errors=True)


def calibration_path(settings: ModelSettings) -> Path | None:
    """The path of the model's calibration file; None for a model without its own directory."""
    if settings.calibration is not None:
        return settings.calibration
    if settings.kind == "vqa":
        return None  # its files are the sampler's
    folder = Path(model_place(settings.source).removeprefix(repository.LOCAL_DIR))
    return folder / calibrations.FILE_NAME if folder.is_dir() else None


def _calibrate(model: AnyModel, settings: ModelSettings) -> None:
    """Give a model its calibration if there is one that fits. Raises ValueError for a broken file."""
    found, why = _calibration(model.info, settings)
    if isinstance(model, JointModel):
        model.scale = model.scale.calibrated(found, why)
    else:
        model.scale = model.scale.calibrated(found, why)


def _calibration(info: pb.ModelInfo, settings: ModelSettings) -> tuple[Calibration | None, str]:
    """The calibration, or the reason why it cannot be used."""
    path = calibration_path(settings)
    if path is None or not path.is_file():
        if settings.calibration is not None:
            raise ValueError(
                f"models.{info.name}.calibration={path} is not a file: name one that `sightline scorer calibrate` wrote"
            )
        return None, ""
    found = calibrations.read(path)
    if found.picture_rule != PICTURE_RULE:
        made = f"rule {found.picture_rule}" if found.picture_rule else "no named rule, as by Sightline 0.1.0"
        logger.warning(
            "a calibration was made with another picture rule: create it again with `sightline scorer calibrate`",
            extra={"model": info.name, "file": str(path), "rule": found.picture_rule},
        )
        why = f" for picture rule {PICTURE_RULE} ({path.name} was made with {made})"
        return None, why
    if (found.weights_digest, found.preprocessing_digest) != (info.weights_digest, info.preprocessing_digest):
        logger.warning("a calibration belongs to other weights", extra={"model": info.name, "file": str(path)})
        return None, f" for these weights ({path.name} was fitted for others)"
    return found, ""


def _tell(model: AnyModel) -> None:
    """Record what a model can do in its info and in the metrics."""
    del model.info.kinds[:]
    model.info.kinds.extend(model.scale.kinds)
    model.info.calibration_digest = model.scale.digest
    info = model.info
    metrics.MODEL_INFO.labels(
        info.name, info.architecture, info.weights_digest, info.preprocessing_digest, info.precision
    ).set(1)
    metrics.MODEL_VERSION.labels(info.name).set(info.version)


def _triton_names(name: str, settings: ScorerSettings, version: int) -> tuple[str, ...]:
    towers = ("joint",) if settings.models[name].kind == "imagereward" else TOWERS
    return tuple(repository.triton_name(tower, name, settings.first_model, version) for tower in towers)


def _answering_mark(settings: ModelSettings, speaker: LanguageModel) -> str:
    facts = [describing.remote_mark(settings), speaker.weights_digest, speaker.question_digest]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
