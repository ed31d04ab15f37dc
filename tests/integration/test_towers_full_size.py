"""Towers of the full size, random weights: SigLIP 2, MobileCLIP, and the ViT-H-14 of PickScore and HPSv2.1, as Triton's
models run them, give open_clip's embeddings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from sightline_scorer.triton import repository
from sightline_scorer.triton.card import ModelCard
from sightline_scorer.triton.repository import sha256_of
from sightline_scorer.triton.worker import TowerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def saved(name: str, directory: Path) -> tuple[Any, ModelCard]:
    """A model with random weights, and its card."""
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    preprocess = json.loads(json.dumps(dict(model.visual.preprocess_cfg)))
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess}
    directory.mkdir()
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    weights = directory / "open_clip_model.safetensors"
    save_file({key: value.clone().contiguous() for key, value in model.state_dict().items()}, str(weights))
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    text = getattr(model, "text", model)
    plain = type(model) is open_clip.CLIP
    card = ModelCard(
        name="m",
        kind="clip",
        architecture=f"local-dir:{directory}",
        local_dir=True,
        weights_path=str(weights),
        weights_digest=sha256_of(weights),
        preprocess=preprocess,
        embedding_size=0,
        image_height=height,
        image_width=width,
        context_length=int(text.context_length),
        vocabulary_size=int(text.vocab_size),
        logit_scale=1.0,
        logit_bias=0.0,
        sigmoid=False,
        precision="fp32",
        needs=[],
        tokenizer={"kind": "open_clip"},
        trim_padding=plain and model.text_pool_type in ("argmax", "eos"),
    )
    return model, card


@pytest.mark.parametrize("name", ["MobileCLIP-S1", "ViT-B-16-SigLIP2", "ViT-H-14"])
def test_the_towers_are_open_clips(name: str, tmp_path: Path) -> None:
    model, card = saved(name, tmp_path / "model")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 3, card.image_height, card.image_width), np.uint8)
    ids = np.zeros((3, card.context_length), np.int32)
    ids[:, :9] = random.integers(1, 1000, (3, 9))
    ids[:, 9] = card.vocabulary_size - 1  # CLIP's end of text
    mean, std = (torch.tensor(card.preprocess[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        image = model.encode_image((torch.from_numpy(pixels) / 255 - mean) / std, normalize=True).numpy()
        text = model.encode_text(torch.from_numpy(ids).long(), normalize=True).numpy()
    del model
    here = Path(__file__).parents[2] / "services/scorer/sightline_scorer/triton"
    (tmp_path / "tower/1").mkdir(parents=True)
    for file in ("model.py", *repository.CLIP_FILES):
        (tmp_path / "tower/1" / file).write_bytes((here / file).read_bytes())
    for tower, values, expected in (("image", pixels, image), ("text", ids, text)):
        facts = card.to_json(tower=tower, device="cpu", threads=1, gpu_graphs="off", batch=4)
        process = TowerProcess(tmp_path / "tower", facts)
        process.start()
        try:
            np.testing.assert_allclose(process.run(values), expected, atol=2e-5)
        finally:
            process.stop()
