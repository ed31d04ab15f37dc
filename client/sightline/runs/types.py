"""Results of the trainer's clients: frozen types. Light."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

PictureChange: TypeAlias = Literal["same", "better", "worse"]
RunState: TypeAlias = Literal["queued", "running", "succeeded", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the trainer knows it.

    Attributes:
        id: its name.
        state: "queued", "running", "succeeded", "failed" or "stopped".
        recipe: the recipe's name.
        iteration: the current iteration, from 1; 0 before the first.
        iterations: number in the recipe.
        policy_version: the newest policy of the run.
        error: why it failed; empty if it did not.
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
        done: finished items of the stage.
        total: items of the stage.
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


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Characters `start` to `end` (exclusive) of a text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RunText:
    """A text about a picture.

    Attributes:
        text: the text.
        reward: None if there is none.
        tokens: number of its tokens.
        wrong_spans: where it names objects that are not in the picture, if the dataset knows the truth.
        wrong: these objects.
        missed: objects in the picture that it does not mention.
    """

    text: str
    reward: float | None
    tokens: int
    wrong_spans: tuple[TextSpan, ...]
    wrong: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunPicture:
    """A held-out picture, and two texts about it.

    Attributes:
        prompt_id: its prompt in the dataset.
        image: a small PNG or JPEG; empty if the file no longer exists or the answer would be too large.
        before: the text of the base model, or of the first run.
        after: the text of a policy, or of the second run.
        change: "better", "worse" or "same", by wrong objects, then by reward.
    """

    prompt_id: str
    image: bytes
    before: RunText
    after: RunText
    change: PictureChange


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """A policy of a run.

    Attributes:
        version: its version.
        parent_version: the version that it was trained from; 0 is the base model.
        kind: "lora", "merged" or "full".
        iteration: the iteration that made it.
        manifest_sha256: its manifest's SHA-256 in hexadecimal digits.
    """

    version: int
    parent_version: int
    kind: str
    iteration: int
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class RecipeDifference:
    """A recipe key whose value differs between two runs, with both values as JSON; None if a run has no such key."""

    key: str
    one: str | None
    other: str | None


@dataclass(frozen=True, slots=True)
class MetricChange:
    """A metric of two policies over the same pictures.

    Attributes:
        metric: its name, such as "chair_s".
        one: the first run's value; None if it is not defined.
        other: the second run's value; None if it is not defined.
        change: other - one.
        low: the lower end of its 95 % interval (paired bootstrap over pictures).
        high: the upper end.
        clear: whether the interval excludes 0.
    """

    metric: str
    one: float | None
    other: float | None
    change: float | None
    low: float | None
    high: float | None
    clear: bool


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Two runs.

    Attributes:
        recipe: the keys whose values differ.
        metrics: the last policies' metrics, paired.
        unpaired: why the two cannot be compared; empty if they can.
        pictures: the texts of both last policies.
    """

    recipe: tuple[RecipeDifference, ...]
    metrics: tuple[MetricChange, ...]
    unpaired: str
    pictures: tuple[RunPicture, ...]
