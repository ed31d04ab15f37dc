"""Checkpoints inside an update: a killed update resumes from the last one and gives the same result.

transformers writes weights, optimiser, schedule, RNG and the position among the batches. We add what the update found
before its first step (proofs, log-probs of the reference and of the starting policy) and what it counted since. A
checkpoint is valid once its `whole.json` exists, which names its update; then the previous one is deleted, so there are
at most two. The starting policy is loaded first and the trained weights are put over it, since an update is measured by
its change.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOTrainer

from sightline_trainer.dpo.setup import load_adapter, load_policy
from sightline_trainer.dpo.support import base_of
from sightline_trainer.dpo.trainer import FastDPOTrainer
from sightline_trainer.files import sync_directory
from sightline_trainer.recipe import Recipe

_WHOLE = "whole.json"
_FREE = {"checkpoint_seconds", "launch", "report_to", "image_cache_mib", "batch_tokens"}
_MODEL = ("model", "quantization", "chat_template", "min_pixels", "max_pixels", "iterations")


def name_of(recipe: Recipe, pairs: Dataset, *, previous: Path | None, seed: int, iteration: int, world: int) -> str:
    """SHA-256 of everything that determines an update's result."""
    tree = recipe.model_dump(mode="json")
    kept = [name for name in pairs.column_names if not name.endswith("images")]
    told = {
        "dpo": {key: value for key, value in tree["dpo"].items() if key not in _FREE},
        "model": [tree[key] for key in _MODEL],
        "update": [seed, iteration, world, str(previous and previous.name)],
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for row in pairs.select_columns(kept):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    for file in sorted(previous.glob("*.safetensors")) if previous is not None else ():
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def last(work: Path, name: str) -> Path | None:
    """The newest complete checkpoint of the update with this name."""
    found = [place for place in work.glob("checkpoint-*") if _name(place) == name]
    return max(found, key=lambda place: int(place.name.rpartition("-")[2]), default=None)


def forget(work: Path, *, but: Path | None = None) -> None:
    """Remove all checkpoints but one."""
    for place in work.glob("checkpoint-*"):
        if place != but:
            shutil.rmtree(place, ignore_errors=True)


def _name(place: Path) -> str | None:
    try:
        found: str = json.loads((place / _WHOLE).read_text())["update"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _load(trainer: FastDPOTrainer, place: Path) -> None:
    """Load a checkpoint's weights into the model. transformers' own loader silently skips keys that it stored under
    other names."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:
        DPOTrainer._load_from_checkpoint(trainer, str(place), trainer.model_wrapped)
    elif model is not base_of(model):
        load_adapter(model, place)
    else:
        model.load_state_dict(load_policy(place, "float32").state_dict())


class Checkpoints(TrainerCallback):
    """Writes checkpoints, and restores the last one. Comes after all other callbacks.

    Args:
        name: the update's name.
        seconds: time between two checkpoints; None writes none.
        ours: what to keep beside transformers' files, by name: a function that returns it (for JSON), and one that
            restores it.
        begun: the checkpoint to resume from.
    """

    def __init__(
        self,
        trainer: FastDPOTrainer,
        *,
        name: str,
        seconds: float | None,
        ours: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]],
        begun: Path | None,
    ) -> None:
        self.trainer, self.name, self.seconds, self.ours, self.begun = trainer, name, seconds, ours, begun
        self._due = 0.0

    def restore(self) -> None:
        """Restore what was found before the first step; call it before `train`."""
        if self.begun is None:
            return
        kept = json.loads((self.begun / self._file()).read_text())
        for name, (_, put) in self.ours.items():
            put(kept[name])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the weights over the starting policy's, which other callbacks have seen."""
        if self.begun is not None:
            _load(self.trainer, self.begun)
        self._due = time.monotonic() + (self.seconds or 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Requests a checkpoint when it is due; all processes together."""
        if self.seconds is None or state.global_step >= state.max_steps:
            return
        due = time.monotonic() >= self._due
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:
            due = bool(accelerator.gather(torch.tensor([float(due)], device=accelerator.device)).max())
        control.should_save = control.should_save or due

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks the checkpoint that was just written as valid."""
        place = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        accelerator = self.trainer.accelerator
        (place / self._file()).write_text(json.dumps({name: ask() for name, (ask, _) in self.ours.items()}))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for file in (path for path in place.rglob("*") if path.is_file()):
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            with (place / _WHOLE).open("w") as marker:
                json.dump({"update": self.name}, marker)
                marker.flush()
                os.fsync(marker.fileno())
            sync_directory(place)
            forget(place.parent, but=place)
        accelerator.wait_for_everyone()
        self._due = time.monotonic() + (self.seconds or 0.0)

    def _file(self) -> str:
        return f"ours-{self.trainer.accelerator.process_index}.json"
