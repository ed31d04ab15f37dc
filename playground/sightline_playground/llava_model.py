"""The tiny LVLM: LlavaForConditionalGeneration of transformers in an ordinary Hugging Face folder.

    model = AutoModelForImageTextToText.from_pretrained("playground/weights/llava")
    processor = AutoProcessor.from_pretrained("playground/weights/llava")

Its vision tower is the tiny CLIP's, converted and frozen, followed by a projector and a small Llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sightline_playground import clip_model
from sightline_playground.drawing import SIZE
from sightline_playground.tokens import lvlm_tokenizer

if TYPE_CHECKING:
    import torch

FEATURE_LAYER: Final = -2
"""The tower's second-to-last layer, as in LLaVA-1.5."""
PATCHES: Final = (SIZE // clip_model.PATCH) ** 2
"""9 image tokens."""
MAX_NEW_TOKENS: Final = 64
INIT: Final = 0.06
"""Standard deviation of the first weights: about 0.7 / sqrt(width). transformers' 0.02 is for wide models."""


def build(clip: Any) -> Any:
    """An untrained LVLM on the tower of `clip` (an open_clip.CLIP); other weights from torch's global random state."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        GenerationConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    tokenizer = lvlm_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=clip_model.WIDTH,
        intermediate_size=4 * clip_model.WIDTH,
        projection_dim=clip_model.WIDTH,
        num_hidden_layers=clip_model.LAYERS,
        num_attention_heads=clip_model.WIDTH // clip_model.HEAD,
        image_size=SIZE,
        patch_size=clip_model.PATCH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=image,
            image_seq_length=PATCHES,
            vision_feature_layer=FEATURE_LAYER,
            vision_feature_select_strategy="default",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
        suppress_tokens=[tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, image],
    )
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "vision_tower" not in name:
            torch.nn.init.normal_(weight, std=INIT)
    model.model.vision_tower.load_state_dict(tower_state(clip.visual.state_dict()), strict=True)
    model.model.vision_tower.requires_grad_(False)
    return model


def tower_state(visual: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of open_clip's visual tower under the names of transformers' CLIPVisionModel.

    open_clip's last projection has no counterpart there and is left out.
    """
    state = {
        "embeddings.class_embedding": visual["class_embedding"],
        "embeddings.patch_embedding.weight": visual["conv1.weight"],
        "embeddings.position_embedding.weight": visual["positional_embedding"],
    }
    for ours, theirs in {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}.items():
        for part in ("weight", "bias"):
            state[f"{ours}.{part}"] = visual[f"{theirs}.{part}"]
    for layer in range(clip_model.LAYERS):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for part in ("weight", "bias"):
            query_key_value = visual[f"{theirs}.attn.in_proj_{part}"].chunk(3)
            for name, tensor in zip("qkv", query_key_value, strict=True):
                state[f"{ours}.self_attn.{name}_proj.{part}"] = tensor
            state[f"{ours}.self_attn.out_proj.{part}"] = visual[f"{theirs}.attn.out_proj.{part}"]
            state[f"{ours}.layer_norm1.{part}"] = visual[f"{theirs}.ln_1.{part}"]
            state[f"{ours}.layer_norm2.{part}"] = visual[f"{theirs}.ln_2.{part}"]
            state[f"{ours}.mlp.fc1.{part}"] = visual[f"{theirs}.mlp.c_fc.{part}"]
            state[f"{ours}.mlp.fc2.{part}"] = visual[f"{theirs}.mlp.c_proj.{part}"]
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def processor(tokenizer: Any = None) -> Any:
    """The LlavaProcessor: CLIP's picture preparation, the LVLM's tokenizer and template.

    Args:
        tokenizer: None means the plain LVLM's.
    """
    from transformers import CLIPImageProcessor, LlavaProcessor

    tokenizer = tokenizer or lvlm_tokenizer()
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": SIZE},
            crop_size={"height": SIZE, "width": SIZE},
            image_mean=list(clip_model.MEAN),
            image_std=list(clip_model.STD),
        ),
        tokenizer=tokenizer,
        patch_size=clip_model.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def save(model: Any, directory: Path, tokenizer: Any = None) -> None:
    """Write the Hugging Face folder; without a tokenizer, that of the plain LVLM."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(directory))
    processor(tokenizer).save_pretrained(str(directory))
    clip_model.readable(directory)


def load(directory: Path) -> tuple[Any, Any]:
    """(model in eval mode, processor) by transformers' ordinary classes."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(str(directory), local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(str(directory), local_files_only=True)
