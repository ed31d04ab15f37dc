"""Settings of method-specific parts of the update, without torch: views, token weights, guidance, references."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from sightline_chassis.settings import Section


class View(Section):
    """How a picture is shown to a row that should see less of it.

    The same picture gets the same view in all passes of an update, since the reference's log-probs are computed once.
    """

    kind: Literal["blank", "diffusion", "pixel", "crop"] = Field(
        "blank",
        description="blank: zeros after the processor, the mean picture (V-DPO). diffusion: Gaussian noise on the "
        "normalised pixels (CHiP, VCD). pixel: the same noise on pixels in [0, 1], clamped (POVID). crop: a small "
        "piece, enlarged to the picture's size (mDPO).",
    )
    step: int = Field(500, ge=0, le=999, description="Diffusion step of diffusion and pixel (CHiP 500).")
    scale: tuple[float, float] = Field(
        (0.01, 0.2), description="crop: minimum and maximum share of the picture's area (mDPO's)."
    )
    seed: int = Field(0, ge=0, description="Seed of noise and crops, with the picture and the update's seed.")

    @model_validator(mode="after")
    def _a_share(self) -> Self:
        least, most = self.scale
        if not 0.0 < least <= most <= 1.0:
            raise ValueError(f"scale is {least}, {most}; it must be two shares of an area, the smaller one first")
        return self


class TokenWeights(Section):
    """How much each token of a response counts, in the sums of policy and reference alike."""

    by: Literal["none", "difference", "suffix", "sentence"] = Field(
        "none",
        description="none: all count 1. difference: tokens outside of runs that both sides of a pair share weigh "
        "`changed`, the others `shared` (CHiP's segments). suffix: the same, where all after the first different token "
        "is changed (V-DPO). sentence: changed are the chosen side's sentences with a score of at least `bound`, and "
        "the rejected side's below it; a side without scores by sentence counts 1.",
    )
    changed: float = Field(4.0, ge=0.0, description="Weight of changed tokens (CHiP's code 4).")
    shared: float = Field(1.0, ge=0.0, description="Weight of tokens that both sides have; 0 leaves them out.")
    run: int = Field(
        3, ge=1, description="difference: shortest run of equal tokens that counts as shared (CHiP's code 3)."
    )

    bound: float = Field(
        0.5, description="sentence: minimum score of a good sentence, on the scale of the term that scores it."
    )

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if not self.changed and not self.shared:
            raise ValueError("changed and shared are both 0, so nothing would be trained")
        return self


class Guidance(Section):
    """V-DPO: both sides' log-probs with the picture, minus a share of those without it."""

    scale: float = Field(
        1.0, ge=1.0, le=10.0, description="g in g lp(picture) - (g - 1) lp(view); 1: no guidance and no extra rows."
    )
    view: View = Field(default_factory=View, description="What replaces the picture; V-DPO uses blank.")


Tie = Literal["base", "previous", "ema"]


def _base() -> dict[Tie, float]:
    return {"base": 1.0}


class References(Section):
    """The reference models. In a run's first iteration, all of them are the base model."""

    of: dict[Tie, float] = Field(
        default_factory=_base,
        description="base: the base model. previous: the policy that the update starts from (CSR, SELM, SPA). ema: the "
        "moving average of the run's policies (SAPO). Several with their shares are MRPO's one virtual reference.",
    )
    decay: float = Field(0.5, gt=0.0, le=0.99, description="ema: share of the average so far (SAPO 0.5).")
    within: float | None = Field(
        None,
        gt=0.0,
        description=(
            "With several references: keep the others' log-probs within this many nats of the first "
            "one's; null: no limit."
        ),
    )
    adaptive: bool = Field(
        False, description=("With several references: weight each by how well it separates the sides of a pair (MRPO).")
    )
    from_sampler: bool = Field(
        False,
        description=(
            "Where the policy that sampled is the reference (base in a run's first iteration, previous in all), take "
            "the sampler's log-probs of a pair's sides in place of a forward pass. One prompt of 16 is still computed "
            "and compared, and all are if one differs by over 0.001 nats a token. Needs dpo.dtype float32."
        ),
    )

    @model_validator(mode="after")
    def _tied(self) -> Self:
        if not self.of or any(not 0.0 < share < float("inf") for share in self.of.values()):
            raise ValueError(f"of is {self.of}; it must name references with shares above 0")
        if len(self.of) == 1 and (self.adaptive or self.within is not None):
            raise ValueError("adaptive and within need several references, but of names one")
        return self


class Doubt(Section):
    """cdpo: which pairs are treated as swapped, and how strongly (SPA's self-refinement)."""

    share: float = Field(0.1, gt=0.0, lt=1.0, description="Share of pairs, those with the smallest D (SPA 10 %).")
    value: float = Field(0.1, gt=0.0, lt=0.5, description="z, the probability that such a pair is swapped (SPA 0.1).")
    after: float = Field(0.2, ge=0.0, lt=1.0, description="Share of steps before any pair is treated so (SPA 20 %).")
