"""What happens around TRL's steps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.errors import PreconditionFailed
from transformers import TrainerCallback

from sightline_trainer.dpo.pixels import image_matters
from sightline_trainer.dpo.proof import rows_are_plain
from sightline_trainer.dpo.reference_logprobs import add_reference, self_check
from sightline_trainer.dpo.release import release_reference
from sightline_trainer.dpo.sampled import LIMITS, SampledLogprobs, judge
from sightline_trainer.dpo.saving import load_optimizer
from sightline_trainer.dpo.trainer import FastDPOTrainer, not_finite


class Begin(TrainerCallback):
    """Runs when the model is prepared: checks its outputs, computes the reference's log-probs, restores the optimiser.

    Attributes:
        figures: the checks' measurements.
    """

    def __init__(
        self,
        trainer: FastDPOTrainer,
        report: Callable[[int, int], None],
        *,
        optimizer: Path | None = None,
        sampled: SampledLogprobs | None = None,
        limit: float = LIMITS["float32"],
        at_reference: bool = False,
        extrapolate: float = 0.0,
    ) -> None:
        self.trainer = trainer
        self.report = report
        self.optimizer = optimizer
        self.sampled = sampled
        self.limit = limit
        self.at_reference = at_reference
        self.extrapolate = extrapolate
        self.figures: dict[str, float] = {}
        self.began = time.monotonic()
        self.reference_seconds = 0.0
        self._known = False

    def known(self) -> dict[str, Any]:
        """Its findings as JSON, for an update that resumes."""
        return {
            "figures": self.figures,
            "reference": list(self.trainer.data_collator.reference.items()),
            "reference_seconds": self.reference_seconds,
            "seconds": time.monotonic() - self.began,
        }

    def recall(self, known: dict[str, Any]) -> None:
        """Restore the findings from the update's start."""
        self.figures, self.reference_seconds = known["figures"], known["reference_seconds"]
        self.trainer.data_collator.reference = {pair: tuple(map(tuple, values)) for pair, values in known["reference"]}
        self.began, self._known = time.monotonic() - known["seconds"], True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._known:
            if self.trainer.token_kl is None:  # token_kl runs the reference in each step
                release_reference(self.trainer)
            self.trainer.precompute_ref_logps = True
            return
        self.began = time.monotonic()
        self._try_out()
        if self.optimizer is not None and self.optimizer.exists():
            load_optimizer(self.trainer, self.optimizer)
        apart = add_reference(
            self.trainer,
            self.report,
            sampled=self.sampled,
            at_reference=self.at_reference,
            extrapolate=self.extrapolate,
        )
        if self.sampled is not None:
            self.figures |= judge(apart, self.limit)
        if self.trainer.from_sampler is not None:
            self.figures["reference_from_sampler"] = self.trainer.from_sampler
        self.reference_seconds = time.monotonic() - self.began

    def _try_out(self) -> None:
        """The model's first forward passes.

        Raises:
            PreconditionFailed: MODEL_FAILS_FORWARD if the model raises an error; or a check's own error.
        """
        try:
            if self.trainer.data_collator.sharing is not None:
                self_check(self.trainer)
            self.figures |= rows_are_plain(self.trainer)
            self.figures |= image_matters(self.trainer)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            name = self.trainer.accelerator.unwrap_model(self.trainer.model).config._name_or_path
            raise PreconditionFailed(
                f"the model {name} fails its trial forward: {type(error).__name__}: {error}",
                reason="MODEL_FAILS_FORWARD",
            ) from error


class FiniteGradient(TrainerCallback):
    """Stops at a NaN or infinite gradient; the loss is checked where it is computed."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not math.isfinite(float((logs or {}).get("grad_norm", 0.0))):
            raise not_finite("gradient", state.global_step)


class StepLog(TrainerCallback):
    """Writes each step's numbers as a line of JSON for watchers. A restarted update rewrites the file; a resumed one
    appends to it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(self._before(state.global_step)))

    def _before(self, step: int) -> list[str]:
        """The lines up to a step, for an update that resumes after it."""
        lines = self.path.read_text().splitlines(keepends=True) if step and self.path.exists() else []
        return lines[:step]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        numbers = {name: logs[key] for name, key in STEP_NUMBERS.items() if key in (logs or {})} if logs else {}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, "steps": state.max_steps, **numbers}) + "\n")


STEP_NUMBERS = {
    "loss": "loss",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "chosen_logp": "logps/chosen",
    "rejected_logp": "logps/rejected",
    "grad_norm": "grad_norm",
}
"""Name in the step log -> TRL's name."""


class Progress(TrainerCallback):
    """Reports the finished steps and the total."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(state.global_step, state.max_steps)
