"""Extra rows: further model inputs besides both sides of a pair, for losses that need them.

A batch of B pairs has 2 B rows, chosen first, and then B for each extra row in order. TRL's loss code gets the first 2
B; losses find the others' log-ratios to the reference by their role.
"""

from __future__ import annotations

from dataclasses import dataclass

from sightline_trainer.dpo.guidance import CHOSEN_BLIND, REJECTED_BLIND
from sightline_trainer.dpo.loss_names import CHOSEN_AT_VIEW, EXTRA_ROWS, OWN_RESPONSE
from sightline_trainer.dpo.views import Shown
from sightline_trainer.sections import Dpo


@dataclass(frozen=True)
class ExtraRow:
    """One further row of each pair.

    Attributes:
        role: its name for losses.
        text: the tokens that it uses: chosen, rejected, or the column `<text>_ids`.
        shown: how its picture is shown; None: unchanged.
    """

    role: str
    text: str
    shown: Shown | None = None


def extra_rows(settings: Dpo, seed: int = 0) -> tuple[ExtraRow, ...]:
    """What the losses of an update need, and its guidance.

    Args:
        seed: seed for random views of a picture.
    """
    rows, roles = [], {EXTRA_ROWS[name] for name in settings.loss if name in EXTRA_ROWS}
    if CHOSEN_AT_VIEW in roles:
        rows.append(ExtraRow(CHOSEN_AT_VIEW, "chosen", Shown(settings.view, seed)))
    if OWN_RESPONSE in roles:
        rows.append(ExtraRow(OWN_RESPONSE, OWN_RESPONSE))
    if settings.guidance.scale > 1.0:
        blind = Shown(settings.guidance.view, seed)
        rows += [ExtraRow(CHOSEN_BLIND, "chosen", blind), ExtraRow(REJECTED_BLIND, "rejected", blind)]
    return tuple(rows)
