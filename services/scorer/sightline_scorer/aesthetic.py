"""The aesthetic predictor of LAION: a small network on a picture's CLIP embedding, without activations between layers.

`sac+logos+ava1-l14-linearMSE.pth` for OpenAI's ViT-L-14: 768 -> 1024 -> 128 -> 64 -> 16 -> 1; the dropout between the
layers does nothing at inference.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sightline.errors import PreconditionFailed

_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(weight|bias)")


@dataclass(frozen=True, eq=False)
class AestheticHead:
    """The network's layers, each a weight [out, in] and a bias [out], float32."""

    layers: tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...]
    digest: str
    """SHA-256 of the file, hexadecimal."""

    @classmethod
    def read(cls, path: Path) -> AestheticHead:
        """Read a .safetensors file, or a .pth if torch is installed.

        Raises:
            FileNotFoundError: the file does not exist.
            PreconditionFailed: HEAD_UNKNOWN: it is not such a network.
        """
        content = path.read_bytes()
        try:
            state = _safetensors(content) if path.suffix == ".safetensors" else _pth(path)
            parts: dict[int, dict[str, npt.NDArray[np.float32]]] = {}
            for key, value in state.items():
                if found := _LAYER.fullmatch(key):
                    parts.setdefault(int(found[1]), {})[found[2]] = value
            layers = tuple((parts[number]["weight"], parts[number]["bias"]) for number in sorted(parts))
            sizes = [layer[0].shape for layer in layers]
            if not layers or sizes[-1][0] != 1 or any(a[0] != b[1] for a, b in itertools.pairwise(sizes)):
                raise ValueError(f"layers of {sizes}")
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise PreconditionFailed(
                f"{path} holds no network layers.N.weight, layers.N.bias down to one number: {error}",
                reason="HEAD_UNKNOWN",
            ) from error
        return cls(layers, hashlib.sha256(content).hexdigest())

    @property
    def size(self) -> int:
        """D, number of dimensions of its input embeddings."""
        return int(self.layers[0][0].shape[1])

    def __call__(self, embedding: npt.NDArray[np.float32]) -> np.float32:
        """The score of a picture's embedding [D], which has length 1."""
        for weight, bias in self.layers:
            embedding = weight @ embedding + bias
        return np.float32(embedding[0])


def _safetensors(content: bytes) -> dict[str, npt.NDArray[np.float32]]:
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    found = {}
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        if facts["dtype"] != "F32":
            raise ValueError(f"{name} is {facts['dtype']}, not F32")
        begin, end = facts["data_offsets"]
        values = np.frombuffer(content[8 + length + begin : 8 + length + end], "<f4")
        found[name] = values.reshape(facts["shape"]).astype(np.float32)
    return found


def _pth(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    from sightline_chassis.tensor_file import read_tensors

    return {name: value.float().numpy() for name, value in read_tensors(path).items()}
