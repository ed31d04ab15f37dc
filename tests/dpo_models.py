"""Small random models of each family, with processors and pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sampler_models import TEMPLATE, WORDS, make_llava, png
from sightline_trainer.pairs.build import FEATURES
from sightline_trainer.recipe import Recipe
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
_TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_QWEN_TEMPLATE = TEMPLATE.replace("<image>", "<|vision_start|> <|image_pad|> <|vision_end|>")


def _tokenizer(image: str, *special: str) -> PreTrainedTokenizerFast:
    names = {name: i for i, name in enumerate(("<pad>", "<s>", "</s>", image, "<unk>", *special))}
    for word in WORDS:
        names.setdefault(word, len(names))
    words = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": image, **{f"special_{i}": name for i, name in enumerate(special)}},
    )  # fmt: skip


def make_family(directory: Path, family: str) -> Path:
    """A random model of 0.1 M parameters and its processor."""
    if family == "llava":
        return make_llava(directory)
    torch.manual_seed(0)
    model, processor = _llava_next() if family == "llava_next" else _qwen(family)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.data.mul_(3.0)
        elif "image_newline" in name:
            parameter.data.normal_()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def _llava_next() -> tuple[Any, Any]:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    grids = [[32, 64], [64, 32], [64, 64]]
    tokenizer = _tokenizer("<image>")
    config = LlavaNextConfig(
        vision_config=vision, text_config=LlamaConfig(vocab_size=len(tokenizer) + 3, **_TEXT), image_token_id=3,
        image_grid_pinpoints=grids, vision_feature_layer=-1,
    )  # fmt: skip
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grids
    )
    processor = LlavaNextProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config), processor


def _qwen(family: str) -> tuple[Any, Any]:
    tokenizer = _tokenizer("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
    ids = tokenizer.convert_tokens_to_ids
    text = {
        **_TEXT, "vocab_size": len(tokenizer) + 3,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
    }  # fmt: skip
    special = {
        "image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>"),
    }  # fmt: skip
    model: Any
    if family == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **special))
    else:
        vision = {
            "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 64,
            "patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1],
        }  # fmt: skip
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special))
    images = Qwen2VLImageProcessor(patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64})
    processor = Qwen2VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=_video(), chat_template=_QWEN_TEMPLATE
    )
    return model, processor


def _video() -> Any:
    from transformers import Qwen2VLVideoProcessor

    return Qwen2VLVideoProcessor(patch_size=8, merge_size=2)


def random_pairs(model: Path, layout: list[tuple[int, int, int]], *, seed: int = 0) -> Dataset:
    """Pairs of random tokens.

    Args:
        layout: (prompt, chosen, rejected) for each pair; equal prompt numbers share an image and text, equal response
            numbers of one prompt are one response. Lengths differ with the numbers.
    """
    processor = AutoProcessor.from_pretrained(model)
    rows = []
    for prompt, chosen, rejected in layout:
        question = f"describe the {' '.join(WORDS[5 : 6 + prompt])} ."
        content = [{"type": "image"}, {"type": "text", "text": question}]
        rendered = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        row = {
            "prompt_id": f"p{prompt}",
            "images": [{"bytes": png(seed + prompt, (40 + 16 * (prompt % 3), 40)), "path": f"{prompt}.png"}],
            "prompt": [{"role": "user", "content": question}],
            "rendered_prompt": rendered,
            "margin": 5.0, "iteration": 1,
        }  # fmt: skip
        for side, number in (("chosen", chosen), ("rejected", rejected)):
            generator = torch.Generator().manual_seed(100 * prompt + number)
            ids = torch.randint(10, 30, (3 + 2 * number,), generator=generator).tolist()
            row |= {
                f"{side}_ids": [*ids, 2], f"{side}_reward": 0.0, f"{side}_policy_version": 0, f"{side}_index": number,
                side: [{"role": "assistant", "content": processor.tokenizer.decode(ids)}],
            }  # fmt: skip
        rows.append({name: row.get(name) for name in FEATURES})
    return Dataset.from_list(rows, features=FEATURES)


def dpo_recipe(model: Path, **dpo: Any) -> Recipe:
    """A recipe for a test of the update."""
    return Recipe.model_validate(
        {
            "name": "test", "model": str(model), "threads": 1, "data": {"train": "a", "test": "b"},
            "dpo": {"beta": 0.1, "batch_size": 4, **dpo},
        }
    )  # fmt: skip


def shake(model: Any, seed: int = 1) -> None:
    """Move the policy away from the reference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
            elif parameter.requires_grad and "lora" not in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
