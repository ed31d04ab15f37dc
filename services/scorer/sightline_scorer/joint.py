"""A model that takes a picture and a text together and gives one number: ImageReward, or a language model's P(yes)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sightline_scorer.joint_scale import JointScale
from sightline_scorer.tokens import TextReader, TokenRow
from sightline_scorer.tower import Tower
from sightline_scorer.versions import ModelVersion


@dataclass(eq=False, kw_only=True)
class JointModel(ModelVersion):
    """One version of such a model."""

    scale: JointScale
    texts: TextReader
    picture: Callable[[bytes], Any]
    """The model's input from an encoded picture; called in a thread. Raises InvalidInput."""
    payload: Callable[[Any, TokenRow, str], Any]
    """The tower's input from a picture, a row of tokens and the text."""
    tower: Tower
    """Numbers [1] of pairs, by the digests of picture and text."""
    probe: Callable[[], Awaitable[float]]
    """Calls the model directly with a grey picture, bypassing the tower's cache. Raises a SightlineError."""

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The only one."""
        return (self.tower,)
