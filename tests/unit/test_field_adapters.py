"""Rows as people pass them to the adapters: one bad row fails alone, with a typed error, and is counted."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scorer_models import encoded
from scorer_scripted import Scripted, scripted
from sightline.errors import InvalidInput, NotFound, PreconditionFailed
from sightline.integrations import openrlhf, verl
from sightline.integrations.failures import FailurePolicy
from sightline.integrations.trl import ClipReward
from sightline.scorer.v1 import scorer_pb2 as pb

pytestmark = pytest.mark.field

PIXELS = [np.full((8, 8, 3), shade, np.uint8) for shade in range(60)]
ROWS = 600  # addresses recur by chance: among 60 rows it may happen too late
FILE = encoded(Image.fromarray(PIXELS[0]))


class Shades(Scripted):
    """Scores an image by the shade of its first pixel."""

    def _score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        import io

        answer = super()._score(request, context)
        content = request.image.content or self.store[request.image.sha256]
        with Image.open(io.BytesIO(content)) as picture:
            answer.scores[0].value = picture.convert("RGB").getpixel((0, 0))[0]
        return answer


@pytest.fixture
def there() -> Iterator[tuple[Scripted, str]]:
    with scripted() as found:
        yield found


class Lazy:
    """A column that decodes a picture at each access, as `datasets.Column` and `with_transform` do."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(PIXELS[index % len(PIXELS)])


def test_a_column_that_decodes_at_each_access_gives_each_row_its_own_picture() -> None:
    with scripted(servicer=Shades()) as (_, target):
        rewards = ClipReward(target)(["p"] * ROWS, ["a shade"] * ROWS, image=Lazy())
    assert rewards == [float(row % len(PIXELS)) for row in range(ROWS)]


def test_a_text_function_that_raises_fails_its_row_alone(
    there: tuple[Scripted, str], caplog: pytest.LogCaptureFixture
) -> None:
    images = [FILE] * 3
    reward = ClipReward(there[1], text=lambda text: text.split("</think>")[1])
    with caplog.at_level(logging.WARNING):
        assert reward(["p"] * 3, ["</think>a cat", "a cat", "</think>a dog"], image=images) == [1.0, None, 1.0]
    assert "{'TEXT_FUNCTION_FAILED': 1}" in caplog.text


@pytest.mark.control
@pytest.mark.parametrize("bad", [None, float("nan"), 3, b"", {"path": None}, [None], Image.new("RGB", (0, 0))])
def test_a_row_without_a_usable_image_fails_alone(there: tuple[Scripted, str], bad: Any) -> None:
    good = FILE
    there[0].refused = lambda text: text == "empty"
    texts = ["a cat", "empty" if bad == b"" else "a cat", "a dog"]
    assert ClipReward(there[1])(["p"] * 3, texts, image=[good, bad, good]) == [1.0, None, 1.0]


def test_a_column_shorter_than_the_completions_fails_the_rows_beyond_it(there: tuple[Scripted, str]) -> None:
    rewards = ClipReward(there[1])(["p"] * 3, ["a cat"] * 3, image=[FILE] * 2)
    assert rewards == [1.0, 1.0, None]


def test_a_column_that_cannot_be_decoded_at_a_row_fails_that_row(there: tuple[Scripted, str]) -> None:
    class Broken(Lazy):
        def __getitem__(self, index: int) -> Image.Image:
            if index == 1:
                raise OSError("truncated file")
            return super().__getitem__(index)

    assert ClipReward(there[1])(["p"] * 3, ["a cat"] * 3, image=Broken()) == [1.0, None, 1.0]


@pytest.mark.parametrize(
    "error", [NotFound("no model b", reason="MODEL_NOT_FOUND"), PreconditionFailed("no", reason="NOT_CALIBRATED")]
)
def test_what_no_row_can_escape_ends_the_batch(there: tuple[Scripted, str], error: Exception) -> None:
    def refuse(text: str) -> bool:
        raise error

    there[0].refused = refuse
    image = FILE
    with pytest.raises(type(error)):
        ClipReward(there[1])(["p"] * 2, ["a cat"] * 2, image=[image] * 2)
    with pytest.raises(type(error)):
        verl.compute_score("", "a cat", None, {"image": image}, target=there[1], on_failure="drop")
    with pytest.raises(type(error)):
        openrlhf.answer([error], FailurePolicy("drop"))  # type: ignore[list-item]


@pytest.mark.parametrize("info", ["a string", '{"image": "a.png"}', 3, ["a"]])
def test_verls_extra_info_of_another_kind_is_a_typed_failure_of_its_row(there: tuple[Scripted, str], info: Any) -> None:
    found = verl.compute_score("", "a cat", None, info, target=there[1], on_failure="value", failure_value=-1.0)
    assert found["score"] == -1.0
    assert found["scored"] == 0.0
    with pytest.raises(InvalidInput) as raised:
        verl.compute_score("", "a cat", None, info, target=there[1], on_failure="raise")
    assert raised.value.reason == "EXTRA_INFO_UNUSABLE"


def test_verl_and_openrlhf_log_reasons_of_what_they_drop(
    there: tuple[Scripted, str], caplog: pytest.LogCaptureFixture
) -> None:
    refused = InvalidInput("too long", reason="TEXT_TOO_LONG")
    with caplog.at_level(logging.WARNING):
        openrlhf.answer([refused, refused], FailurePolicy("drop"))
        assert "no reward for 2 of 2 rows {'TEXT_TOO_LONG': 2}" in caplog.text
        caplog.clear()
        verl.compute_score("", "refuse", None, {"image": FILE}, target=there[1], on_failure="drop")
        assert "TEXT_TOO_LONG" in caplog.text
