"""Family: what the rows that train need of a model, said by the model and its processor themselves.

Which tensors are an image's is what the model's `get_image_features` takes (or the image processor names); which are a
token's is what else its forward takes. Image tensors of several prompts are laid one after the other as the processor
made them, prompt by prompt: an image has as many rows of `pixel_values` as its family likes. Nothing goes by the
names of modules or the rank of tensors; where a family can't say something itself, it stands in a table here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from sightline.errors import PreconditionFailed
from torch import Tensor

from sightline_trainer.dpo.packing import PromptTokens
from sightline_trainer.dpo.support import base_of
from sightline_trainer.dpo.vision import Pictures

# Kinds of a response's tokens; everywhere else 0, which is text. PaliGemma's 0 is a prompt that sees all of itself.
_RESPONSE_KINDS = {("paligemma", "token_type_ids"): 1}
_OURS = frozenset({"input_ids", "attention_mask", "labels"})


class Family:
    """A model and its processor.

    Attributes:
        processor: makes rows of texts and images.
        backbone: the model without its LM head.
        name: the model's type, as its config has it.
        image_names: the processor's tensors that belong to images.
        kind_names: those that have a number for each token, such as `mm_token_type_ids`.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        base = base_of(model)
        self.processor = processor
        self.backbone: Any = base.base_model
        self.name = str(base.config.model_type)
        taken = _parameters(type(base).forward) | _parameters(type(self.backbone).forward)
        pictures = set(getattr(getattr(processor, "image_processor", None), "model_input_names", ()))
        pictures |= _parameters(getattr(type(self.backbone), "get_image_features", lambda pixel_values: None))
        self.image_names = frozenset(taken & pictures)
        self.kind_names = frozenset(taken - pictures - _OURS)
        self.image_token: int | None = getattr(base.config, "image_token_id", None)
        self._placing = getattr(self.backbone, "get_rope_index", None)
        self._blocks = getattr(sys.modules[type(self.backbone).__module__], "get_block_sequence_ids_for_mask", None)

    def call(self, text: str, images: Sequence[Any]) -> dict[str, Tensor]:
        """The processor's tensors for one prompt, as a user of the model would ask for them.

        Args:
            text: the prompt after the chat template, an image placeholder for each image.
            images: RGB.
        """
        bos = self.processor.tokenizer.bos_token
        # As the sampler does: a template that writes the begin token itself gets no second one.
        special = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        made = self.processor(images=[list(images)] if images else None, text=[text], return_tensors="pt", **special)
        return {name: value for name, value in made.items() if isinstance(value, Tensor) and name != "labels"}

    def process(self, text: str, images: Sequence[Any], names: Sequence[str]) -> PromptTokens:
        """A prompt by one call of the processor; `names` are the images' digests.

        Raises:
            PreconditionFailed: FAMILY_UNSUPPORTED, where it makes something that is neither an image's nor a token's.
        """
        made = self.call(text, images)
        ids = made["input_ids"]
        kinds = {name: made[name] for name in sorted(self.kind_names & made.keys())}
        for name, value in kinds.items():
            if value.shape != ids.shape:
                raise PreconditionFailed(
                    f"models of the family {self.name!r} can't be trained: their processor makes {name!r}, which "
                    "belongs neither to an image nor to each token",
                    reason="FAMILY_UNSUPPORTED",
                )
        inputs = {name: made[name] for name in sorted(self.image_names & made.keys())}
        pictures = Pictures(tuple(names), int((ids == self.image_token).sum()), inputs) if images else None
        return PromptTokens(ids[0], {name: value[0] for name, value in kinds.items()}, pictures)

    def extended(self, prompt: PromptTokens, length: int) -> dict[str, Tensor]:
        """Kinds of the prompt's tokens and of a response's after it, [length] each."""
        return {name: self.with_response(name, kinds, length) for name, kinds in prompt.kinds.items()}

    def with_response(self, name: str, kinds: Tensor, length: int) -> Tensor:
        """[length] of the prompt's numbers `kinds` [P] of that name: what follows them has a response's."""
        extended = torch.full((length,), _RESPONSE_KINDS.get((self.name, name), 0), dtype=kinds.dtype)
        extended[: len(kinds)] = kinds
        return extended

    def placed(self, prompt: PromptTokens) -> None:
        """Give the prompt its position ids and the blocks in which attention goes both ways, by the model's rules."""
        prompt.positions, prompt.follows = self._positions(prompt)
        if self._blocks is not None and prompt.pictures is not None:
            kinds = prompt.kinds.get(next(iter(inspect.signature(self._blocks).parameters)))
            prompt.blocks = None if kinds is None else self._blocks(kinds[None], kinds.device)[0]

    def _positions(self, prompt: PromptTokens) -> tuple[Tensor, int]:
        """[D, P] of the prompt, D being 1 or that of the model's rope, and the place of the token after it."""
        count = len(prompt.ids)
        if self._placing is None:
            return torch.arange(count)[None], count
        given: dict[str, Any] = {name: kinds[None] for name, kinds in self.extended(prompt, count + 1).items()}
        given |= prompt.pictures.inputs or {} if prompt.pictures is not None else {}
        named = inspect.signature(self._placing).parameters
        ids = torch.cat([prompt.ids, prompt.ids.new_zeros(1)])[None]
        places = self._placing(ids, **{name: value for name, value in given.items() if name in named})[0][:, 0]
        return places[:, :count], int(places[:, count].max())


def _parameters(function: Any) -> set[str]:
    """The names that a function takes, `self` and what it takes without a name left out."""
    named = inspect.signature(function).parameters.values()
    return {each.name for each in named if each.kind is not each.VAR_KEYWORD} - {"self"}
