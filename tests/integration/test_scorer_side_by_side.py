"""Several services on one machine before one Triton: one embeds it at a given port, the others use it as remote."""

import socket

import pytest
from sampler_models import png
from scorer_running import CLIP, RunningScorer
from sightline.scorer import ScorerClient
from sightline.scorer.v1 import scorer_pb2 as pb

pytestmark = pytest.mark.slow


def test_two_services_share_a_triton_and_a_caller_has_both() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = f"models.default.source=local-dir:{CLIP}"
    first = RunningScorer(model, f"triton.port={port}")
    try:
        second = RunningScorer(model, "triton.mode=remote", f"triton.address=127.0.0.1:{port}")
        try:
            images, texts = [png(seed) for seed in range(12)], ["a red star", "a blue circle"]
            alone = [first.stub.Score(pb.ScoreRequest(image=pb.Image(content=one), texts=texts)) for one in images]
            with ScorerClient(f"ipv4:{first.at.grpc},{second.at.grpc}") as client:
                found = [client.score(one, texts) for one in images]
            for one, expected in zip(found, alone, strict=True):
                assert one.cosine.tolist() == pytest.approx([s.cosine for s in expected.scores], abs=1e-6)
            # The second computed what it had not cached; the first has everything cached.
            again = [second.stub.Score(pb.ScoreRequest(image=pb.Image(content=one), texts=texts)) for one in images]
            cached = [one.timing.image_cached for one in again]
            assert 1 <= sum(cached) < len(images)
        finally:
            second.stop()
    finally:
        first.stop()
