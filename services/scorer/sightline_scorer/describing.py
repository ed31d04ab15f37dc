"""Describe models in a separate process, so that the service itself loads neither torch nor a tower.

    service ── names and settings (JSON) ──> child: open_clip loads each model and embeds a picture and a text
            <── cards and fingerprints ──

A card is kept in the user's cache (`$XDG_CACHE_HOME/sightline/cards`), named by the model's settings, the SHA-256 of
its files and the versions that made it. So a service that restarts on the same files loads no model for this.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sightline.errors import PreconditionFailed, SightlineError, first_line

from sightline_scorer import calibration as calibrations
from sightline_scorer import imagereward
from sightline_scorer.released import RELEASED
from sightline_scorer.settings import ModelSettings
from sightline_scorer.triton import repository
from sightline_scorer.triton.card import ModelCard, sha256_of

logger = logging.getLogger(__name__)
_MAKERS = ("open_clip_torch", "torch", "transformers", "timm")
_MOST_KEPT = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """Facts about a model before it is served."""

    card: ModelCard
    fingerprint: str
    """Changes with the model's settings and files, but not with its calibration."""


def describe_all(models: Mapping[str, ModelSettings]) -> dict[str, Description]:
    """The description of each model.

    Raises PreconditionFailed naming the model: MODEL_UNREADABLE, MODEL_FAILS_FORWARD, CHECKPOINT_UNKNOWN.
    """
    found: dict[str, Description] = {}
    for name, settings in models.items():
        mark = quick_fingerprint(name, settings)
        card = _kept(mark) if mark is not None else None
        if mark is not None and card is not None:
            found[name] = Description(dataclasses.replace(card, name=name), mark)
    unknown = {name: settings for name, settings in models.items() if name not in found}
    if unknown:
        found |= _ask_child(unknown)
        for name in unknown:
            _keep(found[name])
    return {name: found[name] for name in models}


def quick_fingerprint(name: str, settings: ModelSettings) -> str | None:
    """The fingerprint if the model's files can be found without open_clip, otherwise None.

    Raises PreconditionFailed MODEL_UNREADABLE naming the model.
    """
    if settings.kind in RELEASED or settings.kind == "imagereward" or settings.source.startswith("hf-hub:"):
        return None
    with naming(name):
        architecture = repository.architecture_of(settings)
        is_file = settings.pretrained is not None and Path(settings.pretrained).is_file()
        return fingerprint(settings) if is_file or architecture.startswith(repository.LOCAL_DIR) else None


def fingerprint(settings: ModelSettings) -> str:
    """Changes with a model's settings and files, but not with its calibration. Raises the errors of finding weights."""
    facts: dict[str, Any] = {"here": remote_mark(settings)}
    if settings.kind == "imagereward":
        facts["weights"] = sha256_of(imagereward.checkpoint(settings.source))
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    architecture = repository.architecture_of(settings)
    weights = repository.find_weights(architecture, settings.pretrained)
    facts["weights"] = sha256_of(weights)
    if architecture.startswith(repository.LOCAL_DIR):
        folder = Path(architecture.removeprefix(repository.LOCAL_DIR))
        files = sorted(file for file in folder.iterdir() if file.is_file() and file.resolve() != weights)
        facts["files"] = {file.name: sha256_of(file) for file in files if file.name != calibrations.FILE_NAME}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def remote_mark(settings: ModelSettings) -> str:
    """As `fingerprint`, for the local files of a model whose towers run elsewhere."""
    facts = {
        "head": "" if settings.head is None else sha256_of(settings.head),
        "settings": settings.model_dump(mode="json", exclude={"calibration"}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn errors of a model's files and code into one sentence that names the model."""
    try:
        yield
    except SightlineError:
        raise
    except pickle.UnpicklingError as error:  # its text advises to run the file's code
        raise PreconditionFailed(
            f"the model {name} cannot be loaded: its weights are damaged, or are something else than tensors",
            reason="MODEL_UNREADABLE",
        ) from error
    except Exception as error:  # open_clip, a weights format or a damaged file may raise anything
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise PreconditionFailed(
            f"the model {name} cannot be loaded: {kind}{first_line(error, 500)}", reason="MODEL_UNREADABLE"
        ) from error


def _ask_child(models: Mapping[str, ModelSettings]) -> dict[str, Description]:
    wanted = {name: settings.model_dump(mode="json", exclude_unset=True) for name, settings in models.items()}
    child = subprocess.run(
        [sys.executable, "-m", "sightline_scorer.describing"], input=json.dumps(wanted), capture_output=True, text=True
    )
    lines = child.stdout.splitlines()  # libraries may print too; the answer is the last line
    if child.returncode or not lines:
        logger.error("a process that describes models ended", extra={"stderr": child.stderr[-4000:]})
        died = f"was killed by signal {-child.returncode}" if child.returncode < 0 else f"ended: {child.stderr[-300:]}"
        raise PreconditionFailed(
            f"the models {', '.join(models)} cannot be loaded: the process that loads them {died}",
            reason="MODEL_UNREADABLE",
        )
    told = json.loads(lines[-1])
    if "error" in told:
        raise PreconditionFailed(told["error"], reason=told["reason"])
    return {
        name: Description(ModelCard.from_json(json.dumps(each["card"])), each["fingerprint"])
        for name, each in told["models"].items()
    }


def _place(mark: str) -> Path:
    versions = []
    for package in _MAKERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    fields = [field.name for field in dataclasses.fields(ModelCard)]
    key = hashlib.sha256(json.dumps([mark, versions, fields]).encode()).hexdigest()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"sightline/cards/{key}.json"


def _kept(mark: str) -> ModelCard | None:
    try:
        card = ModelCard.from_json(_place(mark).read_text())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a user without a home
        return None
    return card if Path(card.weights_path).is_file() else None


def _keep(description: Description) -> None:
    try:
        place = _place(description.fingerprint)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
            file.write(description.card.to_json())
        os.replace(file.name, place)
        old = sorted(place.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[:-_MOST_KEPT]
        for each in old:
            each.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        logger.info("a model's card could not be cached", extra={"why": str(error)})


def main() -> int:
    """Describe the models of stdin, as JSON on stdout."""
    answer: dict[str, object]
    try:
        models = {}
        for name, each in json.load(sys.stdin).items():
            settings = ModelSettings.model_validate(each)
            with naming(name):
                mark = fingerprint(settings)
                card = repository.describe(name, settings)
            models[name] = {"card": dataclasses.asdict(card), "fingerprint": mark}
        answer = {"models": models}
    except SightlineError as error:
        answer = {"error": error.message, "reason": error.reason}
    print("\n" + json.dumps(answer))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
