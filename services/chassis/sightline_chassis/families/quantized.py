"""Quantized: a checkpoint with its decoder's linear layers in 4 bits, the same in sampler and update.

bitsandbytes' NF4 with its scales quantized too (QLoRA, arXiv 2305.14314), as in `transformers` and `peft`. Head, tower
and projector are not quantized. The same files give the same 4-bit numbers, so both sides compute one policy. A base
model that is not quantized is a different one, about 0.25 nats a token away for random models.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from sightline.errors import PreconditionFailed

Quantization = Literal["nf4"]

BYTES = 0.516
"""Bits of a number: 4, plus its share of an 8-bit scale for each 64 numbers and of that scale's float32."""


def refuse_missing() -> None:
    """Check that bitsandbytes is installed.

    Raises:
        PreconditionFailed: QUANTIZATION_UNAVAILABLE.
    """
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise PreconditionFailed(
            f"quantization: nf4 needs {' and '.join(missing)}, which this installation lacks: pip install "
            "'sightline[qlora]'",
            reason="QUANTIZATION_UNAVAILABLE",
        )


def quantized(model: str | Path, dtype: Any, device: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load a checkpoint quantized.

    Args:
        model: directory or hub name.
        dtype: torch type of the parts that are not quantized, and in which products are computed.
        device: the device to load it on.

    Raises:
        PreconditionFailed: bitsandbytes is not installed.
    """
    refuse_missing()
    import torch
    from transformers import BitsAndBytesConfig

    from sightline_chassis.families.auto import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        frame = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model))
    inside = {id(module) for module in frame.get_decoder().modules()} - {id(frame.get_output_embeddings())}
    kept = [
        name for name, part in frame.named_modules() if isinstance(part, torch.nn.Linear) and id(part) not in inside
    ]
    settings: Any = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )
    return {"quantization_config": settings, "device_map": {"": device}}
