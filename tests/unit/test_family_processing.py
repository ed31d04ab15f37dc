"""What the code finds out about a processor, for each family."""

from __future__ import annotations

import inspect
import io

import families
import family_words
import pytest
import torch
from PIL import Image
from sightline_chassis.families.pixels import bound_pixels
from sightline_chassis.families.processing import PixelLayout, Processing, ProcessorUnusable

ALL = families.FAMILIES | families.OTHERS
TOKENS = {
    "qwen2_vl": ("mm_token_type_ids",), "qwen2_5_vl": ("mm_token_type_ids",), "qwen3_vl": ("mm_token_type_ids",),
    "qwen3_5": ("mm_token_type_ids",), "glm46v": ("mm_token_type_ids",), "gemma4": ("mm_token_type_ids",),
    "molmo2": ("mm_token_type_ids",), "gemma3": ("token_type_ids",), "paligemma": ("token_type_ids",),
    "mllama": ("cross_attention_mask",),
}  # fmt: skip

CROPS, VIDEO = PixelLayout(padded_to=1), PixelLayout(frames=2)
LAYOUTS = {
    **dict.fromkeys(("llava_next", "llava_onevision", "smolvlm", "idefics3"), CROPS),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm46v"), VIDEO),
}


def pictures() -> list[Image.Image]:
    return [Image.open(io.BytesIO(photo)).convert("RGB") for photo in families.photos()]


def message(*parts: str) -> list[dict[str, object]]:
    content = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("name", ALL)
def test_outputs_are_sorted_and_joined_as_one_call_has_them(name: str) -> None:
    family = ALL[name]
    model, processor = family.build()
    if family.template:
        processor.chat_template = family.template
    processing = Processing(processor, inspect.signature(model.forward).parameters)
    assert processing.token_names == TOKENS.get(name, ())
    assert "pixel_values" in processing.image_names
    assert processing.joins == (name != "molmo2")
    assert bool(processing.text_decides) == (name == "instructblip")

    assert processing.pixels == {"pixel_values": LAYOUTS.get(name, PixelLayout())}

    rendered = processing.render(message("image", "what is this ?"))
    prompts = [processing.prompt(rendered, [picture]) for picture in pictures()[:2]]
    together = processing.call([rendered] * 2, [[picture] for picture in pictures()[:2]], padding=True)
    if processing.joins:
        for key, value in processing.join([prompt.images for prompt in prompts]).items():
            assert torch.equal(value, together[key])
    longer = processing.continued(prompts[0].tokens, 3)
    for value in longer.values():
        assert value.shape[1] == len(prompts[0].ids) + 3
        expected = 1 if name in ("paligemma", "mllama") else 0
        assert int(value[0, -1].max()) == expected


def test_a_processor_without_a_place_for_images_says_so() -> None:
    model, processor = families.FAMILIES["llava"].build()
    processor.chat_template = family_words.template("{role}: ", " ", "ASSISTANT:", "")
    with pytest.raises(ProcessorUnusable, match="chat template"):
        Processing(processor, inspect.signature(model.forward).parameters)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_bounds_of_pixels_bound_an_images_tokens(name: str) -> None:
    model, processor = families.FAMILIES[name].build()
    large = Image.effect_noise((640, 480), 50).convert("RGB")

    def tokens() -> int:
        processing = Processing(processor, inspect.signature(model.forward).parameters)
        inputs = processing.prompt(processing.render(message("image", "a")), [large])
        return int((inputs.ids == model.config.image_token_id).sum())

    before = tokens()
    bound_pixels(processor, None, 8 * 16 * 16)
    assert tokens() <= 8 < before
    bound_pixels(processor, 40 * 16 * 16, 1 << 24)
    assert tokens() > before
    with pytest.raises(ProcessorUnusable, match="min_pixels 9 is above max_pixels 8"):
        bound_pixels(processor, 9, 8)


def test_a_processor_of_fixed_sizes_takes_no_bounds() -> None:
    _, processor = families.FAMILIES["llava"].build()
    with pytest.raises(ProcessorUnusable, match="CLIPImageProcessor does not support min_pixels"):
        bound_pixels(processor, None, 1000)
