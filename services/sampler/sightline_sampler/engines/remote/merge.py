"""Merge an adapter into its base model's files without PyTorch, for engines that load only whole checkpoints.

W' = W + s B A in float32, rounded to W's own number type; s = alpha / r (rsLoRA: alpha / sqrt(r)). Modules that were
trained completely beside the adapter (PEFT's modules_to_save) replace the base model's. It handles one tensor at a
time, so a large model needs no more memory than its largest matrix.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from sightline.errors import PreconditionFailed

from sightline_sampler.engines.tensorfiles import PEFT_DEFAULT, Tensor, bare_name, tensors_in

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx")
_CHUNK = 16 << 20
_MOST = {"F16": 65504.0, "BF16": 3.3895e38}  # largest numbers of types with a smaller range than float32
_ONE_AT_A_TIME = threading.Lock()  # a caller may leave, and come back while its first merge continues

Floats = npt.NDArray[np.float32]
_Change = tuple[Tensor, Tensor, float] | Tensor


def merge(adapter: Path, base: Path, to: Path) -> None:
    """Write a whole checkpoint, completely or not at all: the base model's files with the adapter in its weights.

    Args:
        adapter: a PEFT directory that was checked against the base model (`check_adapter`).
        base: the base model's directory, with safetensors weights.
        to: the new directory; unchanged if it exists.

    Raises:
        PreconditionFailed: the adapter is of a kind other than W + s B A.
    """
    with _ONE_AT_A_TIME:
        if not to.exists():
            _merge(adapter, base, to)


def _merge(adapter: Path, base: Path, to: Path) -> None:
    changes = _changes(adapter)
    aside = to.with_name(f".{to.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for path in sorted(base.iterdir()):
            if path.is_file() and path.suffix not in _WEIGHTS:
                shutil.copy(path, aside)
        for path in sorted(base.glob("*.safetensors")):
            _rewrite(path, aside / path.name, changes)
        if changes:
            raise PreconditionFailed(
                f"{base} has no weights for {', '.join(sorted(changes)[:3])}: the adapter was trained on another base "
                "model; set engine.model to that one",
                reason="ADAPTER_KEYS_DO_NOT_MATCH",
            )
        aside.rename(to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _changes(adapter: Path) -> dict[str, _Change]:
    """By a weight's bare name: A, B and the scale of its module, or its replacement."""
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_bytes())
    odd = [name for name in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern") if config.get(name)]
    if odd:
        raise PreconditionFailed(
            f"the adapter uses {', '.join(odd)}, which the sampler cannot merge: publish it merged",
            reason="ADAPTER_UNSUPPORTED",
        )
    rank = int(config.get("r", PEFT_DEFAULT))
    scale = float(config.get("lora_alpha", PEFT_DEFAULT)) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    parts: dict[str, dict[str, Tensor]] = {}
    changes: dict[str, _Change] = {}
    for name, tensor in tensors_in(adapter, "adapter_model.safetensors").items():
        module, _, part = name.partition(".lora_")
        if not part:
            changes[bare_name(name)] = tensor
            continue
        parts.setdefault(bare_name(module), {})[part.split(".")[0]] = tensor
    return changes | {f"{module}.weight": (both["A"], both["B"], scale) for module, both in parts.items()}


def _rewrite(path: Path, to: Path, changes: dict[str, _Change]) -> None:
    """Write a file of tensors with some of them changed: same header, same order. Removes the used ones from
    `changes`."""
    tensors = sorted(tensors_in(path.parent, path.name).items(), key=lambda item: item[1].start)
    with path.open("rb") as source, to.open("wb") as out:
        (length,) = struct.unpack("<Q", source.read(8))
        source.seek(0)
        out.write(source.read(8 + length))
        for name, tensor in tensors:
            change = changes.pop(bare_name(name), None)
            out.seek(tensor.start)
            if change is None:
                source.seek(tensor.start)
                _copy(source, out, tensor.end - tensor.start)
            else:
                merged = _merged(name, tensor, change)
                if not (np.abs(merged) <= _MOST.get(tensor.dtype, np.finfo(np.float32).max)).all():
                    raise PreconditionFailed(
                        f"{name} is not finite with the adapter: train it again with a lower rate",
                        reason="WEIGHTS_NOT_FINITE",
                    )
                out.write(_encode(merged, tensor.dtype))
        out.flush()
        os.fsync(out.fileno())


def _merged(name: str, tensor: Tensor, change: _Change) -> Floats:
    if isinstance(change, Tensor):
        if change.shape != tensor.shape:
            raise PreconditionFailed(
                f"{name} is {list(change.shape)} in the adapter and {list(tensor.shape)} in the base model",
                reason="ADAPTER_KEYS_DO_NOT_MATCH",
            )
        return _read(change)
    a, b, scale = change
    with np.errstate(over="ignore", invalid="ignore"):  # checked by the caller
        found: Floats = _read(tensor) + np.float32(scale) * (_read(b) @ _read(a)).reshape(tensor.shape)
    return found


def _copy(source: BinaryIO, out: BinaryIO, size: int) -> None:
    while size and (piece := source.read(min(size, _CHUNK))):
        out.write(piece)
        size -= len(piece)


def _read(tensor: Tensor) -> Floats:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        raw = file.read(tensor.end - tensor.start)
    match tensor.dtype:
        case "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        case "F16" | "F32" | "F64":
            values = np.frombuffer(raw, f"<f{int(tensor.dtype[1:]) // 8}").astype(np.float32)
        case _:
            raise PreconditionFailed(
                f"weights of type {tensor.dtype} cannot be merged here: publish the policy merged",
                reason="ADAPTER_UNSUPPORTED",
            )
    return values.reshape(tensor.shape)


def _encode(values: Floats, dtype: str) -> bytes:
    if dtype != "BF16":
        return values.astype(f"<f{int(dtype[1:]) // 8}").tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to nearest, ties to even
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()
