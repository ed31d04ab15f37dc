"""`image_contrast`: the same text, preferred for its picture over another view of it (V-DPO, CHiP, mDPO).

The rejected side is the chosen text as an answer to the picture under noise, or to a small piece of it, so that the
update learns that the text depends on the picture. For views of normalised pixels, as in those methods, use the loss
`dpo.loss.image` with `dpo.view`; here the view is a picture stored with the pair, and works with every loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from sightline.pictures import write_png
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

from sightline_trainer.pairs.rule import Fault, Picked, RulePart
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.seen_less import cropped, noisy


class ImageContrast(RulePart):
    """The best candidate, and the same text under another view of the picture."""

    among: list[str] = Field(
        default_factory=lambda: ["policy"], description="Sources whose best candidate is used; empty: all."
    )
    view: Literal["noise", "crop"] = Field("noise", description="What the rejected side sees.")
    step: int = Field(900, ge=0, le=999, description="noise: diffusion step, on pixels in [0, 1], clamped.")
    scale: tuple[float, float] = Field((0.01, 0.2), description="crop: minimum and maximum share of the area (mDPO's).")
    seed: int = Field(0, ge=0, description="Seed of noise and crops.")

    def pick(self, group: Sequence[Response], fault: Fault) -> Picked:
        mine = [scored for scored in group if not self.among or scored.source in self.among]
        if not mine:
            return Picked(lacking="too_few")
        # Pair filters compare two texts; here there is only one.
        best = max(mine, key=lambda scored: (scored.reward, -scored.index))
        return Picked([(best, best, self.weight)])

    def rejected_images(self, prompt: Prompt, iteration: int) -> list[bytes]:
        draws = np.random.default_rng(prompt.seed(self.seed, iteration, -5))
        shown = []
        for image in prompt.images:
            picture = decode(image.read_bytes(), ImageLimits())
            view = noisy(picture, self.step, draws) if self.view == "noise" else cropped(picture, self.scale, draws)
            shown.append(write_png(np.asarray(view)))
        return shown
