"""Sends the loop's metrics to the trackers of TRL's update (`dpo.report_to`).

The trackers are transformers' own callbacks (TensorBoard, W&B, trackio, ...), so users set them up as usual:
environment variables, logins, projects. Steps are iterations. Metrics of an evaluation are under `eval/`, those of
other stages under `train/`, as these callbacks sort them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sightline.errors import PreconditionFailed

from sightline_trainer.events import Event

logger = logging.getLogger(__name__)

STAGES = ("pair", "update", "publish", "iteration")
"""Stages whose events have metrics."""


class Tracking:
    """An observer of a run; a context manager that starts and ends the trackers' runs. Without names it does
    nothing."""

    def __init__(self, names: Sequence[str], directory: Path, run: str) -> None:
        """
        Args:
            names: as `report_to` of transformers: tensorboard, wandb, trackio, ...
            directory: where trackers that write files do so.
            run: the run's name there.
        """
        self.names = list(names)
        self.directory = directory
        self.run = run
        self._callbacks: list[Any] = []

    def __enter__(self) -> Tracking:
        """Begin.

        Raises:
            PreconditionFailed: a tracker is unknown or its package is not installed.
        """
        if not self.names:
            return self
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.integrations import get_reporting_integration_callbacks

        try:
            kinds = get_reporting_integration_callbacks(self.names)
            self._callbacks = [kind() for kind in kinds]
            self._arguments = TrainingArguments(
                output_dir=str(self.directory), report_to=self.names, run_name=self.run, use_cpu=True
            )
        except (ValueError, RuntimeError) as error:
            raise PreconditionFailed(f"dpo.report_to: {error}", reason="TRACKER") from error
        self._state = TrainerState(is_world_process_zero=True, is_local_process_zero=True)
        self._control = TrainerControl()
        for callback in self._callbacks:
            callback.on_train_begin(self._arguments, self._state, self._control)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for callback in self._callbacks:
            try:
                callback.on_train_end(self._arguments, self._state, self._control)
            except Exception:  # it does not change how the run ended
                logger.exception("the tracker %s could not be closed", type(callback).__name__)
        self._callbacks = []

    def __call__(self, event: Event) -> None:
        """Report the numbers of an event."""
        # The update itself reports its steps to the tracker.
        if not self._callbacks or event.stage not in STAGES or not event.metrics or event.total:
            return
        self._state.global_step = event.iteration
        stage = "eval" if event.stage == "iteration" else event.stage
        logs = {f"{stage}_{name}": float(value) for name, value in event.metrics.items()}
        for callback in self._callbacks:
            callback.on_log(self._arguments, self._state, self._control, logs=logs)
