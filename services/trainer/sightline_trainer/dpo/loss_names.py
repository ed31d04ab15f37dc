"""Names of the losses and their impossible combinations, known without torch, so that a recipe is refused at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final

TRL: Final = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
POVID: Final = ("povid_paper", "povid_code")
OWN: Final = ("image", "image_joint", "anchor", "optimism", "cdpo", "rpo")
"""Our own losses; `own_losses.py` explains them."""
NAMES: Final = TRL + POVID + OWN
CHOSEN_AT_VIEW: Final = "chosen_at_view"
OWN_RESPONSE: Final = "own"
"""Role of the column `own_ids`: what the policy sampled for the prompt."""
EXTRA_ROWS: Final[Mapping[str, str]] = {
    "image": CHOSEN_AT_VIEW,
    "image_joint": CHOSEN_AT_VIEW,
    "optimism": OWN_RESPONSE,
}
"""Losses that need the log-probs of a further row of each pair, and its role (`extra_rows.py`)."""
# Functions of the difference between both sides' rewards, for which a margin per pair is meaningful.
_WITH_MARGIN: Final = {"sigmoid", "hinge", "robust", "exo_pair", "discopop", "povid_code", "image_joint", "cdpo"}
# These ignore a margin and may be combined with one.
_BESIDE_MARGIN: Final = {"sft", "image", "anchor", "optimism"}
# They sort the batch: a weight per pair would land on another pair.
_SORTING: Final = {"aot", "aot_unpaired"}
WHOLE: Final = frozenset({*_SORTING, "rpo", "cdpo"})
"""Losses that compare the pairs of a batch with each other, so that a batch cannot be split."""
# The reference's log Z only cancels in the difference of both sides (TRL refuses the others); povid_code is sigmoid.
_WITH_DIVERGENCE: Final = {
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft", "povid_code",
}  # fmt: skip


def loss_fault(
    losses: Mapping[str, float],
    *,
    margins: bool,
    weights: bool,
    label_smoothing: float,
    divergence: str = "reverse_kl",
    wpo: bool = False,
    token_kl: bool = False,
    reshaped: bool = False,
    opened: Collection[str] = (),
) -> str | None:
    """Why these losses can't be trained on together, or None.

    Args:
        margins, weights: whether pairs have a margin or weight that is used.
        divergence: dpo.f_divergence.
        wpo: whether WPO's weights multiply them.
        token_kl: whether token KLs are subtracted from the difference of both sides.
        reshaped: whether tokens are weighted or guided.
        opened: the third-party losses among them; each returns one value for each pair.
    """
    names, ours = set(losses), {"povid_paper", *OWN, *opened}

    def unfit(known: Collection[str]) -> str:
        return ", ".join(sorted(names - set(known)))

    if not losses or unfit((*NAMES, *opened)):
        return f"dpo.loss names {unfit((*NAMES, *opened)) or 'nothing'}; known are {', '.join(NAMES)}"
    wrong = [f"{name}: {weight}" for name, weight in losses.items() if not math.isfinite(weight) or weight < 0]
    if wrong or not any(losses.values()):
        return f"dpo.loss has weights that train nothing ({', '.join(wrong) or 'all are 0'}); give numbers above 0"
    for key in ("margin_scale",) * margins + ("token_kl",) * token_kl:
        if not names & _WITH_MARGIN or unfit(_WITH_MARGIN | _BESIDE_MARGIN):
            return (
                f"dpo.{key} works with {', '.join(sorted(_WITH_MARGIN))}, "
                f"not with {unfit(_WITH_MARGIN | _BESIDE_MARGIN) or unfit(_WITH_MARGIN)}"
            )
    if token_kl and divergence != "reverse_kl":
        return f"dpo.token_kl (TDPO) needs the reverse KL, but dpo.f_divergence is {divergence}; remove one of them"
    if reshaped and wpo:
        return "dpo.wpo reads the model's own log-probs, which dpo.token_weights and dpo.guidance change; remove one"
    if weights and names & _SORTING:
        return "the losses aot and aot_unpaired sort the batch; leave out the pairs' `weight` column"
    if wpo and names & {*_SORTING, "sft"}:
        return (
            "dpo.wpo weights each pair, but aot, aot_unpaired and sft have no value for each pair; remove one of them"
        )
    if wpo and names & ours:
        return f"dpo.wpo multiplies only TRL's losses, not {', '.join(sorted(names & ours))}; remove one of them"
    if divergence != "reverse_kl" and unfit(_WITH_DIVERGENCE):
        return (
            f"dpo.f_divergence={divergence} works with {', '.join(sorted(_WITH_DIVERGENCE))}, "
            f"not with {unfit(_WITH_DIVERGENCE)}"
        )
    if opened and names & set(POVID):
        return (
            f"dpo.loss: POVID's losses have two rejected sides per pair, and {', '.join(opened)} has one; use one of "
            "them"
        )
    if "exo_pair" in names and label_smoothing == 0.0:
        return "the loss exo_pair needs dpo.label_smoothing > 0; its paper uses 1e-3"
    if "rpo" in names and names & set(POVID):
        return "dpo.loss: rpo has one rejected side per pair, and POVID's losses have two; use one of them"
    if names == {"optimism"}:
        return "dpo.loss: optimism alone only makes the policy's answers less likely; combine it, as with sigmoid"
    if len(names & set(POVID)) == 2:
        return "dpo.loss has both povid_paper and povid_code, which need different images for y_n; use one"
    return None
