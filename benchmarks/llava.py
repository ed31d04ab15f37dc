"""Random-weight LLaVAs to measure with: the speed of a model does not depend on what it has learned.

`small` has 14 M parameters and 576 image tokens (336 pixels in patches of 14, as LLaVA-1.5) and a vocabulary of 32 000:
on two cores, the cost of a prompt relative to a token is as in the 7 B model. `large` has
the shape of LLaVA-1.5-7B, for a GPU.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

VOCABULARY = 32_000
IMAGE_TOKENS = 576
TEMPLATE = (
    "{% for m in messages %}w10 {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}w11{% endif %}"
)


def prompt(words: int = 39) -> str:
    """A user's text of this many tokens; 617 tokens with the template and the image."""
    return " ".join(f"w{100 + i}" for i in range(words))


def picture(seed: int, side: int = 336) -> bytes:
    """An encoded picture of smooth noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def make(directory: Path, *, size: str = "small", seed: int = 0, vocabulary: int = VOCABULARY) -> Path:
    """Write a model and its processor.

    Its distributions have about 3 nats of entropy and almost no mass on the end token, so each candidate has the
    requested number of tokens.

    Args:
        directory: where to write it.
        size: "small" or "large", see the module.
        seed: of the weights.
        vocabulary: how many tokens there are.
    """
    names = {"<pad>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "<unk>": 4}
    names |= {f"w{i}": i for i in range(5, vocabulary)}
    words = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(_config(size, vocabulary))
    with torch.no_grad():
        # Scale the last norm, not the head: if the head is tied to the embeddings, a token would be followed by itself.
        model.get_decoder().norm.weight.mul_(12.0)
        model.lm_head.weight[2] = 0.0  # a logit of 0 among 32 000 with a standard deviation of 4
    model.to(torch.float32 if size == "small" else torch.float16).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def _config(size: str, vocabulary: int) -> LlavaConfig:
    small = size == "small"
    vision = CLIPVisionConfig(
        image_size=336, patch_size=14, hidden_size=256 if small else 1024,
        intermediate_size=1024 if small else 4096, num_hidden_layers=3 if small else 24,
        num_attention_heads=4 if small else 16,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=vocabulary, hidden_size=256 if small else 4096, intermediate_size=688 if small else 11008,
        num_hidden_layers=4 if small else 32, num_attention_heads=4 if small else 32,
        num_key_value_heads=4 if small else 32, max_position_embeddings=4096,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=small,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=3, vision_feature_layer=-2,
        image_seq_length=IMAGE_TOKENS, tie_word_embeddings=small,
    )  # fmt: skip
