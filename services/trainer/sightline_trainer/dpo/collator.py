"""PairCollator: preference pairs as TRL's batches, with the tokens that were sampled.

TRL's own vision collator tokenises the response text again; what was sampled (and its end token) would be lost.
This one takes `chosen_ids` and `rejected_ids` as they are, begins the prompt as the sampler did (TRL's leaves out
the begin token that the model's tokenizer adds), and processes each image once a batch, or never again where its
features are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import PIL.Image
import torch
from cachetools import LRUCache
from sightline.picture_rule import rgb
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits
from torch import Tensor

from sightline_trainer.dpo.packing import PromptTokens, pack
from sightline_trainer.dpo.sharing import SharedPrefix
from sightline_trainer.dpo.vision import Image, digest, join_images, split_images

_REMEMBERED = 65536  # prompts whose token ids are kept; about 5 KB each
_SIDES = ("chosen", "rejected")


class PairCollator:
    """Makes a batch of 2 B rows, chosen first, from B pairs.

    Returns `input_ids`, `attention_mask` and `completion_mask` of shape [2 B, L], padded on the right, and
    `ref_chosen_logps` / `ref_rejected_logps` of shape [B] where they are known (`reference`, by the pairs'
    `pair_id`). With a `SharedPrefix` the model's part is a `Pack` under `shared_prefix`; without, the
    processor's image tensors, repeated for both halves. `weight` and `margin` of shape [B] where asked for.
    Nothing is truncated: image tokens are never cut.

    A pair's `rejected_images`, where it has them, are what its rejected side is conditioned on. A pair with
    `second_rejected_ids` (and `second_rejected_images`) stands for two: (chosen, rejected) of all pairs, then
    (chosen, second rejected) of all pairs.
    """

    def __init__(self, processor: Any, *, sharing: SharedPrefix | None = None, columns: Sequence[str] = ()) -> None:
        self.processor = processor
        self.pad_id = processor.tokenizer.pad_token_id
        self.sharing = sharing
        self.columns = tuple(columns)
        self.reference: dict[int, tuple[float, ...]] = {}
        self._prompts: LRUCache[tuple[str, ...], PromptTokens] = LRUCache(_REMEMBERED)

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        flat = unfold(pairs)
        images: dict[tuple[str, ...], Sequence[Any]] = {}
        sides: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
        for side in _SIDES:
            for pair in flat:
                shown = pair.get(f"{side}_images") or pair["images"]
                key = (pair["rendered_prompt"], *(digest(image) for image in shown))
                images.setdefault(key, shown)
                sides.append((key, tuple(pair[f"{side}_ids"])))
        prompts = self._processed(images)
        output = self._rows([(prompts[key].ids, torch.tensor(ids, dtype=torch.long)) for key, ids in sides])
        if self.sharing is None:
            output.update(self._plain([prompts[key] for key, _ in sides], output["input_ids"]))
        else:
            output["shared_prefix"] = self._pack(prompts, sides, output["input_ids"].shape[1], self.sharing)
        for name in self.columns:
            output[name] = torch.tensor([float(pair[name]) for pair in flat])
        if self.reference:
            known = [self.reference[pair["pair_id"]] for pair in pairs]
            # (chosen, rejected) or (chosen, rejected, second rejected)
            output["ref_rejected_logps"] = torch.tensor([k[i] for i in range(1, len(known[0])) for k in known])
            output["ref_chosen_logps"] = torch.tensor([k[0] for k in known] * (len(known[0]) - 1))
        return output

    def _rows(self, rows: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        length = max(len(prompt) + len(response) for prompt, response in rows)
        input_ids = torch.full((len(rows), length), self.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        completion_mask = torch.zeros_like(input_ids)
        for i, (prompt, response) in enumerate(rows):
            end = len(prompt) + len(response)
            input_ids[i, :end] = torch.cat([prompt, response])
            attention_mask[i, :end] = 1
            completion_mask[i, len(prompt) : end] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}

    def _plain(self, prompts: list[PromptTokens], input_ids: Tensor) -> dict[str, Tensor]:
        output = join_images([image.inputs for prompt in prompts for image in prompt.images if image.inputs])
        if prompts[0].types is not None:
            types = torch.zeros_like(input_ids)
            for i, prompt in enumerate(prompts):
                assert prompt.types is not None
                types[i, : len(prompt.ids)] = prompt.types
            output["mm_token_type_ids"] = types
        return output

    def _pack(
        self,
        prompts: Mapping[tuple[str, ...], PromptTokens],
        sides: list[tuple[tuple[str, ...], tuple[int, ...]]],
        columns: int,
        sharing: SharedPrefix,
    ) -> Any:
        responses: dict[tuple[str, ...], dict[tuple[int, ...], int]] = {key: {} for key in prompts}
        for key, ids in sides:
            responses[key].setdefault(ids, len(responses[key]))
        numbers = {key: number for number, key in enumerate(prompts)}
        return pack(
            list(prompts.values()),
            [list(answers) for answers in responses.values()],
            [(numbers[key], responses[key][ids]) for key, ids in sides],
            columns,
            [sharing.positions(prompts[key], max(len(answer) for answer in responses[key])) for key in prompts],
        )

    def _processed(self, images: Mapping[tuple[str, ...], Sequence[Any]]) -> dict[tuple[str, ...], PromptTokens]:
        """The processed prompts, in order. Pixels are made only where nobody remembers what the tower said of them, and
        for all such prompts at once: a processor's call costs more than an image in it."""
        known = {key: self._remembered(key) for key in images}
        missing = [key for key, prompt in known.items() if prompt is None]
        bos = self.processor.tokenizer.bos_token
        begun = [key for key in missing if bos and key[0].startswith(bos)]
        # As the sampler does: a template that writes the begin token itself gets no second one.
        made = self._made(begun, images, add_special_tokens=False)
        made |= self._made([key for key in missing if key not in begun], images, add_special_tokens=True)
        return {key: prompt or made[key] for key, prompt in known.items()}

    def _features(self, key: tuple[str, ...]) -> list[Tensor | None]:
        cache = None if self.sharing is None else self.sharing.cache
        return [None if cache is None else cache.get(name) for name in key[1:]]

    def _remembered(self, key: tuple[str, ...]) -> PromptTokens | None:
        known = self._prompts.get(key)
        if known is None or len(key) == 1:
            return None
        kept = self._features(key)
        if any(features is None for features in kept):
            return None
        shown = [Image(name, features=features) for name, features in zip(key[1:], kept, strict=True)]
        return PromptTokens(known.ids, known.types, shown, known.grid)

    def _made(
        self,
        keys: Sequence[tuple[str, ...]],
        images: Mapping[tuple[str, ...], Sequence[Any]],
        *,
        add_special_tokens: bool,
    ) -> dict[tuple[str, ...], PromptTokens]:
        if not keys:
            return {}
        inputs = dict(
            self.processor(
                images=[_decoded(image) for key in keys for image in images[key]] or None,
                text=[key[0] for key in keys],
                padding=True,
                return_tensors="pt",
                add_special_tokens=add_special_tokens,
            )
        )
        inputs.pop("token_type_ids", None)
        masks = inputs.pop("attention_mask").bool()
        ids, types = inputs.pop("input_ids"), inputs.pop("mm_token_type_ids", None)
        pixels, grids = iter(split_images(inputs)), inputs.get("image_grid_thw")
        made: dict[tuple[str, ...], PromptTokens] = {}
        first = 0
        for row, key in enumerate(keys):
            kept = self._features(key)
            grid = None if grids is None else grids[first : first + len(kept)]
            first += len(kept)
            shown = [Image(name, next(pixels), features) for name, features in zip(key[1:], kept, strict=True)]
            kinds = None if types is None else types[row][masks[row]]
            made[key] = PromptTokens(ids[row][masks[row]], kinds, shown, grid)
            self._prompts[key] = replace(made[key], images=[])
        return made


def unfold(pairs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pairs with a second rejected side as two pairs each: the first ones of all, then the second ones of all."""
    if not pairs or pairs[0].get("second_rejected_ids") is None:
        return list(pairs)
    seconds = [
        {
            **pair,
            "rejected_ids": pair["second_rejected_ids"],
            "rejected_images": pair.get("second_rejected_images"),
            **{name: pair[f"second_{name}"] for name in ("weight", "margin") if f"second_{name}" in pair},
        }
        for pair in pairs
    ]
    return [*pairs, *seconds]


def _decoded(image: Any) -> PIL.Image.Image:
    return decode(image["bytes"], ImageLimits()) if isinstance(image, Mapping) else rgb(image)
