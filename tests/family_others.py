"""Tiny checkpoints of families that need more than keys and values of one decoder, or another chat."""

from __future__ import annotations

import transformers as t
from family_makers import CHATML, TEXT, TOWER, Made, text_config, token
from family_words import chatml, template, tokenizer


def mllama() -> Made:
    """Mllama (Llama 3.2 Vision): a layer that looks at the image by cross-attention."""
    turns = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|end_of_text|>")
    words = tokenizer(*turns, bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|finetune_right_pad_id|>", begins=True)
    vocabulary = len(words)
    words.add_tokens(["<|image|>"], special_tokens=True)  # behind the output's vocabulary, as in Llama 3.2
    head = "<|start_header_id|>{role}<|end_header_id|>\n\n"
    chat = template(head, "<|eot_id|>", head.replace("{role}", "assistant"), "<|image|>", begin="<|begin_of_text|>")
    processor = t.MllamaProcessor(
        t.MllamaImageProcessor(size={"height": 32, "width": 32}, max_image_tiles=4), words, chat_template=chat
    )
    vision = {
        **TOWER, "attention_heads": 2, "image_size": 32, "patch_size": 8, "num_global_layers": 1, "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1], "vision_output_dim": 96,
    }  # fmt: skip
    vision.pop("num_attention_heads")
    text = text_config(words, num_hidden_layers=3, cross_attention_layers=[1], vocab_size=vocabulary)
    config = t.MllamaConfig(vision_config=vision, text_config=text, image_token_index=token(words, "<|image|>"))
    return t.MllamaForConditionalGeneration(config), processor


_QFORMER = {**TOWER, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
_EYES = {**TOWER, "image_size": 32, "patch_size": 8, "initializer_range": 0.02}


def blip_2() -> Made:
    """BLIP-2 on OPT: a few query tokens; no chat template, and no image token in the text."""
    words = tokenizer(bos="</s>", begins=True)
    images = t.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = t.Blip2Processor(images, words, num_query_tokens=4)
    config = t.Blip2Config(
        vision_config=_EYES, qformer_config=_QFORMER, text_config=_opt(words), num_query_tokens=4,
        image_token_index=token(words, "<image>"),
    )  # fmt: skip
    return t.Blip2ForConditionalGeneration(config), processor


def instructblip() -> Made:
    """InstructBLIP on OPT: the query tokens also read the text, by a tokenizer of their own."""
    words = tokenizer(bos="</s>", begins=True)
    images = t.BlipImageProcessor(size={"height": 32, "width": 32})
    reader = tokenizer(bos="[CLS]", eos="[SEP]", pad="[PAD]", begins=True)
    processor = t.InstructBlipProcessor(images, words, reader, num_query_tokens=4)
    config = t.InstructBlipConfig(
        vision_config=_EYES, qformer_config={**_QFORMER, "vocab_size": len(reader)}, text_config=_opt(words),
        num_query_tokens=4, image_token_index=token(words, "<image>"),
    )  # fmt: skip
    return t.InstructBlipForConditionalGeneration(config), processor


def _opt(words: t.PreTrainedTokenizerFast) -> t.OPTConfig:
    return t.OPTConfig(
        vocab_size=len(words) + 3, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=64, max_position_embeddings=768, pad_token_id=0, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )  # fmt: skip


def minicpmv4_6() -> Made:
    """MiniCPM-V 4.6: slices of an image in a grid, packed patches, on the decoder of Qwen3.5."""
    named = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
        "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
    }  # fmt: skip
    words = tokenizer("<|im_start|>", **CHATML, named=named)
    sizes = {"max_slice_nums": 4, "scale_resolution": 64, "patch_size": 8}
    processor = t.MiniCPMV4_6Processor(
        t.MiniCPMV4_6ImageProcessor(**sizes), t.MiniCPMV4_6VideoProcessor(**sizes), words,
        chat_template=chatml("<|image_pad|>"),
    )  # fmt: skip
    text = text_config(
        words, head_dim=16, num_hidden_layers=4, linear_key_head_dim=16, linear_value_head_dim=16,
        linear_num_key_heads=2, linear_num_value_heads=4, model_type="qwen3_5_text",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
                         "mrope_section": [1, 1, 0], "mrope_interleaved": True},
    )  # fmt: skip
    config = t.MiniCPMV4_6Config(
        text_config=text, vision_config={**TOWER, "num_hidden_layers": 3, "image_size": 64, "patch_size": 8},
        insert_layer_id=1, image_size=64, image_token_id=token(words, "<|image_pad|>"),
        video_token_id=token(words, "<|video_pad|>"),
    )  # fmt: skip
    return t.MiniCPMV4_6ForConditionalGeneration(config), processor


def molmo2() -> Made:
    """Molmo2: overlapping crops, pooled by attention; an image's tokens see each other both ways."""
    special = ("<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>",
               "<im_low>", "<|video|>", "<|im_start|>")  # fmt: skip
    words = tokenizer(*special, **CHATML, named={"image_token": "<|image|>"})
    sizes = {"size": {"height": 48, "width": 48}, "patch_size": 8}
    images = t.Molmo2ImageProcessor(**sizes, max_crops=4, overlap_margins=[1, 1], pooling_size=[2, 2])
    chat = template("<|im_start|>{role}\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|image|>")
    processor = t.Molmo2Processor(images, t.Molmo2VideoProcessor(**sizes), words, chat_template=chat)
    text = {**text_config(words, head_dim=16), "additional_vocab_size": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = t.Molmo2Config(
        text_config=text, vision_config={**TOWER, **heads, "image_size": [48, 48], "patch_size": 8},
        adapter_config={**heads, "vision_feature_layer": [1, 0], "hidden_size": 32, "intermediate_size": 64,
                        "text_hidden_size": TEXT["hidden_size"]},
        image_start_token_id=token(words, "<im_start>"), image_end_token_id=token(words, "<im_end>"),
        low_res_image_start_token_id=token(words, "<low_res_im_start>"), image_patch_id=token(words, "<im_patch>"),
        frame_start_token_id=token(words, "<frame_start>"), frame_end_token_id=token(words, "<frame_end>"),
    )  # fmt: skip
    return t.Molmo2ForConditionalGeneration(config), processor
