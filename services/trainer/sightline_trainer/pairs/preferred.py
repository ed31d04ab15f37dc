"""How chosen texts differ from rejected ones in words and length, for pairs that the policy wrote.

Both sides come from one policy, so they differ only in what was rewarded. A better description uses the same words; a
reward that favours length, a word or a form of sentence shows up here before the policy follows it. Sides from
different writers differ in style anyway, and are left out.
"""

from __future__ import annotations

from pathlib import Path

from sightline_trainer.evaluation.wording import shift
from sightline_trainer.files import read_table

_COLUMNS = ["chosen", "rejected", "chosen_source", "rejected_source"]
_FEWEST = 32
"""With fewer pairs, no value is computed."""


def preferred(pairs: Path) -> dict[str, float]:
    """`pairs_length`: mean words of chosen over rejected sides, minus 1; `pairs_wording`: the difference between the
    shares of texts with one phrase. Empty if too few pairs are from the policy alone.

    Args:
        pairs: an iteration's pairs.parquet.
    """
    rows = read_table(pairs, columns=_COLUMNS).to_pylist() if pairs.exists() else []
    own = [row for row in rows if row["chosen_source"] == row["rejected_source"] == "policy"]
    chosen, rejected = ([row[side][0]["content"] for row in own] for side in ("chosen", "rejected"))
    words = [sum(len(text.split()) for text in side) for side in (chosen, rejected)]
    if len(own) < _FEWEST or not words[1]:
        return {}
    apart = shift(rejected, chosen)
    return {"pairs_length": words[0] / words[1] - 1, "pairs_wording": 0.0 if apart is None else apart.size}
