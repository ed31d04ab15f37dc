"""Candidates: responses that may become the chosen or the rejected side of a pair.

Each source is a part with a registry name. They run in this order, and each sees the candidates of those before it.
"""

from collections.abc import Mapping
from typing import Final

from sightline_trainer.candidates.asked import Asked
from sightline_trainer.candidates.buffer import Buffer
from sightline_trainer.candidates.injected import Injected
from sightline_trainer.candidates.models import OtherModels
from sightline_trainer.candidates.noised_image import NoisedImage
from sightline_trainer.candidates.policy import PolicySamples
from sightline_trainer.candidates.question_answer import QuestionAnswer
from sightline_trainer.candidates.reference import Reference
from sightline_trainer.candidates.segment import Segment
from sightline_trainer.candidates.sentence_beams import SentenceBeams
from sightline_trainer.candidates.source import CandidatePart

CANDIDATES: Final[Mapping[str, type[CandidatePart]]] = {
    "policy": PolicySamples,
    "sentence_beams": SentenceBeams,
    "reference": Reference,
    "noised_image": NoisedImage,
    "injected": Injected,
    "segment": Segment,
    "asked": Asked,
    "models": OtherModels,
    "question_answer": QuestionAnswer,
    "buffer": Buffer,
}
"""Sources by name."""
