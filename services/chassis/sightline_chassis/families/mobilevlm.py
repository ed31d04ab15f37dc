"""MobileVLM V2 (arXiv 2402.03766), CLIP-DPO's own family, as transformers classes: LLaVA with the projector LDPv2.

    register()
    model = AutoModelForImageTextToText.from_pretrained(directory)   # made by `sightline convert`

LDPv2, as in the paper's section 3.3: two pointwise layers with GELU between them project each patch to the decoder's
width; average pooling reduces the grid to `projector_side` squared (24 x 24 to 12 x 12: 144 image tokens instead of
576); a depthwise 3 x 3 convolution with a skip connection encodes each token's position.

Deviation: none in the arithmetic. The image token is in the vocabulary, as in transformers' LLaVA; the released code
    uses the number -200.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaProcessor,
)


class MobileVlmConfig(LlavaConfig):
    """LLaVA's configuration, and the side length of the grid of image tokens."""

    model_type = "mobilevlm_v2"
    projector_side: int = 12


class MobileVlmProjector(nn.Module):
    """LDPv2: features (images, patches, tower's width) to tokens (images, side squared, decoder's width)."""

    def __init__(self, config: MobileVlmConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.side = config.projector_side
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width)
        self.linear_2 = nn.Linear(width, width)
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, features: Tensor) -> Tensor:
        """Tokens row by row."""
        hidden = self.linear_2(functional.gelu(self.linear_1(features)))
        side = round(hidden.shape[1] ** 0.5)
        grid = functional.adaptive_avg_pool2d(hidden.transpose(1, 2).unflatten(2, (side, side)), self.side)
        placed: Tensor = self.position(grid) + grid
        return placed.flatten(2).transpose(1, 2)


class MobileVlmModel(LlavaModel):
    """Tower, LDPv2 and decoder, without a head."""

    config_class = MobileVlmConfig

    def __init__(self, config: MobileVlmConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = MobileVlmProjector(config)
        self.post_init()


class MobileVlmForConditionalGeneration(LlavaForConditionalGeneration):
    """MobileVLM V2 with its language head."""

    config_class = MobileVlmConfig

    def __init__(self, config: MobileVlmConfig) -> None:
        super().__init__(config)
        self.model = MobileVlmModel(config)
        self.post_init()


class MobileVlmProcessor(LlavaProcessor):
    """LLaVA's processor, with as many image tokens as the projector gives, regardless of the patches."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 144,
        chat_template: str | None = None,
        image_token: str = "<image>",  # noqa: S107
        **kwargs: Any,
    ) -> None:
        self.image_seq_length = image_seq_length
        super().__init__(image_processor, tokenizer, chat_template=chat_template, image_token=image_token, **kwargs)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholders of an image."""
        return str(self.image_token) * self.image_seq_length


def register() -> None:
    """Register the family with transformers' Auto classes; calling it again does no harm."""
    AutoConfig.register(MobileVlmConfig.model_type, MobileVlmConfig, exist_ok=True)
    AutoModelForImageTextToText.register(MobileVlmConfig, MobileVlmForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(MobileVlmConfig, MobileVlmProcessor, exist_ok=True)
