"""The models that are served: each version with its two towers, and ensembles over them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sightline.errors import NotFound, PreconditionFailed
from sightline.scorer.v1 import scorer_pb2 as pb

from sightline_scorer.formulas import KINDS, Scale
from sightline_scorer.preprocessing import Preprocessor
from sightline_scorer.settings import EnsembleSettings
from sightline_scorer.tokens import Tokenizer
from sightline_scorer.tower import Tower
from sightline_scorer.triton.card import ModelCard


@dataclass(eq=False)
class ServedModel:
    """One version of a model."""

    card: ModelCard
    info: pb.ModelInfo
    scale: Scale
    preprocess: Preprocessor
    tokenizer: Tokenizer
    image: Tower
    text: Tower
    triton_names: tuple[str, str]
    """Its image tower and its text tower in Triton."""
    fingerprint: str
    """Changes with anything that makes another version of it."""
    in_use: int = 0
    """Requests that have it."""
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """What callers ask for."""
        return self.card.name

    @contextlib.contextmanager
    def used(self) -> Iterator[ServedModel]:
        """A request has this version until it ends, also when another one takes over meanwhile."""
        self.in_use += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self.in_use -= 1
            if self.in_use == 0:
                self._idle.set()

    async def drained(self, seconds: float) -> None:
        """Return when no request has it, or after so many seconds."""
        if self.in_use:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)

    async def close(self) -> None:
        """Let its towers go."""
        await self.image.close()
        await self.text.close()


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
    """What can be asked for, by name. Changed only as a whole.

    Args:
        served: the version of each model that answers.
        ensembles: by name.
        default: the name of requests that name none.
    """

    def __init__(self, served: Mapping[str, ServedModel], ensembles: Mapping[str, Ensemble], default: str) -> None:
        self.others: list[pb.ModelInfo] = []
        """Versions that are loading, draining or failed."""
        self.change(served, ensembles, default)

    def change(self, served: Mapping[str, ServedModel], ensembles: Mapping[str, Ensemble], default: str) -> None:
        """From now on, serve these."""
        self.served = dict(served)
        self.ensembles = dict(ensembles)
        self.default = default
        self._infos = {name: self._ensemble_info(ensemble) for name, ensemble in self.ensembles.items()}
        for name, model in self.served.items():
            model.info.is_default = name == default

    @property
    def names(self) -> list[str]:
        """All that can be asked for."""
        return sorted([*self.served, *self.ensembles])

    def find(self, name: str) -> ServedModel | Ensemble:
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
        """The model of that name, no ensemble. Raises NotFound and PreconditionFailed."""
        found = self.find(name)
        if isinstance(found, Ensemble):
            raise PreconditionFailed(
                f"{found.name!r} is an ensemble, and has no embeddings of its own: ask one of "
                f"{', '.join(found.weights)}",
                reason="MODEL_IS_ENSEMBLE",
            )
        return found

    def info(self, found: ServedModel | Ensemble) -> pb.ModelInfo:
        """What a response says of it."""
        return found.info if isinstance(found, ServedModel) else self._infos[found.name]

    def infos(self) -> list[pb.ModelInfo]:
        """Of all that can be asked for."""
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
            context_length=min(member.info.context_length for member in members),
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
