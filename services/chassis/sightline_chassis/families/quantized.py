"""Quantized: a checkpoint whose decoder's linear layers are held in 4 bits each, the same in sampler and update.

bitsandbytes' NF4 with its scales quantized too (QLoRA, arXiv 2305.14314), as `transformers` and `peft` take it. Head,
tower and projector stay as they are. The same files give the same 4-bit numbers, so both sides compute one policy; a
base that is not quantized is another one, some 0.25 nats a token away in random models.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from sightline.errors import PreconditionFailed

Quantization = Literal["nf4"]

BYTES = 0.516
"""Of a number: 4 bits, and of each 64 a scale of 8 bits with its own share of a float32."""


def refuse_missing() -> None:
    """See that bitsandbytes is there.

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
    """Arguments of `from_pretrained` that load a checkpoint so.

    Args:
        model: directory or hub name.
        dtype: torch's, of what is not quantized; the number type that products are computed in, too.
        device: where it goes.

    Raises:
        PreconditionFailed: bitsandbytes is not there.
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
