"""Measure an update of LLaVA-1.5-7B's shape on a base in 4 bits, as a recipe sets it: pairs/s and peak memory.

The weights are random, but take the whole path: a checkpoint on disk, `quantization: nf4`, the update's own loader.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import report
import torch
import update
from sightline_trainer.dpo.callbacks import Begin
from sightline_trainer.dpo.setup import make_trainer


def work(to: report.Report) -> None:
    """Write the checkpoint, load it in 4 bits, and train some steps."""
    with tempfile.TemporaryDirectory(prefix="sightline-gpu-", dir=update.roomy()) as directory:
        scratch = Path(directory)
        job = update.Job(to, scratch, pairs=2 if to.dry else 8, prompts=2 if to.dry else 8, dtype=to.dtype)
        whole = job.checkpoint()
        for arm in ("nf4", "whole") if to.dry else ("nf4",):
            with to.part(f"qlora_{arm}"):
                _measured(to, job, whole, arm)


def _measured(to: report.Report, job: update.Job, model: Path, arm: str) -> None:
    recipe = job.recipe(shared=True, checkpointing=True)
    recipe = recipe.model_copy(update={"model": str(model), "quantization": arm if arm == "nf4" else None})
    began = time.monotonic()
    trainer = make_trainer(recipe, job.pairs, previous=None, work=job.scratch / arm, seed=0)
    loaded = time.monotonic() - began
    weights = torch.cuda.memory_allocated() / 2**30 if to.device == "cuda" else 0.0
    timed, begin = update._Timed(), Begin(trainer, lambda done, total: None)
    for callback in (begin, timed):
        trainer.add_callback(callback)
    trainer.train()
    peak = torch.cuda.max_memory_allocated() / 2**30 if to.device == "cuda" else 0.0
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    to.row(
        f"qlora_update_{arm}", job.count / timed.step(), "pairs/s", pairs=job.count, seconds=round(timed.step(), 4),
        loaded_seconds=round(loaded, 1), weights_gib=round(weights, 2), peak_gib=round(peak, 2),
        loss=losses[:1] + losses[-1:],
    )  # fmt: skip


if __name__ == "__main__":
    report.run("qlora", work)
