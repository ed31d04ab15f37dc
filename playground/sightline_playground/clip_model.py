"""The tiny CLIP: an ordinary open_clip model in a local directory.

    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:playground/weights/clip")
    tokenizer = open_clip.get_tokenizer("local-dir:playground/weights/clip")

The directory holds open_clip_config.json, open_clip_model.safetensors and the tokenizer's files; no more is needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sightline_playground.drawing import SIZE
from sightline_playground.tokens import CLIP_CONTEXT, clip_tokenizer

if TYPE_CHECKING:
    import torch
    from PIL import Image

PATCH: Final = 16
"""Pixels per side of a patch: 3 x 3 = 9 patches, one per cell of the grid, so that everything is quick on a CPU."""
WIDTH: Final = 96
LAYERS: Final = 3
HEAD: Final = 32
MEAN: Final = (0.5, 0.5, 0.5)
STD: Final = (0.5, 0.5, 0.5)
LOGIT_SCALE: Final = 100.0
"""Fixed at the final value of OpenAI's CLIP, so that cosines have the scale of real ones (see the model card)."""


def config(vocabulary: int) -> dict[str, Any]:
    """open_clip_config.json's content."""
    return {
        "model_cfg": {
            "embed_dim": WIDTH,
            "vision_cfg": {
                "image_size": SIZE,
                "layers": LAYERS,
                "width": WIDTH,
                "head_width": HEAD,
                "patch_size": PATCH,
            },
            "text_cfg": {
                "context_length": CLIP_CONTEXT,
                "vocab_size": vocabulary,
                "hf_tokenizer_name": "sightline-playground",
                "width": WIDTH,
                "heads": WIDTH // HEAD,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "size": SIZE,
            "mode": "RGB",
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def build() -> Any:
    """An untrained open_clip.CLIP, logit scale set; weights from torch's global random state."""
    import math

    from open_clip.model import CLIP

    return CLIP(**config(len(clip_tokenizer()))["model_cfg"], init_logit_scale=math.log(LOGIT_SCALE))


def save(model: Any, directory: Path) -> None:
    """Write the local directory that open_clip loads."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(str(directory))
    (directory / "open_clip_config.json").write_text(json.dumps(config(len(tokenizer)), indent=2) + "\n")
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, str(directory / "open_clip_model.safetensors"), metadata={"format": "pt"})
    readable(directory)


def readable(directory: Path) -> None:
    """Make the files of a directory readable for all (safetensors writes them for the owner only)."""
    for file in directory.iterdir():
        file.chmod(0o644)


def load(directory: Path) -> tuple[Any, Any, Any]:
    """(model in eval mode, preprocess, tokenizer) by open_clip's ordinary functions."""
    import open_clip

    name = f"local-dir:{directory}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Float tensor (N, 3, 48, 48) of 48 x 48 pictures: what open_clip's preprocess gives for pictures of this size."""
    import numpy as np
    import torch

    stack = np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])
    scaled = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(three).view(1, 3, 1, 1) for three in (MEAN, STD))
    return (scaled - mean) / std


def clip_scores(model: Any, tokenizer: Any, images: torch.Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """CLIPScore, 100 * max(cos, 0), of each image (N, 3, 48, 48) with each of its texts."""
    import torch

    scores: list[list[float]] = []
    with torch.inference_mode():
        for start in range(0, len(texts), 128):
            group = texts[start : start + 128]
            seen = model.encode_image(images[start : start + 128], normalize=True)
            flat = [text for row in group for text in row]
            text_rows = torch.cat(
                [model.encode_text(tokenizer(flat[at : at + 512]), normalize=True) for at in range(0, len(flat), 512)]
            )
            owner = torch.tensor([n for n, row in enumerate(group) for _ in row])
            values = (100 * (seen[owner] * text_rows).sum(-1)).clamp(min=0).tolist()
            ends = torch.tensor([len(row) for row in group]).cumsum(0).tolist()
            scores += [values[end - len(row) : end] for end, row in zip(ends, group, strict=True)]
    return scores
