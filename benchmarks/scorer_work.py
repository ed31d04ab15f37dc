"""Inputs of the scorer's benchmark: models with random weights, photos and captions."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
TINY = ROOT / "playground/weights/clip"
TEXTS = 8  # of one request
_POOL = 64


@dataclass(frozen=True)
class Request:
    """One image and its texts."""

    image: bytes
    texts: list[str]


def model_directory(name: str, work: Path) -> Path:
    """A model directory for `local-dir:` of the scorer and open_clip: the playground's, or one with random weights."""
    if name == "tiny":
        return TINY
    import open_clip
    import torch
    from safetensors.torch import save_file

    directory = work / name
    if not (directory / "open_clip_model.safetensors").exists():
        directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained=None)
        config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
        (directory / "open_clip_config.json").write_text(json.dumps(config))
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(state, str(directory / "open_clip_model.safetensors"))
    return directory


@cache
def photos(width: int = 640, height: int = 480) -> list[bytes]:
    """64 JPEGs of quality 90, smooth shapes with sensor noise; at 640 x 480 each has about 80 kB."""
    made = []
    for seed in range(_POOL):
        generator = np.random.default_rng(seed)
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def never_seen(photo: bytes, mark: int) -> bytes:
    """The same picture as another file: a comment behind the JPEG's first marker changes its digest."""
    comment = f"{mark:016d}".encode()
    return photo[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + photo[2:]


class Requests:
    """An endless stream of requests: 1 photo and 8 captions of 14 words (16 tokens) each.

    Args:
        model: determines the vocabulary.
        seed: two streams of different seeds share no caption.
        small: use photos of 96 x 72, 4 kB each, so that the service, not the caller, is the bottleneck.
    """

    def __init__(self, model: str, seed: int = 0, *, small: bool = False) -> None:
        self._photos = photos(96, 72) if small else photos()
        self._random = random.Random(seed)
        self._words = _playground_words() if model == "tiny" else _WORDS
        self._seed, self._count = seed, 0

    def cold(self, number: int) -> list[Request]:
        """Requests with new images and new texts."""
        return [Request(self._image(), self._captions()) for _ in range(number)]

    def warm(self, number: int) -> list[Request]:
        """Requests with images from a pool of 64, and new texts."""
        return [Request(self._photos[n % _POOL], self._captions()) for n in range(number)]

    def endless(self, texts: int) -> Iterator[Request]:
        """Texts of this many cold requests, in one list."""
        while True:
            yield Request(self._image(), self._captions(texts))

    def _image(self) -> bytes:
        self._count += 1
        return never_seen(self._photos[self._count % _POOL], self._seed * 10**9 + self._count)

    def _captions(self, number: int = TEXTS) -> list[str]:
        return [" ".join(self._random.choices(self._words, k=14)) for _ in range(number)]


@cache
def _playground_words() -> list[str]:
    vocabulary = json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(word for word in vocabulary if word.isalpha())


# Each is one token of CLIP's vocabulary.
_VOCABULARY = (
    "a the of on in with and at by for red blue green yellow black white brown orange pink grey large small old "
    "young dog cat horse bird cow sheep man woman boy girl child people person group car bus train truck boat plane "
    "bike street road park beach field house kitchen table chair bed window door tree grass water sky snow rain sun "
    "standing sitting walking running holding eating playing riding looking wearing hat shirt jacket ball phone cup "
    "plate pizza cake fruit apple banana bowl bottle glass book clock sign light wall floor hill river bridge city"
)
_WORDS = _VOCABULARY.split()
