"""What the trainer's clients answer: frozen types. Light."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

RunState: TypeAlias = Literal["queued", "running", "succeeded", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the trainer knows it.

    Attributes:
        id: its name.
        state: "queued", "running", "succeeded", "failed" or "stopped".
        recipe: the recipe's name.
        iteration: the iteration under way, from 1; 0 before the first.
        iterations: how many the recipe asks for.
        policy_version: the newest policy of the run.
        error: why it failed; empty where it did not.
        create_time: when it was started, in UTC.
        update_time: when something last changed, in UTC.
        reason: the error's reason, for programs.
    """

    id: str
    state: RunState
    recipe: str
    iteration: int
    iterations: int
    policy_version: int
    error: str
    create_time: datetime.datetime
    update_time: datetime.datetime
    reason: str


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened in a run.

    Attributes:
        event: its number within the run, from 0.
        time: when, in UTC.
        state: of the run.
        iteration: in which iteration; 0 outside of any.
        stage: in which stage.
        done: things of the stage that are done.
        total: of how many.
        metrics: numbers by name.
        message: in words.
    """

    event: int
    time: datetime.datetime
    state: RunState
    iteration: int
    stage: str
    done: int
    total: int
    metrics: Mapping[str, float]
    message: str
