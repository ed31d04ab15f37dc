"""Pairs: which candidates are compared, and which pairs are worth learning. Filters and rules are parts."""

from collections.abc import Mapping
from typing import Final

from sightline_trainer.pairs.filter import FilterPart
from sightline_trainer.pairs.filters import Degenerate, Duplicates, Finished, Gap, GenericQuestion, Lengths, ScoreFloor
from sightline_trainer.pairs.image_contrast import ImageContrast
from sightline_trainer.pairs.rule import RulePart
from sightline_trainer.pairs.rules import (
    AllPairs,
    BestWorst,
    EachGood,
    IthBestIthWorst,
    ReferenceAgainstRejected,
    TopBottom,
)
from sightline_trainer.pairs.text_in_image import TextInImage

FILTERS: Final[Mapping[str, type[FilterPart]]] = {
    "text_in_image": TextInImage,
    "finished": Finished,
    "length": Lengths,
    "score": ScoreFloor,
    "degenerate": Degenerate,
    "generic_question": GenericQuestion,
    "duplicates": Duplicates,
    "gap": Gap,
}
"""Filters by name, in the order in which they are applied; the first fault counts."""

RULES: Final[Mapping[str, type[RulePart]]] = {
    "best_worst": BestWorst,
    "ith_best_ith_worst": IthBestIthWorst,
    "reference_against_rejected": ReferenceAgainstRejected,
    "all_pairs": AllPairs,
    "top_bottom": TopBottom,
    "each_good": EachGood,
    "image_contrast": ImageContrast,
}
"""Rules by name."""
