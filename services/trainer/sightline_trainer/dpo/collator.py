"""PairCollator: preference pairs as TRL's batches, with the sampled tokens.

TRL's own vision collator tokenises the response text again, so that the sampled tokens (and the end token) would be
lost. This one uses `chosen_ids` and `rejected_ids` unchanged, begins the prompt as the sampler did (TRL's omits the
begin token that the model's tokenizer adds), and makes each prompt by one call of the processor, as a user would: once
per batch, or only once if its images' features are cached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import PIL.Image
import torch
from cachetools import LRUCache
from sightline.picture_rule import rgb
from sightline_chassis.families.processing import side_by_side
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits
from torch import Tensor

from sightline_trainer.dpo.extra_rows import ExtraRow
from sightline_trainer.dpo.family import Family
from sightline_trainer.dpo.method import TokenWeights
from sightline_trainer.dpo.packing import PromptTokens, pack
from sightline_trainer.dpo.parts import PARTS, within
from sightline_trainer.dpo.sharing import SharedPrefix
from sightline_trainer.dpo.token_weights import Weights, sentence_weights, token_weights
from sightline_trainer.dpo.views import Shown
from sightline_trainer.dpo.vision import digest

_REMEMBERED = 16384  # prompts whose tokens are kept; about 10 to 50 KB each
SIDES = ("chosen", "rejected")

Key = tuple[str, ...]  # the rendered prompt, and its images' digests
Side = tuple[Key, tuple[int, ...]]  # a prompt, and a response's tokens
Reference = tuple[tuple[float, ...], ...]
"""Summed log-probs of a pair's rows under the reference: chosen, rejected, extra rows; twice with a second rejected
side."""


class RowPictures:
    """The pictures of one row, and how they are shown.

    Attributes:
        names: digests, which differ if the shown pictures differ.
    """

    def __init__(self, images: Sequence[Any], view: Shown | None) -> None:
        self.images = images
        self.view = view
        plain = [digest(image) for image in images]
        self.names = plain if view is None else [view.named(name) for name in plain]

    def decoded(self) -> list[PIL.Image.Image]:
        """In RGB."""
        pictures = [decoded(image) for image in self.images]
        if self.view is None:
            return pictures
        return [self.view.picture(picture, name) for picture, name in zip(pictures, self.names, strict=True)]


class PairCollator:
    """Makes a batch of 2 B rows, chosen first, from B pairs.

    Returns `input_ids`, `attention_mask` and `completion_mask` of shape [2 B, L], padded on the right, and
    `ref_chosen_logps` / `ref_rejected_logps` of shape [B] if they are known (`reference`, by the pairs' `pair_id`).
    With a `SharedPrefix`, the model's part is a `Pack` under `shared_prefix`. Without one, or if a row is longer than
    the model's sliding window, it is the processor's tensors, repeated for both halves. `weight` and `margin` have
    shape [B], if requested. Nothing is truncated: image tokens are never cut.

    If a pair has `rejected_images`, its rejected side is conditioned on them. A pair with `second_rejected_ids` (and
    `second_rejected_images`) counts as two: (chosen, rejected) of all pairs, then (chosen, second rejected) of all
    pairs.

    `extras` are further rows of each pair, after both sides of all: 2 B + E B rows, and `ref_extra_logps` of shape
    [E, B] with the reference.

    With a `budget`, a batch with more tokens is split into several such batches, under `PARTS` (`parts.py`).
    """

    def __init__(
        self,
        family: Family,
        *,
        sharing: SharedPrefix | None = None,
        columns: Sequence[str] = (),
        extras: Sequence[ExtraRow] = (),
        token_weights: TokenWeights | None = None,
        budget: int | None = None,
    ) -> None:
        self.family = family
        tokenizer = family.processor.tokenizer
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.sharing = sharing
        self.columns = tuple(columns)
        self.extras = tuple(extras)
        self.token_weights = token_weights or TokenWeights()
        self.budget = budget
        self.reference: dict[int, Reference] = {}
        self._prompts: LRUCache[Key, PromptTokens] = LRUCache(_REMEMBERED)
        self._sentences: LRUCache[tuple[Any, ...], Sequence[Weights]] = LRUCache(_REMEMBERED)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Inside the context, batches have only both sides, without numbers of pairs."""
        kept = self.columns, self.extras
        self.columns = self.extras = ()
        try:
            yield
        finally:
            self.columns, self.extras = kept

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.budget is None:
            return self._batch(pairs, {})
        batches = [batch for _, batch in self.batches(pairs, len(pairs))]
        return batches[0] if len(batches) == 1 else {PARTS: batches}

    def batches(self, pairs: list[dict[str, Any]], size: int) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """The pairs as batches without parts, in order: the pairs, and their batch.

        Args:
            size: maximum pairs of a batch.
        """
        for at in range(0, len(pairs), size):
            made: dict[Key, PromptTokens] = {}  # prompts processed to count tokens are reused in the batch
            for group in self._groups(pairs[at : at + size], made):
                yield group, self._batch(group, made)

    def plain(self) -> PairCollator:
        """A collator with plain rows and the same budget, without the additions to a batch."""
        return PairCollator(self.family, budget=self.budget)

    def _groups(self, pairs: list[dict[str, Any]], made: dict[Key, PromptTokens]) -> list[list[dict[str, Any]]]:
        if self.budget is None:
            return [pairs]
        return within(pairs, self.budget, lambda some: self._tokens(some, made))

    def _tokens(self, pairs: Sequence[Mapping[str, Any]], prompts: dict[Key, PromptTokens]) -> int:
        """Number of tokens of a batch of these pairs, padding included. Prompts made for it are stored in `made`."""
        pictures, sides = self._sides(unfold(pairs))
        for key in pictures.keys() - prompts.keys():
            prompts[key] = self._remembered(key) or self._made(key, pictures[key])
        longest = max(len(prompts[key].ids) + len(ids) for key, ids in sides)
        if self.sharing is None or not self.sharing.fits(longest):
            return len(sides) * longest
        return sum(len(prompts[key].ids) for key in pictures) + sum(len(ids) for _, ids in set(sides))

    def _sides(self, flat: Sequence[Mapping[str, Any]]) -> tuple[dict[Key, RowPictures], list[Side]]:
        """The pictures of each prompt as shown, and all rows: chosen sides, rejected sides, extra rows."""
        pictures: dict[Key, RowPictures] = {}
        sides: list[Side] = []
        for row in (*(ExtraRow(side, side) for side in SIDES), *self.extras):
            for pair in flat:
                shown = RowPictures(pair.get(f"{row.text}_images") or pair["images"], row.shown)
                key = (pair["rendered_prompt"], *shown.names)
                pictures.setdefault(key, shown)
                sides.append((key, tuple(pair[f"{row.text}_ids"])))
        return pictures, sides

    def _batch(self, pairs: Sequence[Mapping[str, Any]], made: Mapping[Key, PromptTokens]) -> dict[str, Any]:
        flat = unfold(pairs)
        pictures, sides = self._sides(flat)
        prompts = {
            key: made.get(key) or self._remembered(key) or self._made(key, shown) for key, shown in pictures.items()
        }
        output = self._rows([(prompts[key].ids, torch.tensor(ids, dtype=torch.long)) for key, ids in sides])
        length = output["input_ids"].shape[1]
        if self.sharing is not None and self.sharing.fits(length):
            output["shared_prefix"] = self._pack(prompts, sides, length, self.sharing)
        else:
            whole = {key: self._with_inputs(prompts[key], key, shown) for key, shown in pictures.items()}
            output.update(self._plain([whole[key] for key, _ in sides], length))
        if self.token_weights.by != "none":
            output["token_weights"] = self._weights(flat, output["completion_mask"])
        for name in self.columns:
            output[name] = torch.tensor([pair[name] for pair in flat], dtype=torch.float32)
        if self.reference:
            known = [self.reference[pair["pair_id"]] for pair in pairs]
            values = torch.tensor([sums[part] for part in range(len(known[0])) for sums in known]).T
            output["ref_chosen_logps"], output["ref_rejected_logps"] = values[0], values[1]
            if self.extras:
                output["ref_extra_logps"] = values[2:]
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

    def _weights(self, pairs: Sequence[Mapping[str, Any]], mask: Tensor) -> Tensor:
        """[R, L - 1] weights of the response tokens at the positions where TRL scores them, zero elsewhere."""
        rows = [dict(zip(SIDES, self._weighed(pair), strict=True)) for pair in pairs]
        weights = torch.zeros(mask.shape)
        at = 0
        for text in (*SIDES, *(row.text for row in self.extras)):
            for known in rows:
                placed = mask[at].bool()
                weights[at, placed] = torch.tensor(known[text]) if text in known else 1.0
                at += 1
        return weights[:, 1:]

    def _weighed(self, pair: Mapping[str, Any]) -> Sequence[Weights]:
        if self.token_weights.by != "sentence":
            return token_weights(pair["chosen_ids"], pair["rejected_ids"], self.token_weights)
        key = tuple((tuple(pair[f"{side}_ids"]), tuple(pair.get(f"{side}_sentences") or ())) for side in SIDES)
        if key not in self._sentences:
            tokenizer = self.family.processor.tokenizer
            self._sentences[key] = [
                sentence_weights(
                    pair[f"{side}_ids"],
                    pair.get(f"{side}_sentences") or [],
                    lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
                    self.token_weights,
                    chosen=side == "chosen",
                )
                for side in SIDES
            ]
        return self._sentences[key]

    def _plain(self, prompts: list[PromptTokens], length: int) -> dict[str, Tensor]:
        shown = [prompt.pictures.inputs or {} for prompt in prompts if prompt.pictures is not None]
        kinds = [self.family.extended(prompt, length) for prompt in prompts]
        joined = self.family.processing.join(shown) if shown else {}
        return joined | {name: side_by_side([each[name] for each in kinds], 0) for name in kinds[0]}

    def _pack(
        self,
        prompts: Mapping[Key, PromptTokens],
        sides: list[Side],
        columns: int,
        sharing: SharedPrefix,
    ) -> Any:
        responses: dict[Key, dict[tuple[int, ...], int]] = {key: {} for key in prompts}
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

    def _remembered(self, key: Key) -> PromptTokens | None:
        """A prompt without pixels, since its tokens and its images' features are known."""
        known = self._prompts.get(key)
        cache = None if self.sharing is None else self.sharing.cache
        if known is None or known.pictures is None:
            return known
        if cache is None:
            return None
        features = cache.get(known.pictures.names)
        return None if features is None else replace(known, pictures=replace(known.pictures, features=features))

    def _made(self, key: Key, shown: RowPictures) -> PromptTokens:
        prompt = self.family.process(key[0], shown.decoded(), key[1:])
        if shown.view is not None and prompt.pictures is not None:
            inputs = shown.view.inputs(prompt.pictures.inputs or {}, "".join(key[1:]))
            prompt = replace(prompt, pictures=replace(prompt.pictures, inputs=inputs))
        if self.sharing is not None:
            self.family.placed(prompt)
        pictures = prompt.pictures
        self._prompts[key] = replace(prompt, pictures=None if pictures is None else replace(pictures, inputs=None))
        if pictures is not None and self.sharing is not None and self.sharing.cache is not None:
            pictures.features = self.sharing.cache.get(pictures.names)
        return prompt

    def _with_inputs(self, prompt: PromptTokens, key: Key, shown: RowPictures) -> PromptTokens:
        known = prompt.pictures is None or prompt.pictures.inputs is not None
        return prompt if known else self._made(key, shown)


_OF_A_SIDE = ("weight", "margin", "rejected_sentences")


def first_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair without its second rejected side, so that a batch has both sides once, rejected after chosen."""
    return {**row, "second_rejected_ids": None}


def unfold(pairs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pairs with a second rejected side as two pairs each: first all pairs with the first side, then all with the
    second."""
    if not pairs or pairs[0].get("second_rejected_ids") is None:
        return list(pairs)
    seconds = [
        {
            **pair,
            "rejected_ids": pair["second_rejected_ids"],
            "rejected_images": pair.get("second_rejected_images"),
            **{name: pair[f"second_{name}"] for name in _OF_A_SIDE if f"second_{name}" in pair},
        }
        for pair in pairs
    ]
    return [*pairs, *seconds]


def decoded(image: Any) -> PIL.Image.Image:
    """An image of a pair in RGB, by the rule of sampler and scorer."""
    return decode(image["bytes"], ImageLimits()) if isinstance(image, Mapping) else rgb(image)
