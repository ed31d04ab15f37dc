"""Models of real shapes with random weights, created on the device, so that no file of 14 GB is written or read.

The speed of a model does not depend on what it has learned. Heads are scaled so that a distribution has about 3 nats of
entropy at any width. End tokens are never sampled, so each candidate has the requested number of tokens. The output of
a layer is scaled by its depth, as in the initialisation of real models. Otherwise bfloat16's rounding grows from layer
to layer to 0.2 nats a token, which the arrival gate refuses.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llava
import tokenizers
import torch
from sightline_chassis.families.processing import Processing
from sightline_sampler.engines.local import attention
from sightline_sampler.engines.local.graphs import StepGraphs
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prompts import Prepared
from tokenizers import Tokenizer
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

VOCABULARY, DRY_VOCABULARY = llava.VOCABULARY, 2_000
IMAGE_TOKENS = 576


def vocabulary(*, dry: bool) -> int:
    """Size of a vocabulary; smaller in a dry run, because TRL's head scores every position on a CPU."""
    return DRY_VOCABULARY if dry else VOCABULARY


def llava_config(*, dry: bool, layers: int | None = None) -> LlavaConfig:
    """LLaVA-1.5-7B's shape; if dry, a tiny one with as many image tokens. Both towers have `layers` layers."""
    vision = CLIPVisionConfig(
        image_size=336, patch_size=14, hidden_size=64 if dry else 1024, intermediate_size=128 if dry else 4096,
        num_hidden_layers=layers or (2 if dry else 24), num_attention_heads=2 if dry else 16,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=vocabulary(dry=dry), hidden_size=64 if dry else 4096, intermediate_size=128 if dry else 11008,
        num_hidden_layers=layers or (2 if dry else 32), num_attention_heads=2 if dry else 32,
        num_key_value_heads=2 if dry else 32, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=3, vision_feature_layer=-2, image_seq_length=IMAGE_TOKENS
    )


def qwen_config(*, dry: bool, layers: int | None = None) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-7B's shape; if dry, a tiny one."""
    head = 16 if dry else 128
    text = {
        "vocab_size": vocabulary(dry=dry) if dry else 152064, "hidden_size": 64 if dry else 3584,
        "intermediate_size": 128 if dry else 18944, "num_hidden_layers": layers or (2 if dry else 28),
        "num_attention_heads": 4 if dry else 28, "num_key_value_heads": 2 if dry else 4,
        "max_position_embeddings": 32768, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
                            "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": layers or (2 if dry else 32), "hidden_size": 32 if dry else 1280,
        "out_hidden_size": 64 if dry else 3584, "num_heads": 2 if dry else 16,
        "intermediate_size": 64 if dry else 3420, "patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [1] if dry or layers else [7, 15, 23, 31],
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=3, video_token_id=4, vision_start_token_id=5,
        vision_end_token_id=6,
    )  # fmt: skip


def qwen_processor(directory: Path, words: int) -> Path:
    """Write a processor for `qwen_config` with this many tokens, named as LLaVA's in llava.py; return its directory."""
    names = {"<pad>": 0, "<s>": 1, "</s>": 2, "<|image_pad|>": 3, "<|video_pad|>": 4, "<|vision_start|>": 5,
             "<|vision_end|>": 6, "<unk>": 7}  # fmt: skip
    names |= {f"w{i}": i for i in range(8, words)}
    known = Tokenizer(tokenizers.models.WordLevel(names, unk_token="<unk>"))
    known.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {f"special_{i}": name for name, i in names.items() if name.startswith("<|")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=known, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=special,
    )  # fmt: skip
    sizes = {"patch_size": 14, "merge_size": 2}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes),
        chat_template=llava.TEMPLATE.replace("<image>", "<|vision_start|> <|image_pad|> <|vision_end|>"),
    ).save_pretrained(directory)  # fmt: skip
    return directory


def build(config: Any, device: str, dtype: torch.dtype, *, seed: int = 0) -> Any:
    """A model with random weights, on the device."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    text = config.get_text_config()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 1)
        for name, weight in model.named_parameters():
            if "language_model" in name and name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.div_((2 * text.num_hidden_layers) ** 0.5)
        head = model.get_output_embeddings().weight
        head.normal_(0, 4 / head.shape[1] ** 0.5)
        head[text.eos_token_id] = 0.0
    return model.eval().requires_grad_(False)


def base(model: Any, processor: Any = None, directory: Path = Path(), *, graphs: bool = True) -> BaseModel:
    """The base model as the sampler's engine holds it; with `graphs` it decodes by CUDA graphs on a GPU."""
    device = next(model.parameters()).device
    attention.register(device)
    model.set_attn_implementation(attention.NAME)
    text = model.config.get_text_config()
    # Prompts without a processor are made here, with images side by side in the first dimension.
    processing: Any = (
        Processing(processor, inspect.signature(model.forward).parameters)
        if processor
        else SimpleNamespace(join=lambda images: {name: torch.cat([one[name] for one in images]) for name in images[0]})
    )
    never = sorted({0, 1, 2, *range(3, 7)})  # end tokens too, so that every candidate has the requested length
    return BaseModel(
        model=model, processor=processor or SimpleNamespace(tokenizer=None), directory=directory, digest="0" * 64,
        processing=processing,
        device=device, dtype=model.dtype, eos_ids=frozenset({2}),
        suppressed=torch.tensor(never, device=device), placeholders=frozenset({3}), vocabulary=text.vocab_size,
        window=4096, text_prefix="model.language_model", keeps_logits=True, adapter_place=None,
        graphs=StepGraphs.of(device, model.dtype) if graphs else None,
    )  # fmt: skip


def prompt(model: Any, number: int, length: int = 617) -> Prepared:
    """A prompt of `length` tokens: for LLaVA 576 of them belong to an image; for others all are text."""
    generator = torch.Generator().manual_seed(number)
    config = model.config
    ids = torch.randint(100, config.get_text_config().vocab_size, (length,), generator=generator)
    if config.model_type != "llava":
        return Prepared(ids, "", {}, {}, "")
    ids[5 : 5 + IMAGE_TOKENS] = 3
    pixels = torch.randn((1, 3, 336, 336), generator=generator)
    return Prepared(ids, "", {}, {"pixel_values": pixels}, f"image-{number}")
