"""Teams of one scorer learn nothing about each other: neither which texts were scored nor which images were sent."""

import hashlib
from collections.abc import Iterator

import grpc
import pytest
import scorer_models
import yaml
from prometheus_client import REGISTRY
from sampler_models import png
from scorer_running import RunningScorer
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline_chassis.tokens import hash_of

TOKENS = {"red": "red-token-" + "r" * 40, "blue": "blue-token-" + "b" * 40}
IMAGE = png(7)
LIMITS = {"stored_image_bytes": 30_000}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, RunningScorer]]:
    """A scorer with its defaults, and one whose operator lets teams share; the keys say whether they share."""
    root = tmp_path_factory.mktemp("tenants")
    model, tokens = scorer_models.tiny(root / "tiny"), root / "tokens.yaml"
    teams = {team: {"tokens": [hash_of(t)], "limits": LIMITS} for team, t in TOKENS.items()}
    tokens.write_text(yaml.safe_dump({"teams": teams}))
    common = (f"models.tiny.source={model}", f"auth.tokens_file={tokens}")
    running = {
        shared: RunningScorer(*common, f"cache.shared={shared}", f"image_store.shared={shared}")
        for shared in (False, True)
    }
    yield running
    for scorer in running.values():
        scorer.stop()


def as_team(team: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {TOKENS[team]}")]


def known(scorer: RunningScorer, team: str, texts: list[str]) -> int:
    """Number of texts that the answer reports as known."""
    request = pb.ScoreRequest(image=pb.Image(content=IMAGE), texts=texts)
    return int(scorer.stub.Score(request, timeout=20, metadata=as_team(team)).timing.texts_cached)


def test_a_team_is_not_told_what_another_scored(scorers: dict[bool, RunningScorer]) -> None:
    texts = ["a secret product", "another one"]
    apart, together = scorers[False], scorers[True]
    assert [known(apart, "red", texts), known(apart, "red", texts)] == [0, 2]
    assert [known(apart, "blue", texts), known(apart, "blue", texts)] == [0, 2]
    assert [known(together, "red", texts), known(together, "blue", texts)] == [0, 2]


def test_a_team_neither_finds_nor_uses_the_images_of_another(scorers: dict[bool, RunningScorer]) -> None:
    image = png(8)  # that blue never sent
    sha256 = hashlib.sha256(image).digest()
    upload = pb.UploadImagesRequest(sha256=sha256, chunk=image, last=True)
    named = pb.ScoreRequest(image=pb.Image(sha256=sha256), texts=["a dog"])
    asked = pb.FindMissingImagesRequest(sha256=[sha256])
    for shared, scorer in scorers.items():
        stub = scorer.stub
        stub.UploadImages(iter([upload]), timeout=20, metadata=as_team("red"))
        assert list(stub.FindMissingImages(asked, timeout=20, metadata=as_team("red")).sha256) == []
        stub.Score(named, timeout=20, metadata=as_team("red"))
        missing = list(stub.FindMissingImages(asked, timeout=20, metadata=as_team("blue")).sha256)
        assert missing == ([] if shared else [sha256])
        if shared:
            stub.Score(named, timeout=20, metadata=as_team("blue"))
        else:
            with pytest.raises(grpc.RpcError, match="is not stored here"):
                stub.Score(named, timeout=20, metadata=as_team("blue"))


def test_a_team_stores_as_much_as_it_may(scorers: dict[bool, RunningScorer]) -> None:
    """Its oldest image is evicted; a single image above the bound is refused, and the error says what helps."""
    images = [png(seed, 60) for seed in (20, 21, 22)]
    digests = [hashlib.sha256(image).digest() for image in images]
    large = png(23, 120)
    sent = [(hashlib.sha256(image).digest(), image) for image in (*images, large)]
    pieces = [pb.UploadImagesRequest(sha256=sha256, chunk=image, last=True) for sha256, image in sent]
    stub = scorers[False].stub
    outcomes = stub.UploadImages(iter(pieces), timeout=20, metadata=as_team("red")).outcomes
    assert [one.error.code for one in outcomes] == [0, 0, 0, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]]
    assert "send it as image.content" in outcomes[3].error.message
    asked = pb.FindMissingImagesRequest(sha256=digests)
    assert list(stub.FindMissingImages(asked, timeout=20, metadata=as_team("red")).sha256) == digests[:1]
    held = REGISTRY.get_sample_value("sightline_team_stored", {"team": "red", "what": "image_bytes"})
    assert held == sum(map(len, images[1:]))
