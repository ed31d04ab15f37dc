"""The reward function for verl, by the call convention of verl 0.9.1."""

import asyncio
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from chassis_certificates import Authority, put
from scorer_scripted import Scripted, scripted
from sightline.errors import InvalidInput, SightlineError, Unavailable
from sightline.integrations.verl import compute_score, compute_score_async

PICTURE = b"picture" * 1000


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[Scripted, str]]:
    with scripted() as found:
        yield found


def as_verl_calls(configured: dict[str, Any], solution: str, extra_info: dict[str, Any]) -> dict[str, float]:
    """What `get_custom_reward_fn` and `NaiveRewardManager.run_single` do: keywords only, the configured ones on top;
    a coroutine function is awaited. Both ways must agree."""
    given: dict[str, Any] = {
        "data_source": "coco",
        "solution_str": solution,
        "ground_truth": "",
        "extra_info": {**extra_info, "num_turns": 2, "rollout_reward_scores": {}},
        "reward_router_address": "10.0.0.1:8000",
        "reward_model_tokenizer": None,
    }
    plain = functools.partial(compute_score)(**{**given, **configured})

    async def run() -> dict[str, float]:
        return await compute_score_async(**{**given, **configured})

    again = asyncio.run(run())
    np.testing.assert_equal(plain, again)
    return plain


def test_a_score_with_the_same_keys_each_time(there: tuple[Scripted, str], tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(PICTURE)
    configured = {"target": there[1], "on_failure": "drop"}
    for image in (
        {"image": PICTURE},
        {"image": str(path)},
        {"images": [{"bytes": PICTURE, "path": None}]},
        {"images": np.array([{"bytes": PICTURE}], dtype=object)},
    ):
        assert as_verl_calls(configured, "ok 3", image) == {"score": 3, "scored": 1, "cosine": 0}
    for extra, solution in (({"image": PICTURE}, "refuse"), ({}, "ok 1"), ({"images": [PICTURE, PICTURE]}, "ok 1")):
        failed = as_verl_calls(configured, solution, extra)
        assert list(failed) == ["score", "scored", "cosine"]
        assert math.isnan(failed["score"])
        assert failed["scored"] == 0


def test_a_scorer_that_wants_certificate_and_token(tmp_path: Path) -> None:
    authority = Authority("tests")
    server, (certificate, key) = authority.sign("scorer"), authority.sign("trainer").write(tmp_path, "trainer")
    ca, token = put(tmp_path / "ca.crt", authority.pem), put(tmp_path / "token", b"s3cret\n")
    credentials = grpc.ssl_server_credentials([(server.key, server.certificate)], authority.pem, True)
    with scripted(credentials) as (scorer, target):
        configured = {"target": target, "on_failure": "raise", "ca_file": str(ca), "token_file": str(token)}
        ours = {"certificate_file": str(certificate), "key_file": str(key)}
        assert as_verl_calls({**configured, **ours}, "ok 3", {"image": PICTURE})["score"] == 3
        assert scorer.seen["Bearer s3cret"] == 2
        with pytest.raises(Unavailable):
            as_verl_calls({**configured, "timeout": 1}, "ok 3", {"image": PICTURE})


def test_a_stated_value_or_the_error(there: tuple[Scripted, str]) -> None:
    stated = {"target": there[1], "on_failure": "value", "failure_value": -5.0}
    assert as_verl_calls(stated, "refuse", {"image": PICTURE})["score"] == -5
    with pytest.raises(SightlineError, match="refused"):
        as_verl_calls({"target": there[1], "on_failure": "raise"}, "refuse", {"image": PICTURE})


@pytest.mark.parametrize(
    "configured", [{}, {"on_failure": "zero"}, {"on_failure": "value"}, {"on_failure": "raise", "failure_value": 0.0}]
)
def test_there_is_no_silent_default(there: tuple[Scripted, str], configured: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        as_verl_calls({"target": there[1], **configured}, "ok 1", {"image": PICTURE})


def test_the_image_key_can_be_named(there: tuple[Scripted, str]) -> None:
    configured = {"target": there[1], "on_failure": "raise", "image_key": "photo"}
    assert as_verl_calls(configured, "ok 2", {"photo": PICTURE, "image": b"other"})["score"] == 2
    with pytest.raises(InvalidInput, match=r"no image under 'photo': it has image, num_turns"):
        as_verl_calls(configured, "ok 2", {"image": PICTURE})
