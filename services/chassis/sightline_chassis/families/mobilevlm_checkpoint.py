"""Released checkpoints of MobileVLM V2 (mtgv/MobileVLM_V2-1.7B, -3B, -7B), converted to a form that transformers
reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sightline.errors import InvalidInput
from torch import Tensor
from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig, LlavaImageProcessor

from sightline_chassis.families.mobilevlm import (
    MobileVlmConfig,
    MobileVlmForConditionalGeneration,
    MobileVlmProcessor,
)
from sightline_chassis.tensor_file import read_tensors

IMAGE, PAD = "<image>", "<pad>"
# The conversation "v1" of the released code, which is Vicuna's.
TEMPLATE = (
    "{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_NAMES = (  # released, ours; the first that fits
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_tower.", "model.vision_tower."),
    ("model.mm_projector.mlp.mlp.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.mlp.mlp.2.", "model.multi_modal_projector.linear_2."),
    ("model.mm_projector.peg.peg.0.", "model.multi_modal_projector.position."),
    ("lm_head.", "lm_head."),
    ("model.", "model.language_model."),
)
# OpenAI's CLIP ViT-L/14 at 336 pixels, the tower of all released sizes.
_TOWER = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip


def convert(source: Path, target: Path, *, tower: dict[str, Any] | None = None) -> None:
    """Convert a released checkpoint to `target`, a checkpoint in transformers' form.

    Args:
        source: config.json (model_type "mobilevlm"), weights (safetensors or *.bin, in shards or not), tokenizer.
        target: a new directory.
        tower: configuration of the CLIP tower, if it is not ViT-L/14 at 336 pixels.

    Raises:
        InvalidInput: it is not a MobileVLM V2, tensors are missing or left over, or the target exists.
    """
    if target.exists():
        raise InvalidInput(f"{target} already exists; name a new directory", reason="DIRECTORY_EXISTS")
    config = _config(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"pad_token": PAD, "additional_special_tokens": [IMAGE]})
    vision = CLIPVisionConfig(**(_TOWER | (tower or {})))
    image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))
    text = LlamaConfig(**{name: value for name, value in config.items() if name in LlamaConfig().to_dict()})
    text.model_type, text.architectures = "llama", None
    rows = max(len(tokenizer), text.vocab_size)
    text.vocab_size, text.pad_token_id = rows, tokenizer.pad_token_id
    side = 12 if tower is None else round((tower["image_size"] // tower["patch_size"]) / 2)
    made = MobileVlmConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        image_seq_length=side * side,
        projector_side=side,
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
    )
    with torch.device("meta"):
        model = MobileVlmForConditionalGeneration(made)
    tensors = _renamed(source)
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = _with_rows(tensors[name], rows)
    wanted = set(model.state_dict())
    missing, left = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    if missing or left:
        raise InvalidInput(
            f"{source} is not a MobileVLM V2: {len(missing)} tensors are missing, {len(left)} are left over, such as "
            f"{[*missing, *left][:3]}",
            reason="MODEL_UNKNOWN",
        )
    model.load_state_dict(tensors, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.save_pretrained(target)
    edge = vision.image_size
    images = LlavaImageProcessor(
        do_pad=config.get("image_aspect_ratio", "pad") == "pad",
        size={"shortest_edge": edge},
        crop_size={"height": edge, "width": edge},
    )
    MobileVlmProcessor(
        images, tokenizer, image_seq_length=side * side, chat_template=TEMPLATE, patch_size=vision.patch_size
    ).save_pretrained(target)


def _config(source: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{source} has no config.json that can be read: {error}", reason="MODEL_UNKNOWN") from error
    kind = config.get("mm_projector_type")
    if kind is None or not str(kind).startswith("ldpnetv2"):
        raise InvalidInput(
            f"{source} is not a MobileVLM V2: its mm_projector_type is {kind}, not ldpnetv2", reason="MODEL_UNKNOWN"
        )
    return config


def _renamed(source: Path) -> dict[str, Tensor]:
    """The released tensors under our names."""
    tensors = {}
    for name, tensor in _released(source):
        if name.endswith(("position_ids", "rotary_emb.inv_freq")):  # computed, not learned
            continue
        before, after = next(((a, b) for a, b in _NAMES if name.startswith(a)), ("", ""))
        tensors[after + name.removeprefix(before)] = tensor
    return tensors


def _released(source: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(source.glob("*.safetensors"))
    for file in files or sorted(source.glob("pytorch_model*.bin")):
        try:
            yield from read_tensors(file).items()
        except ValueError as error:
            raise InvalidInput(str(error), reason="MODEL_UNREADABLE") from error


def _with_rows(weight: Tensor, rows: int) -> Tensor:
    """The weight with rows of zeros for added tokens: their logits are 0."""
    more = weight.new_zeros(max(0, rows - len(weight)), weight.shape[1])
    return torch.cat([weight, more]).contiguous()
