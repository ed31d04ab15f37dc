"""A pool of generated pictures: the painter draws texts over HTTP, and the scorer picks the best of several."""

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from running import Services
from sightline.errors import InvalidInput
from sightline.scorer import AsyncScorerClient
from sightline_playground.painter import paint, server
from sightline_trainer.pools import load_prompts
from sightline_trainer.pools.generated import best_of, generate, read_wanted
from sightline_trainer.pools.picture_endpoint import PictureEndpoint

TEXTS = ["a red star at the top left and a blue ring", "a green cross", "a yellow square in the middle", "a horse"]


@pytest.fixture(scope="module")
def painter() -> Iterator[str]:
    with server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def wanted(directory: Path) -> Path:
    path = directory / "wanted.jsonl"
    lines = [
        {"id": f"p{number}", "shows": text, "prompt": "what do you see ?", "reference": f"there is {text} ."}
        for number, text in enumerate(TEXTS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_best_of_four_pictures_of_each_text_is_a_dataset(services: Services, painter: str, tmp_path: Path) -> None:
    async def made(to: Path) -> int:
        maker = PictureEndpoint(painter)
        async with AsyncScorerClient(services.scorer) as scorer:
            dropped = await generate(read_wanted(wanted(tmp_path)), maker, scorer, to)
            ours = paint(TEXTS[0], 4, 0)
            best = await best_of(ours, TEXTS[0], scorer)
            scores = [float((await scorer.score(one, [TEXTS[0]])).clip_score[0]) for one in ours]
            assert best == ours[scores.index(max(scores))]
        await maker.close()
        assert dropped.counts == {"PICTURE_NOT_MADE": 1}  # there are no horses in this world
        return len(dropped)

    assert asyncio.run(made(tmp_path / "made")) == 1
    prompts = load_prompts(tmp_path / "made")
    assert [(one.id, one.reference) for one in prompts] == [(f"p{at}", f"there is {TEXTS[at]} .") for at in range(3)]
    before = [one.images[0].read_bytes() for one in prompts]
    assert {Image.open(io.BytesIO(each)).size for each in before} == {(48, 48)}
    (tmp_path / "made/images/p1.png").unlink()
    asyncio.run(made(tmp_path / "made"))  # existing pictures are not made again; the same seed paints the same ones
    assert [one.images[0].read_bytes() for one in load_prompts(tmp_path / "made")] == before


@pytest.mark.parametrize("id_", ["../p", "", "."])
def test_an_id_that_is_no_name_of_a_file_is_refused(tmp_path: Path, id_: str) -> None:
    path = tmp_path / "wanted.jsonl"
    path.write_text(json.dumps({"id": id_, "shows": "a star", "prompt": "what ?"}) + "\n")
    with pytest.raises(InvalidInput):
        read_wanted(path)
    path.write_text((json.dumps({"id": "p", "shows": "a star", "prompt": "what ?"}) + "\n") * 2)
    with pytest.raises(InvalidInput, match="twice"):
        read_wanted(path)
