"""Other architectures than LLaVA-1.5 run by the same engine: small random models, against their own plain forward."""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sampler_models import PROMPT, WORDS, make_llava, png, running
from sightline import InvalidInput
from sightline.sampler import Beams, Blank, Contrast, DiffusionNoise, ImageFree, SamplerClient
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

Made = tuple[Any, Any]


def tokenizer(*special: str) -> tuple[Any, dict[str, int]]:
    words = dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", *special, *WORDS])
    vocabulary = {word: number for number, word in enumerate(words)}
    split = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=split, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=list(special),
    )  # fmt: skip
    return fast, vocabulary


def template(image: str) -> str:
    return (
        "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + " {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )


def text(vocabulary: dict[str, int], **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": len(vocabulary), "max_position_embeddings": 512, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, **more,
    }  # fmt: skip


def llava_next() -> Made:
    """Several crops of an image, as many as its shape asks for."""
    words, vocabulary = tokenizer("<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        image_processor=images, tokenizer=words, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template("<image>"),
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = LlavaNextConfig(
        vision_config=vision, text_config=LlamaConfig(**text(vocabulary)), image_token_id=vocabulary["<image>"],
        image_grid_pinpoints=grid, vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config), processor


def qwen2_vl() -> Made:
    """Positions in three dimensions, and as many image tokens as pixels ask for."""
    words, vocabulary = tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 16),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=template("<|vision_start|> <|image_pad|> <|vision_end|>"),
    )
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config=text(vocabulary, rope_parameters=rope),
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> Made:
    """As Qwen2-VL, with windows of attention in the vision tower."""
    words, vocabulary = tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 16),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=template("<|vision_start|> <|image_pad|> <|vision_end|>"),
    )
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=text(vocabulary, rope_parameters=rope),
        vision_config={
            "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 64,
            "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config), processor


def idefics3() -> Made:
    """Crops with a token for each row and column (also SmolVLM's way)."""
    places = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    words, vocabulary = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places)
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(
        image_processor=images, tokenizer=words, image_seq_len=4, chat_template=template("<image>")
    )
    config = Idefics3Config(
        text_config={**text(vocabulary), "model_type": "llama"},
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        image_token_id=vocabulary["<image>"],
        scale_factor=2,
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> Made:
    """Idefics3's successor. Its own processor needs the package num2words for videos; of images it makes the same."""
    _, processor = idefics3()
    vocabulary = processor.tokenizer.get_vocab()
    config = SmolVLMConfig(
        text_config={**text(vocabulary), "model_type": "llama"},
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        image_token_id=vocabulary["<image>"],
        scale_factor=2,
    )  # fmt: skip
    return SmolVLMForConditionalGeneration(config), processor


def llava() -> Made:
    """The one with a fixed number of image tokens."""
    directory = Path(tempfile.mkdtemp())
    make_llava(directory)
    return AutoModelForImageTextToText.from_pretrained(directory), AutoProcessor.from_pretrained(directory)


MAKERS = [llava, llava_next, qwen2_vl, qwen2_5_vl, idefics3, smolvlm]


@pytest.mark.parametrize("make", MAKERS)
def test_candidates_are_those_of_the_plain_model(make: Callable[[], Made], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = make()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data.mul_(3.0)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain, processor = (
        AutoModelForImageTextToText.from_pretrained(tmp_path).eval(),
        AutoProcessor.from_pretrained(tmp_path),
    )

    with running(tmp_path) as at, SamplerClient(at.address, timeout=60) as client:
        loaded = at.service.engine._loaded
        assert loaded is not None
        assert loaded.prefiller.shares_features
        for size in (40, 70, (90, 50)):  # other numbers of image tokens
            image = png(3, size)
            samples = client.sample(image, PROMPT, 4, seed=1, max_tokens=12)
            for candidate in samples.candidates:
                wanted = logprobs(plain, processor, image, samples.rendered_prompt, candidate.token_ids)
                np.testing.assert_allclose(candidate.logprobs, wanted, atol=1e-4)
                (alone,) = client.sample(image, PROMPT, 1, seeds=[candidate.seed], max_tokens=12).candidates
                assert alone.token_ids.tolist() == candidate.token_ids.tolist()
                scored = client.score_tokens(image, PROMPT, candidate.token_ids)
                np.testing.assert_allclose(scored.logprobs, wanted, atol=1e-4)
        assert client.sample(None, PROMPT, 2, max_tokens=4).prompt_tokens == 8
        processed(client, plain, processor)
        window(client, processor, at.service.engine._loaded.base.window)


def processed(client: SamplerClient, plain: Any, processor: Any) -> None:
    """A distorted image is another image, and policy log-probs of guided candidates are those of the clean one."""
    image = png(3, 70)
    clean = client.sample(image, PROMPT, 4, seed=1, max_tokens=12).candidates
    for options in ({"distortion": DiffusionNoise(900)}, {"distortion": Blank()}, {"guidance": ImageFree(3.0)}):
        found = client.sample(image, PROMPT, 4, seed=1, max_tokens=12, **options).candidates
        assert [c.token_ids.tolist() for c in found] != [c.token_ids.tolist() for c in clean]
    samples = client.sample(image, PROMPT, 2, seed=1, max_tokens=8, guidance=Contrast(alpha=2.0))
    beams = client.sample(image, PROMPT, 4, max_tokens=8, beams=Beams(2))
    for candidate in (*samples.candidates, *beams.candidates):
        wanted = logprobs(plain, processor, image, samples.rendered_prompt, candidate.token_ids)
        np.testing.assert_allclose(candidate.logprobs, wanted, atol=1e-4)


def window(client: SamplerClient, processor: Any, size: int) -> None:
    """A prompt over the window is refused, whole: no image token is cut. Up to the window it is served."""
    image = png(3, 40)
    words = size - client.sample(image, "red", 1, max_tokens=1).prompt_tokens  # of which one more is to be sampled
    full = client.sample(image, "red " * words, 1, max_tokens=1)
    assert full.prompt_tokens == size - 1
    with pytest.raises(InvalidInput, match="window") as caught:
        client.sample(image, "red " * (words + 1), 1, max_tokens=1)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    with pytest.raises(InvalidInput) as caught:
        client.sample(image, f"what is {processor.image_token} ?", 1)
    assert caught.value.reason == "PROMPT_HAS_PLACEHOLDER", "a second image cannot be smuggled in"


@torch.no_grad()
def logprobs(model: Any, processor: Any, image: bytes, rendered: str, token_ids: Any) -> np.ndarray:
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    batch = processor(images=[picture], text=[rendered], return_tensors="pt")
    length, response = batch["input_ids"].shape[1], torch.tensor([list(token_ids)])
    batch["input_ids"] = torch.cat([batch["input_ids"], response], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if "mm_token_type_ids" in batch:
        batch["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(response)], dim=1)
    logits = model(**batch).logits[0, length - 1 : -1].double()
    return torch.log_softmax(logits, dim=-1).gather(1, response.T)[:, 0].numpy()
