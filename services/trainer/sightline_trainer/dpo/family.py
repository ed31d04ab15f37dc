"""What training rows need from a model, found by asking the model and its processor.

`sightline_chassis.families` finds out how the processor takes images and what it returns. The model's own code computes
position ids, and which tokens see each other both ways. Nothing depends on names of modules or ranks of tensors.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from sightline.errors import PreconditionFailed
from sightline_chassis.families.processing import Processing, ProcessorUnusable
from torch import Tensor

from sightline_trainer.dpo.packing import PromptTokens
from sightline_trainer.dpo.support import base_of
from sightline_trainer.dpo.vision import PromptPictures


class Family:
    """A model and its processor.

    Attributes:
        processor: makes rows of texts and images.
        processing: how the processor behaves.
        backbone: the model without its LM head.
        name: the model type in its config.
        image_token: the id of an image's placeholder token.
    """

    def __init__(self, model: Any, processor: Any, *, shown: str | None = None) -> None:
        """Examine model and processor.

        Args:
            shown: a rendered prompt with one image; None renders one by the processor's own template.

        Raises:
            PreconditionFailed: FAMILY_UNSUPPORTED: the processor can't be used, its image tensors can't be batched, or
                the model's head can't be removed.
        """
        base = base_of(model)
        self.processor = processor
        self.name = str(base.config.model_type)
        self.backbone: Any = without_head(base)
        accepted = parameters(type(base).forward) | parameters(type(self.backbone).forward)
        try:
            self.processing = Processing(processor, accepted, shown=shown)
        except ProcessorUnusable as error:
            raise _unsupported(self.name, str(error)) from error
        if not self.processing.joins:
            alone = [name for name, dimension in self.processing.joined_in.items() if dimension is None]
            raise _unsupported(self.name, f"several prompts' {', '.join(alone)} can't stand in one batch")
        self.image_token: int | None = getattr(base.config, "image_token_id", None)
        self._places = getattr(self.backbone, "get_rope_index", None)
        self._blocks = getattr(sys.modules[type(self.backbone).__module__], "get_block_sequence_ids_for_mask", None)

    def process(self, text: str, images: Sequence[Any], names: Sequence[str]) -> PromptTokens:
        """A prompt by one call of the processor, as a user of the model would ask for it.

        Args:
            text: the rendered prompt, with a placeholder for each image.
            images: RGB.
            names: the images' digests.
        """
        made = self.processing.prompt(text, images)
        stand_in = made.ids.tolist().count(self.image_token)
        pictures = PromptPictures(tuple(names), stand_in, self.processing, made.images) if images else None
        return PromptTokens(made.ids, made.tokens, pictures)

    def extended(self, prompt: PromptTokens, length: int) -> dict[str, Tensor]:
        """Token types of the prompt followed by those of a response, [1, length, ...] each."""
        return self.processing.continued(prompt.kinds, length - len(prompt.ids))

    def placed(self, prompt: PromptTokens) -> None:
        """Set the prompt's position ids and the blocks with bidirectional attention, by the model's rules."""
        prompt.positions, prompt.follows = self._positions(prompt)
        if self._blocks is not None and prompt.pictures is not None:
            kinds = prompt.kinds.get(next(iter(inspect.signature(self._blocks).parameters)))
            prompt.blocks = None if kinds is None else self._blocks(kinds, kinds.device)[0]

    def _positions(self, prompt: PromptTokens) -> tuple[Tensor, int]:
        """[D, P] for the prompt (D is 1 or that of the model's rope), and the position of the token after it."""
        count = len(prompt.ids)
        if self._places is None:
            return torch.arange(count)[None], count
        given: dict[str, Any] = self.extended(prompt, count + 1)
        given |= prompt.pictures.inputs or {} if prompt.pictures is not None else {}
        named = inspect.signature(self._places).parameters
        ids = torch.cat([prompt.ids, prompt.ids.new_zeros(1)])[None]
        places = self._places(ids, **{name: value for name, value in given.items() if name in named})[0][:, 0]
        return places[:, :count], int(places[:, count].max())


def without_head(base: Any) -> Any:
    """A transformers model without its LM head.

    Raises:
        PreconditionFailed: FAMILY_UNSUPPORTED, it can't be taken off.
    """
    backbone = base.base_model
    if backbone is base:
        raise _unsupported(str(base.config.model_type), "their outputs before the head are not accessible")
    return backbone


def _unsupported(name: str, why: str) -> PreconditionFailed:
    return PreconditionFailed(f"models of the family {name!r} can't be trained: {why}", reason="FAMILY_UNSUPPORTED")


def parameters(function: Any) -> set[str]:
    """The names of a function's parameters, without `self` and positional-only ones."""
    named = inspect.signature(function).parameters.values()
    return {each.name for each in named if each.kind is not each.VAR_KEYWORD} - {"self"}
