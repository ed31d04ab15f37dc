"""Rewards for OpenRLHF by its remote-reward convention. Checked against openrlhf 0.11.2.

    POST /get_reward {"query": [...], "prompts": [...], "labels": [...]}
    -> {"rewards": [...], "scores": [...], "extra_logs": {"scored": [...]}}

Served by `sightline serve scorer-http`; set OpenRLHF's `reward.remote_url` to it. OpenRLHF sends no image, so a row's
label names the image: a data URI, "sha256:<digest>" of an image uploaded before, an http(s) URI that the scorer may
fetch, or JSON {"image": one of these}. The query is the prompt and the response, decoded with special tokens; the
response is the part after the prompt, or after the last `response_after`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sightline.errors import InvalidInput, SightlineError
from sightline.integrations.columns import image_of
from sightline.integrations.failures import FailurePolicy, log_failures
from sightline.scorer.many import Outcome, Pair
from sightline.scorer.wire import Image

_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<(?:pad|bos|eos|unk|image|end_of_turn|start_of_turn)>")


@dataclass(frozen=True)
class Convention:
    """How to read rows.

    Args:
        response_after: the response begins after the last occurrence of this text in the query, such as
            "<|im_start|>assistant\\n"; empty if it begins after the prompt.
    """

    response_after: str = ""

    def pairs(self, query: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> list[Pair | SightlineError]:
        """What to score for each row, or why it cannot be scored. Raises InvalidInput if the lists differ in length."""
        if not len(query) == len(prompts) == len(labels):
            raise InvalidInput(
                f"{len(query)} queries, {len(prompts)} prompts and {len(labels)} labels: give one of each for every "
                f"row",
                reason="ROWS_MISMATCH",
            )
        found: list[Pair | SightlineError] = []
        for row in zip(query, prompts, labels, strict=True):
            try:
                found.append((image_of_label(row[2]), [self.response(row[0], row[1])]))
            except SightlineError as error:
                found.append(error)
        return found

    def response(self, query: str, prompt: str) -> str:
        """The response in a query, without special tokens. Raises InvalidInput if it is unknown."""
        if self.response_after:
            _, marker, response = query.rpartition(self.response_after)
            if not marker:
                raise InvalidInput(
                    f"the query does not contain response_after={self.response_after!r}: set it to the text before the "
                    "response",
                    reason="RESPONSE_NOT_FOUND",
                )
        elif query.startswith(prompt):
            response = query[len(prompt) :]
        else:
            raise InvalidInput(
                "the query does not begin with the prompt (decoded image tokens change it): set response_after to what "
                "stands before the response in your chat template",
                reason="RESPONSE_NOT_FOUND",
            )
        return _SPECIAL.sub("", response).strip()


def image_of_label(label: Any) -> Image:
    """The image that a label names. Raises InvalidInput."""
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except ValueError as error:
            raise InvalidInput(f"the label is not JSON: {error}", reason="LABEL_MALFORMED") from None
    return image_of(label, files=False)


def answer(outcomes: Sequence[Outcome], policy: FailurePolicy) -> dict[str, Any]:
    """The response body: a reward for each outcome; `extra_logs.scored` is 1.0, or 0.0 for a failure.

    With `drop` the reward is NaN, which Python's JSON supports. With `--algo.dynamic_filtering_enable`, OpenRLHF then
    drops that prompt's group and samples another.

    Raises:
        SightlineError: the first failure, if the policy is to raise; otherwise a failure common to all rows.
    """
    rewards = [
        policy.reward(outcome) if isinstance(outcome, SightlineError) else float(outcome.value[0])
        for outcome in outcomes
    ]
    log_failures([outcome for outcome in outcomes if isinstance(outcome, SightlineError)], len(outcomes))
    scored = [0.0 if isinstance(outcome, SightlineError) else 1.0 for outcome in outcomes]
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"scored": scored}}
