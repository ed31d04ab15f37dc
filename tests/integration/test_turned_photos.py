"""Half of the photos are stored turned: sampler and update see the same picture, in every pair."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Image as ImageFeature
from datasets import List
from odd_pictures import TURNS, encoded, exif
from PIL import Image
from running import Services, small_recipe
from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.dpo.reference_logprobs import token_logprobs
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.execute import execute
from sightline_trainer.pairs.build import read_pairs
from sightline_trainer.recipe import Recipe
from sightline_trainer.rollout import Rollout
from sightline_trainer.runs import RunDirectory

pytestmark = pytest.mark.slow

BACK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
"""The turn that undoes a turn."""


@pytest.fixture
def photos(playground: Path, tmp_path: Path) -> Path:
    """The playground's train set as photos of 48 x 32; every second one is stored turned, in all orientations."""
    directory = tmp_path / "photos"
    (directory / "images").mkdir(parents=True)
    for path in (playground / "train").iterdir():
        if path.is_file():
            (directory / path.name).write_bytes(path.read_bytes())
    rows = [json.loads(line) for line in (directory / "prompts.jsonl").read_text().splitlines()]
    for number, name in enumerate(sorted({row["image"] for row in rows})):
        turn = 1 if number % 2 else 2 + number // 2 % 7
        pixels = np.asarray(Image.open(playground / "train" / name))[:32]
        stored = Image.fromarray(np.ascontiguousarray(TURNS[BACK[turn]](pixels)))
        (directory / name).write_bytes(encoded(stored, "JPEG", quality=95, exif=exif(turn)))
    return directory


def test_sampler_and_update_agree_on_every_pair(
    services: Services, playground: Path, photos: Path, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(small_recipe(services, playground, iterations=1))
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": str(photos)})})
    run = RunDirectory(tmp_path / "run")
    execute(recipe, run, lambda event: None)
    assert run.state()["state"] == "succeeded"
    assert run.state()["picture_rule"] == "1"

    pairs = read_pairs(run.iteration(1) / "pairs.parquet")
    found = dict(Rollout(run.iteration(1)).read())
    trainer = make_trainer(recipe, pairs, previous=None, work=tmp_path / "work", seed=0)
    trainer.model.eval()
    rows = list(pairs.cast_column("images", List(ImageFeature(decode=False))))
    collator, turned, worst = PairCollator(trainer.data_collator.family), 0, 0.0
    for number, row in enumerate(rows):
        batch = collator([{**row, "pair_id": number, "rejected_images": None}])
        ours, where = token_logprobs(trainer, batch), batch["completion_mask"][:, 1:].bool()
        turned += Image.open(photos / "images" / row["images"][0]["path"]).getexif().get(0x0112, 1) != 1
        for side, values, mask in zip(("chosen", "rejected"), ours, where, strict=True):
            assert row[f"{side}_source"] == "policy"
            theirs = next(each.logprobs for each in found[row["prompt_id"]] if each.index == row[f"{side}_index"])
            gap = float(np.abs(values[mask].numpy() - np.asarray(theirs)).mean())
            assert gap < 1e-3, (row["prompt_id"], side, gap)
            worst = max(worst, gap)
    assert len(rows) // 4 < turned < len(rows)
    print(f"{len(rows)} pairs, {turned} of turned photos, worst gap {worst:.2e} nats a token")
