"""Response: one candidate for a prompt from any source, and its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sightline_trainer.records.refusal import Refusal
from sightline_trainer.records.score import UNSCORED, Score


@dataclass(frozen=True)
class Response:
    """One response.

    `logprobs` are the policy's at temperature 1, one for each of `token_ids`, in nats; empty if the policy did
    not sample it. `seed` gives a sampled candidate again; `policy_version` is the version that sampled its tokens,
    or -1. Candidates with the same `prompt_id` and `prompt` compete with each other.
    """

    prompt_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "eos"
    seed: int = 0
    policy_version: int = -1
    rendered_prompt: str = ""
    prompt: str = ""
    """The user's text that it answers."""
    source: str = "policy"
    """The part that made it."""
    statement: str = ""
    """What a scorer compares with the image; empty: the text itself."""
    images: list[bytes] = field(default_factory=list)
    """The encoded images that it answers to, if they are not the prompt's."""
    fault: Refusal | None = None
    """Why it may not be used; such candidates are dropped before scoring."""
    score: Score = UNSCORED
    """Its score, stored separately in `scores/*.parquet`."""

    @classmethod
    def of(cls, row: Mapping[str, Any], score: Score) -> Response:
        """From a row of `candidates/*.parquet`, also of a run of 0.1.0, whose rows have one `image` or none."""
        values = {name: row[name] for name in CANDIDATE_SCHEMA.names if name in row}
        return cls(**{"images": [row["image"]] if row.get("image") else [], **values}, score=score)

    @property
    def judged_text(self) -> str:
        """The text that a scorer compares with the image."""
        return self.statement or self.text

    @property
    def reward(self) -> float:
        """The reward.

        Raises:
            ValueError: it has no reward; such candidates are dropped before rules see them.
        """
        if self.score.reward is None:
            raise ValueError(f"candidate {self.index} of {self.prompt_id} has no reward")
        return self.score.reward

    def row(self) -> dict[str, Any]:
        """As a row of `candidates/*.parquet`."""
        return {name: getattr(self, name) for name in CANDIDATE_SCHEMA.names}


CANDIDATE_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("policy_version", pa.int64()),
        ("rendered_prompt", pa.string()),
        ("prompt", pa.string()),
        ("source", pa.string()),
        ("statement", pa.string()),
        ("images", pa.list_(pa.binary())),
    ]
)
"""Columns of `candidates/*.parquet`."""
