"""ImageReward's checkpoint: its location and its card. It is served as released; `triton/blip.py` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline.errors import PreconditionFailed, first_line
from sightline_chassis.shipped import model_place
from sightline_chassis.tensor_file import read_tensors

from sightline_scorer.settings import ModelSettings
from sightline_scorer.triton.card import ModelCard, sha256_of

WINDOW = 35
"""The authors' maximum number of tokens. They cut longer texts; here those are scored by sentence, or refused."""
TOKENIZER = "google-bert/bert-base-uncased"
_PREPROCESS = {
    "mode": "RGB",
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
_FILES = ("ImageReward.pt", "ImageReward.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def checkpoint(source: str) -> Path:
    """The file of a file, a directory or a hub name. Raises FileNotFoundError."""
    place = Path(model_place(source).removeprefix("local-dir:"))
    if place.is_file():
        return place.resolve()
    for name in _FILES:
        if (place / name).is_file():
            return (place / name).resolve()
    if not place.is_dir() and source.count("/") == 1:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(source.removeprefix("hf-hub:"), _FILES[0])).resolve()
    raise FileNotFoundError(f"{source} is not a checkpoint of kind imagereward: name ImageReward.pt, or its directory")


def tokenizer_of(settings: ModelSettings, weights: Path) -> str:
    """The tokenizer's directory or hub name: as set, or beside the checkpoint, or BERT's on the hub."""
    if settings.tokenizer is not None:
        return model_place(settings.tokenizer)
    beside = any((weights.parent / name).is_file() for name in _TOKENIZER_FILES)
    return str(weights.parent) if beside else TOKENIZER


def describe(name: str, settings: ModelSettings) -> ModelCard:
    """Load the checkpoint once on the CPU, let it score a picture, and record its facts.

    Raises:
        FileNotFoundError: the file does not exist.
        PreconditionFailed: CHECKPOINT_UNKNOWN: it is not of this kind.
    """
    import torch

    from sightline_scorer.triton import blip

    weights = checkpoint(settings.source)
    try:
        state = read_tensors(weights, mmap=True)
        side, facts = _side(state), {"precision": "fp32", "preprocess": _PREPROCESS}
        tower = blip.JointTower(state, facts, torch.device("cpu"))
        shape = tower(torch.zeros((1, 3, side, side), dtype=torch.uint8), torch.ones((1, 2), dtype=torch.int32)).shape
        if tuple(shape) != (1, 1):
            raise ValueError(f"its network gives {tuple(shape)[-1]} numbers, not one")
        vocabulary = len(state["blip.text_encoder.embeddings.word_embeddings.weight"])
    except (KeyError, IndexError, ValueError, RuntimeError, AttributeError) as error:
        raise PreconditionFailed(
            f"{weights} is not a checkpoint of ImageReward: {type(error).__name__}: {first_line(error, 300)}",
            reason="CHECKPOINT_UNKNOWN",
        ) from error
    return ModelCard(
        name=name,
        kind=settings.kind,
        architecture=settings.source,
        local_dir=False,
        weights_path=str(weights),
        weights_digest=sha256_of(weights),
        preprocess={"size": [side, side], **_PREPROCESS},
        embedding_size=0,
        image_height=side,
        image_width=side,
        context_length=WINDOW,
        vocabulary_size=vocabulary,
        logit_scale=0.0,
        logit_bias=0.0,
        sigmoid=False,
        precision=settings.precision,
        needs=[],
        tokenizer={
            "kind": "transformers",
            "source": tokenizer_of(settings, weights),
            "clean": "",
            "strip_sep_token": False,
        },
        trim_padding=False,
    )


def _side(state: dict[str, Any]) -> int:
    """Side of its square input picture in pixels."""
    patches = state["blip.visual_encoder.pos_embed"].shape[1] - 1
    return int(round(patches**0.5) * state["blip.visual_encoder.patch_embed.proj.weight"].shape[-1])
