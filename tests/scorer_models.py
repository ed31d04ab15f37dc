"""Scorer models: small open_clip models with random weights, and pictures in every format, for the scorer's tests."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""CLIP's shape in small: causal text tower, OpenAI's tokenizer."""

SIGLIP = {
    "embed_dim": 48,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 48, "patch_size": 16, "head_width": 24, "pool_type": "avg"},
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 48,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
        "pool_type": "last",
    },
}
"""SigLIP's shape in small: bidirectional text tower pooled at the last position, a logit bias, images squashed."""

SENTENCES = [
    "a red square left of a blue circle",
    "A photo of a dog.",
    "two cats sleeping on a couch, one of them striped",
    "naïve café — 日本語 & “quotes” 🙂",
    "1234567890 words!?",
]


def make_model(directory: Path, config: dict[str, Any], preprocess: dict[str, Any], seed: int = 0) -> Path:
    """Save a model with random weights as open_clip loads it by `local-dir:`."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=1)
    )
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        model = kind(**arguments)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:  # the usual small weights give nearly equal embeddings for all inputs
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, str(directory / "open_clip_model.safetensors"))
    return directory


def tiny(directory: Path) -> Path:
    """The CLIP-type model."""
    return make_model(directory, TINY, {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27]})


def siglip(directory: Path) -> Path:
    """The SigLIP-type model."""
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bicubic"}
    return make_model(directory, SIGLIP, preprocess, seed=1)


class Reference:
    """open_clip itself, used as in its README."""

    def __init__(self, directory: Path) -> None:
        import open_clip

        name = f"local-dir:{directory}"
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    def cosines(self, image: Image.Image, texts: list[str]) -> np.ndarray:
        """Cosines [K] of an upright RGB image with each text."""
        import torch

        with torch.inference_mode():
            seen = self.model.encode_image(self.preprocess(image)[None], normalize=True)
            found = self.model.encode_text(self.tokenizer(texts), normalize=True)
        return (found @ seen[0]).numpy()


def picture(width: int = 90, height: int = 70, seed: int = 0) -> Image.Image:
    """A smooth random RGB picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The image encoded as a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb(width: int = 13_000, height: int = 13_000) -> bytes:
    """A valid PNG of width x height black pixels in about a thousandth of as many bytes: 169 million by default."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
