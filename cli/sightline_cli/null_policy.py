"""Null policy: an adapter too small to change any output, to check that a sampler loads policies."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from sightline.sampler import AdapterPlace, PolicyManifest, write_manifest

RUN = "doctor"
"""The run of these policies: no other run's policies are touched."""
_NEXT_TO_NOTHING = 1e-30  # an adapter of zeros is refused: a lost one would look the same


def write_null_policy(directory: Path, place: AdapterPlace, version: int, base_digest: str) -> None:
    """Make an empty directory a policy that changes nothing in any number type.

    Args:
        directory: empty.
        place: the layer that it changes.
        version: its version in `RUN`.
        base_digest: digest of the sampler's base model.
    """
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": [place.module],
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    a = np.full((1, place.columns), 1.0, np.float32)
    b = np.full((place.rows, 1), _NEXT_TO_NOTHING, np.float32)
    tensors = {f"base_model.model.{place.module}.lora_{name}.weight": value for name, value in (("A", a), ("B", b))}
    header, at = dict[str, object](), 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = struct.pack("<Q", len(text)) + text + b"".join(value.tobytes() for value in tensors.values())
    (directory / "adapter_model.safetensors").write_bytes(content)
    write_manifest(directory, PolicyManifest(version, 0, "lora", base_digest, run_id=RUN))
