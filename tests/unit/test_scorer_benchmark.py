"""The basis of the scorer's benchmark: every arm does the same work."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import ROOT
from scorer_models import TINY, Reference, make_model

sys.path.append(str(ROOT / "benchmarks"))  # behind tests/, which has a families.py too
from scorer_infinity import as_transformers
from scorer_limit import Limit
from scorer_work import Requests, never_seen, photos

TEXTS = ["a red square left of a blue circle", "a photo of a dog .", "two cats sleeping on a couch"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of CLIP's plain shape."""
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "head_width": 32}}
    preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    return make_model(tmp_path_factory.mktemp("models") / "tiny", config, preprocess)


def test_a_photo_with_another_digest_is_the_same_picture() -> None:
    photo = photos()[0]
    other = never_seen(photo, 7)
    assert photo != other
    pictures = [np.asarray(Image.open(io.BytesIO(content))) for content in (photo, other)]
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].shape == (480, 640, 3)


def test_streams_of_requests_share_nothing() -> None:
    one, other = Requests("ViT-B-32", seed=1).cold(20), Requests("ViT-B-32", seed=2).cold(20)
    assert len({request.image for request in (*one, *other)}) == 40
    assert len({text for request in (*one, *other) for text in request.texts}) == 320


def test_the_limit_gives_open_clips_scores(model: Path) -> None:
    requests = Requests("ViT-B-32", seed=1).cold(3)
    found = Limit(model, Requests("ViT-B-32", seed=2)).score(requests)
    reference = Reference(model)
    for request, cosines in zip(requests, found, strict=True):
        expected = reference.cosines(Image.open(io.BytesIO(request.image)), request.texts)
        np.testing.assert_allclose(cosines.numpy(), expected, atol=1e-5)


def test_the_peers_model_is_the_same(model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    out = as_transformers(model, tmp_path / "hf")
    theirs, tokenizer = CLIPModel.from_pretrained(out).eval(), CLIPTokenizer.from_pretrained(out)
    ours = Reference(model)
    pixels = ours.preprocess(Image.open(io.BytesIO(photos()[0])))[None]
    with torch.inference_mode():
        rows = tokenizer(TEXTS, padding=True, return_tensors="pt")
        text = theirs.text_projection(theirs.text_model(**rows).pooler_output)
        image = theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output)
        torch.testing.assert_close(image, ours.model.encode_image(pixels), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(text, ours.model.encode_text(ours.tokenizer(TEXTS)), atol=1e-4, rtol=1e-4)
