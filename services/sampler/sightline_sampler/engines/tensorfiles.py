"""Checks a policy's safetensors files by their headers and bytes, without PyTorch and without loading them completely.

For remote engines, which silently load anything: names and shapes are compared with the base model's both ways,
something must change, and all numbers must be finite.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sightline.errors import PreconditionFailed
from sightline.sampler.types import AdapterPlace

from sightline_sampler.engines.base import StagedWeights

_CHUNK = 16 << 20
_NUMPY = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}
_EXPONENT = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80}
_WRAPPERS = ("base_model.", "model.", "language_model.")
PEFT_DEFAULT = 8  # default of rank and alpha
_MOST_SCALE = 1 << 16  # maximum of an adapter's alpha / rank: published ones are below 100; float16 ends here


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """The location of a tensor."""

    file: Path
    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]


def tensors_in(directory: Path, pattern: str = "*.safetensors") -> dict[str, Tensor]:
    """All tensors of a directory's files, by name.

    Raises:
        PreconditionFailed: a file is not safetensors, or there is none.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(directory.glob(pattern)):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header: dict[str, Any] = json.loads(file.read(min(length, 100 << 20)))
            for name, about in header.items():
                if name != "__metadata__":
                    start, end = (8 + length + offset for offset in about["data_offsets"])
                    if not start <= end <= path.stat().st_size:
                        raise ValueError(f"{name} lies beyond the end of the file")
                    found[name] = Tensor(path, start, end, about["dtype"], tuple(about["shape"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
            raise PreconditionFailed(f"{path} holds no tensors: {error}", reason="WEIGHTS_UNREADABLE") from error
    if not found:
        raise PreconditionFailed(
            f"{directory} holds no tensors in {pattern}: save the weights as safetensors", reason="WEIGHTS_UNREADABLE"
        )
    return found


def check_checkpoint(directory: Path, base: Path) -> StagedWeights:
    """Compare a whole checkpoint with the base model: same architecture, names and shapes; some tensor's bytes differ.

    Returns:
        Number of tensors, and of modules that changed.

    Raises:
        PreconditionFailed: it does not match the base model one to one, changes nothing, or is not finite.
    """
    ours, theirs = _config(base), _config(directory)
    if ours.get("architectures") != theirs.get("architectures"):
        raise PreconditionFailed(
            f"{directory} is a {theirs.get('architectures')}, but the base model is a {ours.get('architectures')}",
            reason="WEIGHTS_DO_NOT_FIT",
        )
    found, expected = tensors_in(directory), tensors_in(base)
    _compare({name: t.shape for name, t in found.items()}, {name: t.shape for name, t in expected.items()})
    changed = {
        name.rpartition(".")[0]
        for name, tensor in found.items()
        if tensor.dtype != expected[name].dtype or _digest(tensor) != _digest(expected[name])
    }
    if not changed:
        raise PreconditionFailed(
            f"{directory} contains the base model's weights: this policy changes nothing",
            reason="POLICY_CHANGES_NOTHING",
        )
    _refuse_infinite(found)
    return StagedWeights(tensors=len(found), modules=len(changed))


def check_adapter(directory: Path, base: Path, *, most_rank: int, tower: bool) -> StagedWeights:
    """Compare a LoRA adapter with the base model: each module exists with the right size, and some module changes.

    Names are compared without the prefixes that transformers releases put before the language model (`model.`,
    `language_model.`): a server maps them in its own way, and only probes show whether it did.

    Args:
        directory: a PEFT directory.
        base: the base model.
        most_rank: the server's maximum rank.
        tower: whether the server also supports adapters on vision tower and connector.

    Returns:
        Number of tensors, and of modules whose B A is not zero.

    Raises:
        PreconditionFailed: it does not fit, changes nothing, or is not finite.
    """
    config = _config(directory, "adapter_config.json")
    if whole := config.get("modules_to_save"):
        raise PreconditionFailed(
            f"the adapter also trains {', '.join(map(str, whole))} whole (dpo.train_projector), which this engine "
            f"cannot load with an adapter: publish it merged (`sightline policies merge`)",
            reason="ADAPTER_UNSUPPORTED",
        )
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise PreconditionFailed(
            f"{directory} is not a plain LoRA adapter (peft_type LORA, no bias): publish it merged",
            reason="ADAPTER_UNSUPPORTED",
        )
    ranks, alphas = _ranks_and_alphas(config)
    if (rank := max(ranks)) > most_rank:
        raise PreconditionFailed(
            f"the adapter's rank {rank:g} is over the engine's {most_rank} (engine.vllm.max_lora_rank)",
            reason="ADAPTER_UNSUPPORTED",
        )
    for alpha in alphas:
        check_scale("the adapter", alpha / (math.sqrt(min(ranks)) if config.get("use_rslora") else min(ranks)))
    found = tensors_in(directory, "adapter_model.safetensors")
    weights = {bare_name(name): tensor.shape for name, tensor in tensors_in(base).items()}
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.items():
        module, _, part = name.partition(".lora_")
        modules.setdefault(bare_name(module), {})[part.split(".")[0]] = tensor
    if unknown := sorted(module for module in modules if f"{module}.weight" not in weights):
        raise _mismatch("the base model has no place for", unknown)
    if lame := sorted(module for module, parts in modules.items() if parts.keys() != {"A", "B"}):
        raise _mismatch("A or B is missing of", lame)
    for module, parts in modules.items():
        out, into = weights[f"{module}.weight"][0], math.prod(weights[f"{module}.weight"][1:])
        if parts["A"].shape[1:] != (into,) or parts["B"].shape[:1] != (out,):
            raise _mismatch("of another shape", [module])
    others = sorted(module for module in modules if not _is_text(module))
    if others and not tower:
        raise PreconditionFailed(
            f"the adapter changes {others[0]}, outside the language model, where the engine silently ignores "
            f"adapters: publish it merged, or start the engine for it (engine.vllm.tower_lora)",
            reason="ADAPTER_UNSUPPORTED",
        )
    _refuse_infinite(found)
    changed = [module for module, parts in modules.items() if not any(_all_zero(tensor) for tensor in parts.values())]
    if not changed or not any(alphas):
        raise PreconditionFailed(
            "the adapter changes nothing: A, B or the scale is zero in every module", reason="POLICY_CHANGES_NOTHING"
        )
    return StagedWeights(tensors=len(found), modules=len(changed))


def check_scale(where: str, scale: float) -> None:
    """Refuse an adapter's scale (alpha over rank) that gives non-finite weights.

    Raises:
        PreconditionFailed: it is not finite, or so large that sums of products with it would not be.
    """
    if not math.isfinite(scale) or abs(scale) > _MOST_SCALE:
        raise PreconditionFailed(
            f"{where} has the scale {scale:g} (lora_alpha over its rank): it must be finite, and at most {_MOST_SCALE}",
            reason="WEIGHTS_NOT_FINITE",
        )


def _ranks_and_alphas(config: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """All ranks and alphas in an adapter's config.

    Raises:
        PreconditionFailed: one of them is not a number, or a rank is below 1.
    """
    found = []
    for one, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        patterns = config.get(pattern) or {}
        values = [config.get(one, PEFT_DEFAULT), *(patterns.values() if isinstance(patterns, dict) else [None])]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            raise PreconditionFailed(
                f"adapter_config.json has {one} or {pattern} without a number", reason="ADAPTER_UNREADABLE"
            )
        found.append(values)
    ranks, alphas = found
    if not all(1 <= rank < math.inf for rank in ranks):
        raise PreconditionFailed("adapter_config.json has a rank below 1", reason="ADAPTER_UNREADABLE")
    return ranks, alphas


def adapter_place(base: Path) -> AdapterPlace | None:
    """A layer of a base model that an adapter may change: in the language model, a projection if there is one. The name
    is transformers' name in memory, which trained adapters use, whatever the files say.

    Raises:
        PreconditionFailed: the base model's files cannot be read.
    """
    found = [
        (not name.endswith("q_proj.weight"), len(name), name, tensor.shape)
        for name, tensor in tensors_in(base).items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and _is_text(bare_name(name))
    ]
    if not found:
        return None
    *_, name, (rows, columns) = min(found)
    return AdapterPlace(f"model.language_model.{bare_name(name).removesuffix('.weight')}", rows, columns)


def _is_text(module: str) -> bool:
    """Whether a module, by its bare name, is in a layer of the language model."""
    return ".layers." in f".{module}" and "vision" not in module


def bare_name(name: str) -> str:
    """A tensor's or module's name without the prefixes that differ between releases."""
    stripped = name
    while stripped.startswith(_WRAPPERS):
        stripped = stripped.partition(".")[2]
    return stripped


def _config(directory: Path, name: str = "config.json") -> dict[str, Any]:
    try:
        return dict(json.loads((directory / name).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PreconditionFailed(f"{directory / name} cannot be read: {error}", reason="WEIGHTS_UNREADABLE") from error


def _compare(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise _mismatch("the checkpoint lacks", missing)
    if unexpected := sorted(found.keys() - expected.keys()):
        raise _mismatch("the base model has no place for", unexpected)
    if shapes := sorted(name for name in found if found[name] != expected[name]):
        raise _mismatch("of another shape", shapes)


def _mismatch(what: str, names: list[str]) -> PreconditionFailed:
    return PreconditionFailed(
        f"the policy's tensors do not match the base model: {what} {len(names)}, for example {', '.join(names[:3])}",
        reason="WEIGHTS_DO_NOT_FIT",
        metadata={"count": str(len(names)), "keys": ", ".join(names[:3])},
    )


def _pieces(tensor: Tensor) -> Iterable[bytes]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.end - tensor.start
        while left and (piece := file.read(min(left, _CHUNK))):
            left -= len(piece)
            yield piece


def _digest(tensor: Tensor) -> bytes:
    total = hashlib.sha256()
    for piece in _pieces(tensor):
        total.update(piece)
    return total.digest()


def _all_zero(tensor: Tensor) -> bool:
    if tensor.dtype not in _NUMPY:
        return False
    sign = {"<u8": 0x7FFF_FFFF_FFFF_FFFF, "<u4": 0x7FFF_FFFF, "<u2": 0x7FFF}[_NUMPY[tensor.dtype]]  # -0.0 is zero
    return not any((np.frombuffer(piece, dtype=_NUMPY[tensor.dtype]) & sign).any() for piece in _pieces(tensor))


def _refuse_infinite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype in _NUMPY:
            mask = _EXPONENT[tensor.dtype]  # all ones: infinite, or not a number
            for piece in _pieces(tensor):
                bits = np.frombuffer(piece, dtype=_NUMPY[tensor.dtype])
                if ((bits & mask) == mask).any():
                    raise PreconditionFailed(
                        f"{name} is not finite: publish weights without NaN or infinity", reason="WEIGHTS_NOT_FINITE"
                    )
