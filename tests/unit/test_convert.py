"""One converter between dataclasses and messages: there and back for every type that exists on both sides."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from sightline.convert import enum_name, enum_numbers, from_message, to_message
from sightline.runs.types import Run, RunEvent
from sightline.runs.v1 import trainer_pb2
from sightline.sampler import types
from sightline.sampler.params import SamplingParams
from sightline.sampler.v1 import sampler_pb2
from sightline.scorer.types import Limits, ModelInfo, Models, PartScore, Timing
from sightline.scorer.v1 import scorer_pb2

ARRIVAL = types.Arrival(True, "", 1, 2, 3, 0.5, None, 0.9, 0.125, 0.25, 0.5, None, 0.0, "local")
POLICY = types.PolicyInfo(2, "lora", "active", "d", "b", 1, "/p", "run", 3, 4, 5, ARRIVAL)
CAPABILITIES = types.Capabilities(
    "local", "m", "both", "float32", True, True, "hot", "none", True, False, 8, 64, 1 << 40, 9, True, True,
    frozenset({"top_k", "beams"}), True,
)  # fmt: skip
PAIRS: list[tuple[Any, Any]] = [
    (ARRIVAL, sampler_pb2.Arrival),
    (POLICY, sampler_pb2.PolicyInfo),
    (dataclasses.replace(POLICY, arrival=None), sampler_pb2.PolicyInfo),
    (CAPABILITIES, sampler_pb2.Capabilities),
    (types.Policies((POLICY,), CAPABILITIES, 7, POLICY), sampler_pb2.ListPoliciesResponse),
    (types.Summary(3, "p", 1, "local", 0.5), sampler_pb2.SampleSummary),
    (SamplingParams(), sampler_pb2.SamplingParams),
    (SamplingParams(0.5, 0.5, 3, 4, 0.25, 1.5, ("a", "b"), types.Beams(2), types.Blank()), sampler_pb2.SamplingParams),
    (SamplingParams(distortion=types.Crop(0.25, 0.5, 3)), sampler_pb2.SamplingParams),
    (SamplingParams(distortion=types.PixelNoise(1, official=True)), sampler_pb2.SamplingParams),
    (SamplingParams(guidance=types.Contrast(types.Blur(2), 0.5, 0.25)), sampler_pb2.SamplingParams),
    (SamplingParams(guidance=types.ImageFree(2)), sampler_pb2.SamplingParams),
    (SamplingParams(guidance=types.Prompted("p", 0.5), continue_from=(3, 0)), sampler_pb2.SamplingParams),
]


@pytest.mark.parametrize(("value", "message"), PAIRS)
def test_what_travels_comes_back(value: Any, message: Any) -> None:
    sent = message.FromString(to_message(value, message).SerializeToString())
    assert from_message(sent, type(value)) == value


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (types.Arrival, sampler_pb2.Arrival),
        (types.Capabilities, sampler_pb2.Capabilities),
        (types.PolicyInfo, sampler_pb2.PolicyInfo),
        (types.Policies, sampler_pb2.ListPoliciesResponse),
        (types.TokenScores, sampler_pb2.ScoreTokensResponse),
        (SamplingParams, sampler_pb2.SamplingParams),
        (ModelInfo, scorer_pb2.ModelInfo),
        (Models, scorer_pb2.ListModelsResponse),
        (Limits, scorer_pb2.Limits),
        (PartScore, scorer_pb2.PartScore),
        (Timing, scorer_pb2.Timing),
        (Run, trainer_pb2.Run),
        (RunEvent, trainer_pb2.WatchRunResponse),
    ],
)
def test_a_type_has_the_fields_of_its_message(kind: Any, message: Any) -> None:
    assert {field.name for field in dataclasses.fields(kind)} == set(message.DESCRIPTOR.fields_by_name)


def test_arrays_are_of_the_annotated_type() -> None:
    scores = from_message(sampler_pb2.ScoreTokensResponse(logprobs=[-1, -0.5], policy_version=3), types.TokenScores)
    assert scores.logprobs.dtype == np.float32
    assert scores.logprobs.tolist() == [-1, -0.5]
    assert to_message(scores, sampler_pb2.ScoreTokensResponse).logprobs == [-1, -0.5]


def test_what_is_absent_takes_its_default() -> None:
    assert from_message(sampler_pb2.SamplingParams(), SamplingParams) == SamplingParams()


def test_a_newer_service_may_know_more() -> None:
    model = from_message(scorer_pb2.ModelInfo(kinds=[1, 2, 77], default_kind=1), ModelInfo)  # type: ignore[list-item]
    assert model.kinds == ("cosine", "clip_score", "kind_77")
    assert enum_name(scorer_pb2.ScoreKind.DESCRIPTOR, 2) == "clip_score"
    assert "unspecified" not in enum_numbers(scorer_pb2.ScoreKind.DESCRIPTOR)


@pytest.mark.parametrize(
    ("value", "error", "found"),
    [
        (SamplingParams(top_k=-1), ValueError, "range"),
        (SamplingParams(distortion="blur"), TypeError, "'blur' is not a distortion"),  # type: ignore[arg-type]
        (SamplingParams(temperature="hot"), TypeError, "temperature|real number|float"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_is_refused(value: Any, error: type[Exception], found: str) -> None:
    with pytest.raises(error, match=found):
        to_message(value, sampler_pb2.SamplingParams)


def test_a_union_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="Distortion does not set kind"):
        from_message(sampler_pb2.SamplingParams(distortion={}), SamplingParams)
