"""What requests charge to their team's limits per minute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sightline.sampler.v1 import sampler_pb2 as pb
from sightline_chassis.quota import Cost

_SERVICE = "sightline_sampler.v1.SamplerService"


def of_sample(request: pb.SampleRequest) -> Cost:
    """One text for each requested candidate, and the images."""
    return Cost(texts=request.num_candidates, images=_images(request))


def of_score_tokens(request: pb.ScoreTokensRequest) -> Cost:
    """One text, and the images."""
    return Cost(texts=1, images=_images(request))


def _images(request: pb.SampleRequest | pb.ScoreTokensRequest) -> int:
    in_turns = sum(part.HasField("image") for turn in request.turns for part in turn.parts)
    return int(request.HasField("image")) + in_turns


COSTS: Mapping[str, Callable[[Any], Cost]] = {
    f"{_SERVICE}/Sample": of_sample,
    f"{_SERVICE}/ScoreTokens": of_score_tokens,
}
