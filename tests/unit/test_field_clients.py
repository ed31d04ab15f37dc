"""Calls as people write them: one bad row fails alone, and a bad call is refused by name."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from field import controls
from PIL import Image
from scorer_models import encoded
from scorer_scripted import Scripted, scripted
from sightline import AsyncScorerClient, SamplerClient, ScorerClient
from sightline.errors import InvalidInput, PreconditionFailed, SightlineError
from sightline.sampler import at_least, exact
from sightline.sampler.many import SampleItem
from sightline.sampler.streams import sample_request
from sightline.sampler.v1 import sampler_pb2 as pb

pytestmark = pytest.mark.field

FILE = encoded(Image.fromarray(np.zeros((8, 8, 3), np.uint8)))
ROWS = [None, float("nan"), (FILE,), (FILE, ["a"], [["b"]], 4), 3, "ab", {"image": FILE, "texts": ["a"]}]


@pytest.fixture
def there() -> Iterator[tuple[Scripted, str]]:
    with scripted() as found:
        yield found


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_another_form_fails_alone(there: tuple[Scripted, str], row: Any) -> None:
    rows = [(FILE, ["a cat"]), row, (FILE, ["a dog"])]
    with ScorerClient(there[1]) as client:
        outcomes = list(client.score_many(rows))
    assert [isinstance(outcome, SightlineError) for outcome in outcomes] == [False, True, False]
    assert outcomes[1].reason == "ROW_UNUSABLE"  # type: ignore[union-attr]

    async def many() -> list[Any]:
        async with AsyncScorerClient(there[1]) as client:
            return [outcome async for outcome in client.score_many(rows)]

    assert [isinstance(outcome, SightlineError) for outcome in asyncio.run(many())] == [False, True, False]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((FILE, None), "TEXTS_NOT_A_LIST"),
        ((FILE, 3), "TEXTS_NOT_A_LIST"),
        *controls(
            ((FILE, "a cat"), "TEXTS_NOT_A_LIST"),
            ((FILE, [None]), "TEXT_NOT_A_STRING"),
            ((FILE, ["a \ud83d cat"]), "TEXT_NOT_UNICODE"),
        ),
        ((FILE, ["a"], [None]), "TEXTS_NOT_A_LIST"),
        ((FILE, ["a"], 3), "PHRASES_MISMATCH"),
        *controls(
            ((FILE, ["a"], [["b"], ["c"]]), "PHRASES_MISMATCH"),
            ((None, ["a"]), "IMAGE_UNUSABLE"),
            ((float("nan"), ["a"]), "IMAGE_UNUSABLE"),
        ),
    ],
)
def test_a_row_with_a_bad_part_fails_alone(there: tuple[Scripted, str], row: Any, reason: str) -> None:
    with ScorerClient(there[1]) as client:
        outcomes = list(client.score_many([row, (FILE, ["a dog"])]))
        assert [isinstance(outcome, SightlineError) for outcome in outcomes] == [True, False]
        assert outcomes[0].reason == reason  # type: ignore[union-attr]
        with pytest.raises(InvalidInput) as refused:
            client.score(row[0], row[1], phrases=row[2] if len(row) > 2 else None)
        assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": 3}, "MODEL_UNKNOWN"),
        ({"model": "a\ud83d"}, "MODEL_UNKNOWN"),
        *controls(({"kind": None}, "KIND_UNKNOWN")),
        ({"modle": "tiny"}, "OPTION_UNKNOWN"),
        ({"timeout": float("nan")}, "TIMEOUT_INVALID"),
        ({"timeout": -1}, "TIMEOUT_INVALID"),
        ({"timeout": "5"}, "TIMEOUT_INVALID"),
    ],
)
def test_an_option_of_another_kind_is_refused_by_name(
    there: tuple[Scripted, str], options: dict[str, Any], reason: str
) -> None:
    with ScorerClient(there[1]) as client:
        with pytest.raises(InvalidInput) as refused:
            client.score(FILE, ["a"], **options)
        assert refused.value.reason == reason
        assert client.score(FILE, ["a"], timeout=None).value.tolist() == [1.0]


def test_an_image_or_text_that_cannot_be_sent_stands_as_its_error(there: tuple[Scripted, str]) -> None:
    with ScorerClient(there[1]) as client:
        result = client.embed([None, b"a"], ["a", "b\ud83d"])  # type: ignore[list-item]
        assert [isinstance(one, SightlineError) for one in result.images] == [True, False]
        assert [isinstance(one, SightlineError) for one in result.texts] == [False, True]
        stored = client.upload([FILE, None, FILE])  # type: ignore[list-item]
        assert [isinstance(one, SightlineError) for one in stored] == [False, True, False]
        with pytest.raises(InvalidInput):
            client.embed([None])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "row",
    [*ROWS[:4], (FILE, "p", 3), (FILE, "p", {"temprature": 1}), *controls("ab", ((float("nan"), "p"),))],
)
def test_a_row_of_sample_many_fails_alone(row: Any) -> None:
    item = SampleItem(row, 1, 2, {})
    assert isinstance(item.outcome, InvalidInput)


@pytest.mark.parametrize(
    "bad", [(FILE, None), *controls(((FILE, 3),), ((FILE, "a \ud83d"),), ((FILE, "p", {"seeds": ["a"]}),))]
)
def test_a_prompt_of_another_kind_fails_its_row_alone(bad: Any) -> None:
    with SamplerClient("127.0.0.1:9") as client:
        (outcome,) = client.sample_many([bad], 2)
    assert isinstance(outcome, InvalidInput)


def test_tokens_of_another_kind_are_refused_by_name() -> None:
    with SamplerClient("127.0.0.1:9") as client:
        for tokens in ([None], ["a"], [2**40], 3, [1.5], "12", ["1"]):
            with pytest.raises(InvalidInput):
                client.score_tokens(FILE, "p", tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["v1", 1, -1, exact(-1), exact("1"), at_least(1.5), exact(2**70)])  # type: ignore[arg-type]
def test_a_policy_of_another_kind_is_refused(policy: Any) -> None:
    """The active policy answered, whatever the caller had asked for."""
    with SamplerClient("127.0.0.1:9") as client:
        for call in (
            lambda: client.sample(FILE, "p", 1, policy=policy),
            lambda: client.score_tokens(FILE, "p", [1], policy=policy),
        ):
            with pytest.raises(InvalidInput) as refused:
                call()
            assert refused.value.reason == "POLICY_MALFORMED"


def test_versions_and_modes_of_another_kind_are_refused_by_name() -> None:
    with SamplerClient("127.0.0.1:9") as client:
        for version in ("1", -1, 1.5, 2**70):
            for call in (client.activate, client.retire, client.policy):
                with pytest.raises(InvalidInput) as refused:
                    call(version)  # type: ignore[arg-type]
                assert refused.value.reason == "POLICY_MALFORMED"
        with pytest.raises(InvalidInput, match="mode is 'soon': one of"):
            client.pause("soon")  # type: ignore[arg-type]


def request_of(**options: Any) -> pb.SampleRequest:
    return sample_request(FILE, "p", 2, "id", "", **options)


def test_seeds_may_be_an_array() -> None:
    assert list(request_of(seeds=np.array([3, 4])).seeds) == [3, 4]
    assert list(request_of(seeds=None).seeds) == []
    with pytest.raises(InvalidInput):
        request_of(seeds=[1.5])


def test_a_closed_client_says_so(there: tuple[Scripted, str]) -> None:
    """gRPC raised a ValueError of its own."""
    scorer, sampler = ScorerClient(there[1]), SamplerClient("127.0.0.1:9")
    for client in (scorer, sampler):
        client.close()
        client.close()
    for call in (
        lambda: scorer.score(FILE, ["a"]),
        lambda: scorer.list_models(),
        lambda: sampler.sample(FILE, "p", 1),
        lambda: sampler.policy(),
    ):
        with pytest.raises(PreconditionFailed) as refused:
            call()
        assert refused.value.reason == "CLIENT_CLOSED"
    (outcome,) = scorer.score_many([(FILE, ["a"])])
    assert isinstance(outcome, PreconditionFailed)

    async def later() -> None:
        client = AsyncScorerClient(there[1])
        await client.close()
        with pytest.raises(PreconditionFailed):
            await client.score(FILE, ["a"])

    asyncio.run(later())


@pytest.mark.parametrize("timeout", [float("inf"), 1e20])
def test_a_call_may_wait_without_end(there: tuple[Scripted, str], timeout: float) -> None:
    """Its deadline counted as passed."""
    with ScorerClient(there[1], timeout=timeout) as client:
        assert client.score(FILE, ["a"]).value.tolist() == [1.0]


@pytest.mark.parametrize("request_id", ["é", "a b", "a\nb", "x" * 201, 3])
def test_a_request_id_that_no_header_takes_is_refused(request_id: Any) -> None:
    with SamplerClient("127.0.0.1:9") as client, pytest.raises(InvalidInput) as refused:
        client.sample(FILE, "p", 1, request_id=request_id)
    assert refused.value.reason == "BAD_REQUEST_ID"


@pytest.mark.parametrize("images", [FILE, "a.png", Path("a.png"), None])
def test_a_single_image_in_place_of_several_is_refused(there: tuple[Scripted, str], images: Any) -> None:
    with ScorerClient(there[1]) as client:
        for call in (client.embed, client.upload):
            with pytest.raises(InvalidInput) as refused:
                call(images)
            assert refused.value.reason == "IMAGES_NOT_A_LIST"
