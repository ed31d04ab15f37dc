"""Refusal: why one row cannot be used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """A reason in capitals, such as PROMPT_EMPTY, and the sentence for people."""

    reason: str
    message: str
