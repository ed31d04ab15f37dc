"""What requests charge to their team's limits per minute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_chassis.quota import Cost

_SERVICE = "sightline_scorer.v1.ScorerService"


def of_score(request: pb.ScoreRequest) -> Cost:
    """One image (even if its embedding is cached), its texts and phrases; the same for each item of a stream."""
    return Cost(texts=len(request.texts) + sum(len(some.phrases) for some in request.phrases), images=1)


def of_embed(request: pb.EmbedRequest) -> Cost:
    """The request's images and texts."""
    return Cost(texts=len(request.texts), images=len(request.images))


COSTS: Mapping[str, Callable[[Any], Cost]] = {f"{_SERVICE}/Score": of_score, f"{_SERVICE}/Embed": of_embed}
