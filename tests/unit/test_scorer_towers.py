"""The towers that run inside Triton, tested in process: open_clip's embeddings with less work."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import scorer_models
import torch
from scorer_models import SENTENCES, Reference
from sightline_scorer.settings import ModelSettings
from sightline_scorer.triton import repository, towers

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["tiny", "siglip"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, dict[str, Any]]:
    directory = getattr(scorer_models, request.param)(tmp_path_factory.mktemp(request.param))
    card = repository.describe(request.param, ModelSettings(source=str(directory)))
    facts = {
        "preprocess": card.preprocess,
        "image_height": card.image_height,
        "image_width": card.image_width,
        "context_length": card.context_length,
        "trim_padding": card.trim_padding,
        "gpu_graphs": "off",
    }
    return Reference(directory), facts


def embedder(tower: Any, facts: dict[str, Any]) -> Any:
    return towers.on_device(tower, CPU, facts)


def test_images_are_embedded_as_by_open_clip(model: tuple[Reference, dict[str, Any]]) -> None:
    reference, facts = model
    height, width = facts["image_height"], facts["image_width"]
    pixels = torch.randint(0, 256, (5, 3, height, width), dtype=torch.uint8)
    mean, std = (torch.tensor(facts["preprocess"][key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = reference.model.encode_image((pixels / 255 - mean) / std, normalize=True)
    tower = towers.ImageTower(copy.deepcopy(reference.model), facts, CPU)
    torch.testing.assert_close(embedder(tower, facts)(pixels), expected, atol=1e-5, rtol=0)
    pools_one_token = facts["trim_padding"]  # the SigLIP-type model here averages over all
    assert ("forward" in vars(tower._model.visual.transformer.resblocks[-1])) == pools_one_token


def test_texts_are_embedded_as_by_open_clip_at_every_length(model: tuple[Reference, dict[str, Any]]) -> None:
    """Texts are trimmed to the longest if the tower is causal, else they get the whole window; both are equal."""
    reference, facts = model
    texts = [*SENTENCES, "a", "a photo of " + "a cat and " * 6]
    ids = reference.tokenizer(texts)
    with torch.inference_mode():
        expected = reference.model.encode_text(ids, normalize=True)
    tower = towers.TextTower(copy.deepcopy(reference.model), facts, CPU)
    embed = embedder(tower, facts)
    torch.testing.assert_close(embed(ids.int()), expected, atol=1e-5, rtol=0)
    seen = tower.prepare(ids.int()).shape[1]
    ends = ids.argmax(-1)
    if facts["trim_padding"]:
        assert seen == int(ends.max()) + 1 < ids.shape[1]
        assert tower.encode == tower._encode_pooled
        for row in range(len(ids)):  # alone, cut behind its own end
            cut = ids[row : row + 1, : int(ends[row]) + 1].int()
            torch.testing.assert_close(embed(cut)[0], expected[row], atol=1e-5, rtol=0)
    else:
        assert seen == ids.shape[1]


def test_a_tower_whose_answers_would_change_stays_as_it_is(
    model: tuple[Reference, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, facts = model
    if not facts["trim_padding"]:
        pytest.skip("nothing is changed in this model")
    monkeypatch.setattr(towers, "_last_block", lambda block, x, pooled, pick, ignore: pooled)
    ids = reference.tokenizer(SENTENCES)
    with torch.inference_mode():
        expected = reference.model.encode_text(ids, normalize=True)
    tower = towers.TextTower(copy.deepcopy(reference.model), facts, CPU)
    assert tower.encode == tower._encode_trimmed
    torch.testing.assert_close(embedder(tower, facts)(ids.int()), expected, atol=1e-5, rtol=0)
    image = towers.ImageTower(copy.deepcopy(reference.model), facts, CPU)
    assert "forward" not in vars(image._model.visual.transformer.resblocks[-1])


def test_batches_of_fixed_sizes() -> None:
    """A GPU's batch sizes, tested on the CPU without graphs: padded rows are not returned."""
    shapes: list[int] = []

    def encode(batch: torch.Tensor) -> torch.Tensor:
        shapes.append(len(batch))
        return batch.float() * 2

    buckets = towers._Buckets(encode, 12, graphs=False)
    for rows in (1, 2, 3, 5, 9, 12):
        batch = torch.arange(rows * 2).view(rows, 2)
        torch.testing.assert_close(buckets(batch), batch.float() * 2)
    assert shapes == [1, 2, 4, 8, 12, 12]


def test_the_towers_need_nothing_of_sightline() -> None:
    """They are copied into Triton's repository."""
    source = Path(sys.modules["sightline_scorer.triton.towers"].__file__ or "").read_text()
    assert "sightline" not in source


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("architecture", ["tiny", "siglip"])
def test_half_precision_loads_and_gives_nearly_the_same(architecture: str, precision: Any, tmp_path: Path) -> None:
    """open_clip keeps a ViT's class embedding in float32 if the rest is half, so the first parameter says nothing."""
    import open_clip

    directory = getattr(scorer_models, architecture)(tmp_path)
    card = repository.describe("m", ModelSettings(source=str(directory)))
    facts = {**json.loads(card.to_json()), "gpu_graphs": "off"}
    pixels = torch.randint(0, 256, (3, 3, card.image_height, card.image_width), dtype=torch.uint8)
    ids = open_clip.get_tokenizer(f"local-dir:{directory}")(SENTENCES[:3]).int()
    found = {}
    for each in ("fp32", precision):
        for kind, batch in ((towers.ImageTower, pixels), (towers.TextTower, ids)):
            model = open_clip.create_model(f"local-dir:{directory}", precision=each).eval()
            found[each, kind] = embedder(kind(model, facts, CPU), facts)(batch)
    for kind in (towers.ImageTower, towers.TextTower):
        cosine = (found["fp32", kind] * found[precision, kind]).sum(dim=-1)
        assert cosine.min() > 0.99
