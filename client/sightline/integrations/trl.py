"""Rewards for TRL: GRPOTrainer, RLOOTrainer, OnlineDPOTrainer. Checked against trl 1.16.

    from sightline.integrations.trl import ClipReward

    trainer = GRPOTrainer(model=..., reward_funcs=ClipReward("127.0.0.1:50051"), train_dataset=...)

The dataset has a column `image` or `images` (Pillow pictures, paths, bytes), or its prompts hold the images. A
completion that cannot be scored gets None, which GRPO and RLOO leave out of group statistics and loss. An error that
affects all completions (an unknown model, a refused token) ends the batch. OnlineDPOTrainer turns None into 0 (it sums
with `nansum`): give it `on_failure="raise"`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Unpack

from sightline.channel import Tls, Token
from sightline.errors import InvalidInput, SightlineError
from sightline.integrations.columns import image_of
from sightline.integrations.failures import concerns_every_row, log_failures
from sightline.many import IN_FLIGHT
from sightline.patience import TIMEOUT
from sightline.pictures import image_bytes
from sightline.scorer import ScorerClient
from sightline.scorer.many import Outcome, Pair
from sightline.scorer.wire import ScoreOptions

_ENCODED = 64  # pictures of a call to keep, so that the rows of a group encode theirs once


class ClipReward:
    """A reward function: how well each completion fits its image.

    Args:
        target: the scorer's gRPC target.
        image: column of the images; by default `image`, `images`, or the images in the prompts. A completion with
            several images gets the mean over them.
        text: function from a completion's text to the text to score (to remove a chain of thought, say).
        on_failure: "none" gives None instead of a reward, "raise" raises the error.
        name: its name in TRL's logs.
        tls: see `ScorerClient`.
        token: see `ScorerClient`.
        timeout: seconds for each completion, retries included.
        max_in_flight: number of concurrent requests.
        options: see `ScoreOptions`; the reward is `ScoreResult.value`.
    """

    def __init__(
        self,
        target: str,
        *,
        image: str | None = None,
        text: Callable[[str], str] = str,
        on_failure: Literal["none", "raise"] = "none",
        name: str = "clip_reward",
        tls: Tls | None = None,
        token: str | Token | None = None,
        timeout: float = TIMEOUT,
        max_in_flight: int = IN_FLIGHT,
        **options: Unpack[ScoreOptions],
    ) -> None:
        self.__name__ = name
        self._target, self._tls, self._token = target, tls, token
        self._image, self._text, self._raise = image, text, on_failure == "raise"
        self._timeout, self._max_in_flight, self._options = timeout, max_in_flight, options
        self._client: ScorerClient | None = None
        self._lock = threading.Lock()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        """One reward for each completion, in order; None for a failed one.

        Raises:
            SightlineError: the first failure, with on_failure="raise"; otherwise a failure common to all rows.
        """
        if self._image is not None and self._image not in columns:
            raise InvalidInput(
                f"the dataset has no column {self._image!r}: it has {', '.join(columns)}", reason="COLUMN_MISSING"
            )
        rewards: list[float | None] = []
        errors: list[SightlineError] = []
        for outcome in self._outcomes(prompts, completions, columns):
            if not isinstance(outcome, SightlineError):
                rewards.append(outcome)
                continue
            if self._raise or concerns_every_row(outcome):
                raise outcome
            errors.append(outcome)
            rewards.append(None)
        log_failures(errors, len(rewards))
        if (log_metric := columns.get("log_metric")) is not None and rewards:
            log_metric(f"{self.__name__}/failed", len(errors) / len(rewards))
        return rewards

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a ClipReward holds a connection and cannot be pickled: create it in the process that calls it")

    def _outcomes(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> Iterator[float | SightlineError]:
        """A reward or an error for each completion."""
        encoded = _Encoded()
        pairs: list[Pair] = []
        plans: list[int | SightlineError] = []
        for index, completion in enumerate(completions):
            try:
                text = self._scored_text(completion)
                images = [encoded.image(value) for value in self._images(index, prompts, columns)]
                if not images:
                    raise InvalidInput(
                        "the row has no image: give one in the column image or images, or in the prompt",
                        reason="IMAGE_MISSING",
                    )
                plans.append(len(images))
                pairs.extend((image, [text]) for image in images)
            except SightlineError as error:
                plans.append(error)
        scored = self._connected().score_many(
            pairs, timeout=self._timeout, max_in_flight=self._max_in_flight, **self._options
        )
        for plan in plans:
            yield plan if isinstance(plan, SightlineError) else _mean([next(scored) for _ in range(plan)])

    def _scored_text(self, completion: Any) -> str:
        try:
            return self._text(_text_of(completion))
        except SightlineError:
            raise
        except Exception as error:  # a caller's function on a model's output: it may raise anything
            raise InvalidInput(
                f"text() failed on the completion: {type(error).__name__}: {error}", reason="TEXT_FUNCTION_FAILED"
            ) from error

    def _images(self, index: int, prompts: Sequence[Any], columns: Mapping[str, Any]) -> list[Any]:
        names = ("images", "image") if self._image is None else (self._image,)
        for name in names:
            if columns.get(name) is not None:
                value = _row(columns[name], name, index)
                return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
        parts = [part for message in _messages(_row(prompts, "prompts", index)) for part in _parts(message)]
        return [part for part in parts if part.get("type") in ("image", "image_url")]

    def _connected(self) -> ScorerClient:
        with self._lock:
            if self._client is None:
                self._client = ScorerClient(self._target, tls=self._tls, token=self._token)
            return self._client


def _mean(outcomes: Sequence[Outcome]) -> float | SightlineError:
    values = []
    for outcome in outcomes:
        if isinstance(outcome, SightlineError):
            return outcome
        values.append(float(outcome.value[0]))
    return sum(values) / len(values)


class _Encoded:
    """The files of the most recent pictures: the rows of a group hold the same picture.

    A picture is kept as long as its file, since the id of a deleted one may become another picture's.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Any, bytes]] = {}

    def image(self, value: Any) -> Any:
        """The image in a row's field, as a client accepts it. Raises InvalidInput."""
        if isinstance(value, Mapping) and isinstance(value.get("image"), Mapping):
            value = value["image"]
        picture = value["image"] if isinstance(value, Mapping) and value.get("image") is not None else value
        if not hasattr(picture, "save"):
            return image_of(picture)
        if id(picture) not in self._held:
            content = image_bytes(picture)
            if len(self._held) >= _ENCODED:
                del self._held[next(iter(self._held))]
            self._held[id(picture)] = picture, content
        return self._held[id(picture)][1]


def _row(column: Any, name: str, index: int) -> Any:
    """A column's value in a row. Raises InvalidInput if the column is too short or the value cannot be read."""
    try:
        return column[index]
    except IndexError:
        raise InvalidInput(
            f"{name} has no row {index}: it must be as long as the completions", reason="COLUMN_TOO_SHORT"
        ) from None
    except Exception as error:  # columns that decode on access raise whatever their decoder raises
        raise InvalidInput(
            f"row {index} of {name} cannot be read: {type(error).__name__}: {error}", reason="ROW_UNREADABLE"
        ) from error


def _text_of(completion: Any) -> str:
    """The text of a completion: a string, or the assistant's messages."""
    if isinstance(completion, str):
        return completion
    spoken = []
    for message in _messages(completion):
        if message.get("role") == "assistant":
            content = message.get("content")
            if isinstance(content, str):
                spoken.append(content)
            spoken.extend(str(part["text"]) for part in _parts(message) if part.get("type") == "text")
    return "\n".join(spoken)


def _messages(value: Any) -> list[Mapping[str, Any]]:
    return [message for message in value if isinstance(message, Mapping)] if isinstance(value, list | tuple) else []


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list | tuple) else []
