"""Costs of requests for their team: the declared methods exist, and a request costs what it contains."""

import pytest
from sightline.sampler.v1 import sampler_pb2
from sightline.scorer.v1 import scorer_pb2
from sightline_chassis.quota import Cost
from sightline_sampler import costs as sampler
from sightline_scorer import costs as scorer


@pytest.mark.parametrize(
    ("names", "descriptor"), [(scorer.COSTS, scorer_pb2.DESCRIPTOR), (sampler.COSTS, sampler_pb2.DESCRIPTOR)]
)
def test_costs_are_of_methods_with_one_request(names: dict[str, object], descriptor: object) -> None:
    for name in names:
        service, method = name.split("/")
        found = descriptor.services_by_name[service.rpartition(".")[2]].methods_by_name[method]  # type: ignore[attr-defined]
        assert found.containing_service.full_name == service
        assert not found.client_streaming


def test_a_request_costs_what_it_holds() -> None:
    assert scorer.of_score(scorer_pb2.ScoreRequest(texts=["a", "b"])) == Cost(texts=2, images=1)
    phrases = [scorer_pb2.Phrases(phrases=["a", "b", "c"]), scorer_pb2.Phrases()]
    assert scorer.of_score(scorer_pb2.ScoreRequest(texts=["a", "b"], phrases=phrases)) == Cost(texts=5, images=1)
    image = scorer_pb2.Image(content=b"x")
    assert scorer.of_embed(scorer_pb2.EmbedRequest(images=[image, image], texts=["a"])) == Cost(texts=1, images=2)
    sample = sampler_pb2.SampleRequest(num_candidates=8)
    assert sampler.of_sample(sample) == Cost(texts=8, images=0)
    sample.image.content = b"x"
    assert sampler.of_sample(sample) == Cost(texts=8, images=1)
    parts = [sampler_pb2.TurnPart(image=sample.image), sampler_pb2.TurnPart(text="x")]
    turns = [sampler_pb2.Turn(parts=parts * 2), sampler_pb2.Turn(parts=parts)]
    assert sampler.of_sample(sampler_pb2.SampleRequest(num_candidates=2, turns=turns)) == Cost(texts=2, images=3)
    assert sampler.of_score_tokens(sampler_pb2.ScoreTokensRequest(turns=turns)) == Cost(texts=1, images=3)
    assert sampler.of_score_tokens(sampler_pb2.ScoreTokensRequest(token_ids=[1, 2])) == Cost(texts=1, images=0)
