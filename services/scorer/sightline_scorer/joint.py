"""A model that takes a picture and a text together and gives one number: ImageReward, or a language model's yes."""

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
    """What of an encoded picture goes to the model; called in a thread. Raises InvalidInput."""
    payload: Callable[[Any, TokenRow, str], Any]
    """What the tower gets of a picture, a row of tokens and the text."""
    tower: Tower
    """Numbers [1] of pairs, under the picture's digest and the text's."""
    probe: Callable[[], Awaitable[float]]
    """Asks the model itself about a grey picture, past the tower. Raises a SightlineError."""

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The only one."""
        return (self.tower,)
