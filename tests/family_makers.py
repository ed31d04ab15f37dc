"""A tiny model and its processor for each family: true classes and mechanisms, small numbers."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t
from family_words import WORDS, chatml, template, tokenizer
from sightline_chassis.families.mobilevlm import (
    MobileVlmConfig,
    MobileVlmForConditionalGeneration,
    MobileVlmProcessor,
)
from tokenizers import AddedToken

Made = tuple[Any, Any]

TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 768,
}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
CHATML = {"bos": "<|endoftext|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"}
_VISION = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
_GRIDS = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]


def text_config(words: Any, **more: Any) -> dict[str, Any]:
    special = {
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    # Three ids more than the tokenizer has words for, as real checkpoints have.
    return {**TEXT, "vocab_size": len(words) + 3, **special, **more}


def token(words: Any, name: str) -> int:
    """The id of a special token."""
    return int(words.convert_tokens_to_ids(name))


def llava() -> Made:
    """LLaVA-1.5: one square of a CLIP tower; 16 image tokens."""
    words = tokenizer(begins=True, named={"image_token": "<image>"})
    chat = template("{role}: ", " ", "ASSISTANT:", "<image>\n", images_first=True).replace(
        "message['role']", "message['role'].upper()"
    )
    images = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = t.LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat,
    )  # fmt: skip
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8),
        text_config=t.LlamaConfig(**text_config(words)), image_token_id=token(words, "<image>"),
        vision_feature_layer=-2, image_seq_length=16,
    )  # fmt: skip
    return t.LlavaForConditionalGeneration(config), processor


def mobilevlm() -> Made:
    """MobileVLM V2: CLIP's patches through LDPv2, 4 x 4 tokens; images padded to a square."""
    words = tokenizer(begins=True, named={"image_token": "<image>"})
    chat = template("{role}: ", " ", "ASSISTANT:", "<image>\n", images_first=True).replace(
        "message['role']", "message['role'].upper()"
    )
    images = t.LlavaImageProcessor(do_pad=True, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = MobileVlmProcessor(images, words, image_seq_length=16, patch_size=4, chat_template=chat)
    config = MobileVlmConfig(
        vision_config=t.CLIPVisionConfig(**TOWER, image_size=32, patch_size=4),
        text_config=t.LlamaConfig(**text_config(words)), image_token_index=token(words, "<image>"),
        image_seq_length=16, projector_side=4, vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    return MobileVlmForConditionalGeneration(config), processor


def llava_next() -> Made:
    """LLaVA-NeXT on Mistral: tiles by the image's shape ("anyres"), unpadded, a newline after each row."""
    words = tokenizer(begins=True, named={"image_token": "<image>"})
    chat = template("[INST] ", " ", "[/INST]", "<image>\n", images_first=True)
    images = t.LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=_GRIDS
    )
    processor = t.LlavaNextProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat,
    )  # fmt: skip
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8),
        text_config=t.MistralConfig(**text_config(words), sliding_window=None), image_token_id=token(words, "<image>"),
        image_grid_pinpoints=_GRIDS, vision_feature_layer=-2,
    )  # fmt: skip
    return t.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> Made:
    """LLaVA-OneVision on Qwen2: tiles of a SigLIP tower, shrunk where they are more than `anyres_max` of them."""
    words = tokenizer("<|im_start|>", **CHATML, named={"image_token": "<image>", "video_token": "<video>"})
    images = t.LlavaOnevisionImageProcessor(size={"height": 32, "width": 32}, image_grid_pinpoints=_GRIDS)
    processor = t.LlavaOnevisionProcessor(
        images, words, t.LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32}), num_image_tokens=16,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_2",
        chat_template=template("<|im_start|>{role} ", "<|im_end|>", "<|im_start|>assistant\n", "<image>\n",
                               images_first=True),
    )  # fmt: skip
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, vision_use_head=False),
        text_config=t.Qwen2Config(**text_config(words)), image_token_index=token(words, "<image>"),
        video_token_index=token(words, "<video>"), image_grid_pinpoints=_GRIDS, vision_aspect_ratio="anyres_max_2",
    )  # fmt: skip
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def _qwen_words() -> Any:
    return tokenizer("<|im_start|>", *_VISION, **CHATML, named={"image_token": "<|image_pad|>"})


def _qwen_ids(words: Any) -> dict[str, int]:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {key: token(words, f"<|{name}|>") for key, name in zip(keys, names, strict=True)}


def _qwen_pixels(patch: int) -> dict[str, Any]:
    edge = 2 * patch
    return {"patch_size": patch, "merge_size": 2, "size": {"shortest_edge": 4 * edge**2, "longest_edge": 20 * edge**2}}


_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant .<|im_end|>\n"


def _qwen2_processor(words: Any) -> Any:
    return t.Qwen2VLProcessor(
        t.Qwen2VLImageProcessor(**_qwen_pixels(8)), words, t.Qwen2VLVideoProcessor(patch_size=8, merge_size=2),
        chat_template=chatml(_QWEN_IMAGE, begin=_QWEN_SYSTEM),
    )  # fmt: skip


def qwen2_vl() -> Made:
    """Qwen2-VL: as many tokens as the image has pixels for, and positions in three dimensions."""
    words = _qwen_words()
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    text = text_config(words, rope_parameters=_MROPE)
    config = t.Qwen2VLConfig(text_config=text, vision_config=vision, **_qwen_ids(words))
    return t.Qwen2VLForConditionalGeneration(config), _qwen2_processor(words)


def qwen2_5_vl() -> Made:
    """Qwen2.5-VL: windows in the tower, but for its last layer."""
    words = _qwen_words()
    vision = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 64, "patch_size": 8,
        "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = text_config(words, rope_parameters=_MROPE)
    config = t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_ids(words))
    processor = t.Qwen2_5_VLProcessor(
        t.Qwen2VLImageProcessor(**_qwen_pixels(8)), words, t.Qwen2VLVideoProcessor(patch_size=8, merge_size=2),
        chat_template=chatml(_QWEN_IMAGE, begin=_QWEN_SYSTEM),
    )  # fmt: skip
    return t.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_processor(words: Any, answer: str = "") -> Any:
    return t.Qwen3VLProcessor(
        t.Qwen2VLImageProcessor(**_qwen_pixels(8)), words, t.Qwen3VLVideoProcessor(patch_size=8, merge_size=2),
        chat_template=chatml(_QWEN_IMAGE, answer=answer),
    )  # fmt: skip


_QWEN3_VISION = {
    "depth": 3, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 64, "patch_size": 8,
    "num_position_embeddings": 16,
}  # fmt: skip
_INTERLEAVED = {**_MROPE, "mrope_interleaved": True}


def qwen3_vl() -> Made:
    """Qwen3-VL: features of three layers of the tower go into the decoder's first layers ("deepstack")."""
    words = _qwen_words()
    text = text_config(words, rope_parameters=_INTERLEAVED, head_dim=16, num_hidden_layers=3)
    vision = {**_QWEN3_VISION, "deepstack_visual_indexes": [0, 1]}
    config = t.Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(words))
    return t.Qwen3VLForConditionalGeneration(config), _qwen3_processor(words)


def qwen3_5() -> Made:
    """Qwen3.5: three of four layers keep a state ("linear attention") in place of keys and values.

    What a head reads from its state is put to length 1, so where it reads nearly nothing it is rounding: with heads 16
    wide bfloat16 alone made 0.05 nats a token, with 128, the config's default, 0.02 (docs/log.md).
    """
    words = tokenizer("<|im_start|>", "<think>", "</think>", *_VISION, **CHATML, named={"image_token": "<|image_pad|>"})
    # transformers loads it as Qwen3.5's own, which cuts texts into bytes: only added tokens stay words.
    words.add_tokens([AddedToken(word, single_word=word.isalpha(), lstrip=word != "\n") for word in ("\n", *WORDS)])
    text = text_config(
        words, head_dim=32, num_hidden_layers=4, linear_key_head_dim=128, linear_value_head_dim=128,
        linear_num_key_heads=2, linear_num_value_heads=4,
        rope_parameters={**_INTERLEAVED, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25},
    )  # fmt: skip
    config = t.Qwen3_5Config(text_config=text, vision_config=_QWEN3_VISION, **_qwen_ids(words))
    return t.Qwen3_5ForConditionalGeneration(config), _qwen3_processor(words, "<think>\n\n</think>\n\n")


def internvl() -> Made:
    """InternVL3 as transformers has it: up to four tiles and a thumbnail, each a row of pixels, 4 tokens each."""
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer("<|im_start|>", **CHATML, named=named)
    images = t.GotOcr2ImageProcessor(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = t.InternVLProcessor(
        images, words, t.InternVLVideoProcessor(size={"height": 32, "width": 32}), image_seq_length=4,
        chat_template=chatml("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    config = t.InternVLConfig(
        vision_config={**TOWER, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config=t.Qwen2Config(**text_config(words)), image_token_id=token(words, "<IMG_CONTEXT>"),
        image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip
    return t.InternVLForConditionalGeneration(config), processor


_GEMMA_TURN = {"turn": "<start_of_turn>{role}\n", "end": "<end_of_turn>\n", "answer": "<start_of_turn>model\n"}


def gemma3() -> Made:
    """Gemma 3: an image's tokens see each other both ways; sliding layers, and full ones at every third."""
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    words = tokenizer("<start_of_turn>", "<end_of_turn>", bos="<bos>", eos="<eos>", begins=True, named=named)
    images = t.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    processor = t.Gemma3Processor(
        images, words, chat_template=template(**_GEMMA_TURN, image="<start_of_image>", begin="<bos>"),
        image_seq_length=4,
    )  # fmt: skip
    text = text_config(words, head_dim=16, num_hidden_layers=3, sliding_window=256, query_pre_attn_scalar=16)
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    config = t.Gemma3Config(
        text_config=t.Gemma3TextConfig(**text, layer_types=layers),
        vision_config=t.SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, vision_use_head=False),
        mm_tokens_per_image=4, boi_token_index=token(words, "<start_of_image>"),
        eoi_token_index=token(words, "<end_of_image>"), image_token_index=token(words, "<image_soft_token>"),
    )  # fmt: skip
    config.eos_token_id = [words.eos_token_id, token(words, "<end_of_turn>")]
    return t.Gemma3ForConditionalGeneration(config), processor


def gemma4() -> Made:
    """Gemma 4, as its E2B: an image keeps its shape within a budget of 70 tokens; full layers have wider heads; each
    layer has embeddings of its own, and the last two the keys and values of earlier ones."""
    named = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
        "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }  # fmt: skip
    words = tokenizer("<|turn>", "<turn|>", "<|video|>", bos="<bos>", eos="<eos>", begins=True, named=named)
    sizes = {"patch_size": 8, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    chat = template("<|turn>{role}\n", "<turn|>\n", "<|turn>model\n", "<|image|>", begin="<bos>")
    processor = t.Gemma4Processor(
        t.Gemma4AudioFeatureExtractor(), t.Gemma4ImageProcessor(**sizes), words,
        t.Gemma4VideoProcessor(patch_size=8, pooling_kernel_size=2), chat_template=chat, image_seq_length=70,
    )  # fmt: skip
    text = text_config(
        words, head_dim=16, num_hidden_layers=4, sliding_window=256, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=len(words) + 3, num_kv_shared_layers=2, global_head_dim=32,
        final_logit_softcapping=30.0, layer_types=["sliding_attention", "full_attention"] * 2,
        use_bidirectional_attention="vision",
    )  # fmt: skip
    vision = {
        **TOWER, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 8, "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }  # fmt: skip
    names = {"boi": "<|image>", "image": "<|image|>", "eoi": "<image|>", "video": "<|video|>", "boa": "<|audio>",
             "audio": "<|audio|>"}  # fmt: skip
    ids = {f"{name}_token_id": token(words, written) for name, written in names.items()}
    config = t.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, eoa_token_index=token(words, "<audio|>"), **ids
    )
    model = t.Gemma4ForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if name.endswith("q_norm.weight"):
            # Its attention divides by nothing: what others divide by, a trained model has in this norm. At 1, attention
            # is so sharp that transformers' own eager and sdpa are 0.06 nats a token apart in bfloat16, now 0.01.
            torch.nn.init.constant_(weight, weight.numel() ** -0.5)
    return model, processor


def _idefics_words() -> Any:
    rows = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    named = {
        "fake_image_token": "<fake_token_around_image>", "image_token": "<image>", "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }  # fmt: skip
    return tokenizer(*rows, bos="<|im_start|>", eos="<end_of_utterance>", named=named)


_IDEFICS_SIZES = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
_IDEFICS_TURN = {"turn": "{role}: ", "end": "<end_of_utterance>\n", "answer": "Assistant:", "image": "<image>"}


def _idefics_config(kind: Any, words: Any) -> Any:
    return kind(
        vision_config={**TOWER, "image_size": 32, "patch_size": 8}, text_config=t.LlamaConfig(**text_config(words)),
        image_token_id=token(words, "<image>"), scale_factor=2, pad_token_id=words.pad_token_id,
    )  # fmt: skip


def smolvlm() -> Made:
    """SmolVLM: rows and columns of tiles and a small whole, each a row of `pixel_values`, 4 tokens each."""
    words = _idefics_words()
    processor = t.SmolVLMProcessor(
        t.SmolVLMImageProcessor(**_IDEFICS_SIZES), words, t.SmolVLMVideoProcessor(**_IDEFICS_SIZES), image_seq_len=4,
        chat_template=template(**_IDEFICS_TURN, begin="<|im_start|>"),
    )  # fmt: skip
    return t.SmolVLMForConditionalGeneration(_idefics_config(t.SmolVLMConfig, words)), processor


def idefics3() -> Made:
    """Idefics3: as SmolVLM, on Llama."""
    words = _idefics_words()
    processor = t.Idefics3Processor(
        t.Idefics3ImageProcessor(**_IDEFICS_SIZES), words, image_seq_len=4,
        chat_template=template(**_IDEFICS_TURN, begin="<|im_start|>"),
    )  # fmt: skip
    return t.Idefics3ForConditionalGeneration(_idefics_config(t.Idefics3Config, words)), processor


def paligemma() -> Made:
    """PaliGemma: the whole prompt sees itself both ways. Its checkpoints bring no chat template."""
    words = tokenizer(bos="<bos>", eos="<eos>", named={"image_token": "<image>"})
    images = t.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = t.PaliGemmaProcessor(images, words)
    text = text_config(words, head_dim=16)
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, vision_use_head=False),
        text_config=t.GemmaConfig(**text), image_token_index=token(words, "<image>"), projection_dim=64, hidden_size=64,
        vocab_size=len(words) + 3,
    )  # fmt: skip
    return t.PaliGemmaForConditionalGeneration(config), processor


def glm46v() -> Made:
    """GLM-4.6V: dynamic resolution, positions in three dimensions, half of a head rotated."""
    special = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|end_of_image|>",
               "<|begin_of_video|>", "<|end_of_video|>", "<|video|>")  # fmt: skip
    words = tokenizer(
        *special, bos="<|startoftext|>", eos="<|endoftext|>", pad="<|endoftext|>", named={"image_token": "<|image|>"}
    )
    image = "<|begin_of_image|><|image|><|end_of_image|>"
    pixels = _qwen_pixels(8)
    pixels["size"] = {name: 2 * area for name, area in pixels["size"].items()}  # it counts the two frames
    processor = t.Glm46VProcessor(
        t.Glm46VImageProcessor(**pixels), words, t.Glm46VVideoProcessor(patch_size=8, merge_size=2),
        chat_template=template("<|{role}|>\n", "", "<|assistant|>\n", image, begin="[gMASK]<sop>"),
    )  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "patch_size": 8,
        "image_size": 64,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
    keys = ("image_start", "image_end", "video_start", "video_end", "image", "video")
    names = ("begin_of_image", "end_of_image", "begin_of_video", "end_of_video", "image", "video")
    ids = {f"{key}_token_id": token(words, f"<|{name}|>") for key, name in zip(keys, names, strict=True)}
    config = t.Glm46VConfig(text_config=text_config(words, rope_parameters=rope), vision_config=vision, **ids)
    return t.Glm46VForConditionalGeneration(config), processor
