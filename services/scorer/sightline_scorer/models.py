"""The served models by name: CLIP models with two towers, joint models, and ensembles of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sightline.errors import NotFound, PreconditionFailed
from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer.formulas import KINDS, Scale
from sightline_scorer.joint import JointModel
from sightline_scorer.preprocessing import Preprocessor
from sightline_scorer.settings import EnsembleSettings
from sightline_scorer.tokens import Tokenizer
from sightline_scorer.tower import Tower
from sightline_scorer.triton.card import ModelCard
from sightline_scorer.versions import ModelVersion


@dataclass(eq=False, kw_only=True)
class ServedModel(ModelVersion):
    """One version of a CLIP model."""

    card: ModelCard
    scale: Scale
    preprocess: Preprocessor
    tokenizer: Tokenizer
    image: Tower
    text: Tower

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The image's and the text's."""
        return self.image, self.text


AnyModel: TypeAlias = ServedModel | JointModel


@dataclass(frozen=True)
class Ensemble:
    """A weighted mean of models; the weights sum to 1."""

    name: str
    weights: Mapping[str, float]
    kind: pb.ScoreKind

    @classmethod
    def of(cls, name: str, settings: EnsembleSettings) -> Ensemble:
        """From the settings."""
        total = sum(settings.members.values())
        weights = {model: weight / total for model, weight in settings.members.items()}
        return cls(name, weights, KINDS[settings.kind])


class ModelRegistry:
    """The available models by name. Replaced only as a whole.

    Args:
        served: the version of each model that answers.
        ensembles: by name.
        default: the model for requests that do not name one.
    """

    def __init__(self, served: Mapping[str, AnyModel], ensembles: Mapping[str, Ensemble], default: str) -> None:
        self.others: list[pb.ModelInfo] = []
        """Versions that are loading, draining or failed."""
        self.change(served, ensembles, default)

    def change(self, served: Mapping[str, AnyModel], ensembles: Mapping[str, Ensemble], default: str) -> None:
        """Serve these from now on."""
        self.served = dict(served)
        self.ensembles = dict(ensembles)
        self.default = default
        self._infos = {name: self._ensemble_info(ensemble) for name, ensemble in self.ensembles.items()}
        for name, model in self.served.items():
            model.info.is_default = name == default

    @property
    def names(self) -> list[str]:
        """All available names."""
        return sorted([*self.served, *self.ensembles])

    def find(self, name: str) -> AnyModel | Ensemble:
        """The model or ensemble of that name, the default one for an empty name. Raises NotFound."""
        wanted = name or self.default
        found = self.served.get(wanted) or self.ensembles.get(wanted)
        if found is None:
            raise NotFound(
                f"there is no model {name!r}; known: {', '.join(self.names)}",
                reason="MODEL_NOT_FOUND",
                metadata={"model": name, "known": ",".join(self.names)},
            )
        return found

    def find_model(self, name: str) -> ServedModel:
        """The model of that name that has embeddings. Raises NotFound and PreconditionFailed."""
        found = self.find(name)
        if isinstance(found, Ensemble):
            raise PreconditionFailed(
                f"{found.name!r} is an ensemble, and has no embeddings of its own: ask one of "
                f"{', '.join(found.weights)}",
                reason="MODEL_IS_ENSEMBLE",
            )
        if isinstance(found, JointModel):
            raise PreconditionFailed(
                f"{found.name!r} takes picture and text together, and has no embeddings: ask another model",
                reason="NO_EMBEDDINGS",
            )
        return found

    def members(self, found: AnyModel | Ensemble) -> list[AnyModel]:
        """The models that an answer needs."""
        return [self.served[name] for name in found.weights] if isinstance(found, Ensemble) else [found]

    def info(self, found: AnyModel | Ensemble) -> pb.ModelInfo:
        """Its description in a response."""
        return self._infos[found.name] if isinstance(found, Ensemble) else found.info

    def infos(self) -> list[pb.ModelInfo]:
        """Descriptions of all available models."""
        return [*(model.info for model in self.served.values()), *self._infos.values()]

    def _ensemble_info(self, ensemble: Ensemble) -> pb.ModelInfo:
        members = [self.served[name] for name in ensemble.weights]
        kinds = [kind for kind in KINDS.values() if all(kind in member.scale.kinds for member in members)]
        return pb.ModelInfo(
            name=ensemble.name,
            architecture="ensemble",
            model_kind="ensemble",
            weights_digest=_digest([[m.name, m.info.weights_digest, ensemble.weights[m.name]] for m in members]),
            preprocessing_digest=_digest([[m.name, m.info.preprocessing_digest] for m in members]),
            context_length=min((m.info.context_length for m in members if m.info.context_length), default=0),
            image_size=max(member.info.image_size for member in members),
            is_default=ensemble.name == self.default,
            kinds=kinds,
            calibration_digest=_digest([[m.name, m.info.calibration_digest] for m in members])
            if pb.SCORE_KIND_PERCENTILE in kinds
            else "",
            version=sum(member.info.version for member in members) - len(members) + 1,
            state=pb.MODEL_STATE_READY,
            default_kind=ensemble.kind,
            members=[
                pb.EnsembleMember(
                    model=member.name,
                    weight=ensemble.weights[member.name],
                    weights_digest=member.info.weights_digest,
                    preprocessing_digest=member.info.preprocessing_digest,
                )
                for member in members
            ],
        )


def _digest(facts: list[list[str | float]]) -> str:
    return hashlib.sha256(json.dumps(sorted(facts), separators=(",", ":")).encode()).hexdigest()
