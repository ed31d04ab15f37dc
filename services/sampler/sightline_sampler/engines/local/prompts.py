"""Turns a conversation and its images into model inputs: chat template, image tokens, pixels. Runs in a pool."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import torch
from cachetools import LRUCache
from PIL import Image
from sightline.errors import InvalidInput
from sightline.sampler.turns import Turn, user_turn
from sightline.sampler.types import Distortion
from sightline_chassis.families.rendering import Rendering

from sightline_sampler.engines.local import distort
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.placeholders import refuse_placeholders, refuse_special, spelled

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt ready for the model.

    Attributes:
        ids: token ids (length,), image placeholders expanded.
        rendered: the prompt after the chat template; placeholders are not expanded.
        extras: further inputs with one row per prompt (1, length), for example token types.
        pixels: inputs of the vision tower for all its images; empty for a text-only prompt.
        digest: identifies the images together, with their distortion ("" without images).
        alone: whether it must run without other prompts.
    """

    ids: torch.Tensor
    rendered: str
    extras: Tensors
    pixels: Tensors
    digest: str
    alone: bool = False

    def continued(self, token_ids: Sequence[int]) -> Prepared:
        """The prompt followed by the beginning of its response; the response's tokens count as text, like the prompt's
        last one."""
        if not token_ids:
            return self
        ids = torch.cat([self.ids, torch.tensor(token_ids, dtype=self.ids.dtype)])
        extras = {name: torch.cat([t, t[:, -1:].expand(-1, len(token_ids))], 1) for name, t in self.extras.items()}
        return dataclasses.replace(self, ids=ids, extras=extras)

    def shape(self) -> tuple[object, ...]:
        """Prompts can run in one batch if this is equal."""
        pixels = ((name, *tensor.shape) for name, tensor in sorted(self.pixels.items()))
        return (id(self) if self.alone else 0, len(self.ids), *sorted(self.extras), *pixels)


class PromptBuilder:
    """Renders, tokenises and preprocesses like the model's own processor.

    A processor's call on one small image is slower than decoding a token. So if the processor allows it (checked once,
    against its own full call), only the images pass through it, and ids are cached by (text, image sizes).
    """

    def __init__(self, base: BaseModel, *, remembered: int = 4096) -> None:
        self._processor, self._processing = base.processor, base.processing
        self.render = Rendering(base.processor)
        self._ids: LRUCache[tuple[object, ...], tuple[torch.Tensor, Tensors]] = LRUCache(remembered)
        self._lock = threading.Lock()
        names = ("image_token", "video_token", "audio_token")
        tokens = {getattr(owner, n, None) for owner in (base.processor, base.tokenizer) for n in names}
        tokens |= {base.tokenizer.convert_ids_to_tokens(i) for i in base.placeholders if i < len(base.tokenizer)}
        self.placeholders = tuple(sorted(token for token in tokens if isinstance(token, str) and token))
        added = [token.content for token in base.tokenizer.added_tokens_decoder.values() if token.special]
        self.special = spelled([*base.tokenizer.all_special_tokens, *added])
        several = 1 if self._processing.one_image_only else 2
        self._split = {count: self._can_split(count) for count in range(1, several + 1)}

    def check(self, turns: Sequence[Turn]) -> None:
        """Refuse a text that would be read as an image, an end or another turn, and images that the model does not take
        together.

        Raises:
            InvalidInput: a text contains a placeholder or another special token of the model, or there are too many
                images.
        """
        for text in (part for turn in turns for part in turn.content if part):
            refuse_placeholders(text, self.placeholders)
            refuse_special(text, self.special)
        images = sum(turn.images for turn in turns)
        if images > 1 and self._processing.one_image_only:
            raise InvalidInput(f"{images} images: {self._processing.one_image_only}", reason="TOO_MANY_IMAGES")

    def prepare(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image],
        digest: str = "",
        distortion: Distortion | None = None,
    ) -> Prepared:
        """Prepare a prompt; images are RGB, in the order of their places, and each is distorted if requested.

        Raises:
            InvalidInput: a text contains a placeholder, the template omits something, or the processor refuses an
                image.
        """
        self.check(turns)
        rendered = self.render(turns)
        if not images:
            try:
                found = self._processing.prompt(rendered, [])
            except (ValueError, RuntimeError) as error:
                raise InvalidInput(
                    f"the model's processor refuses a prompt without an image: {error}", reason="IMAGE_NEEDED"
                ) from error
            return Prepared(found.ids, rendered, found.tokens, {}, "")
        shown, digest = [distort.before(image, distortion) for image in images], distort.image_name(digest, distortion)
        try:
            ids, extras, pixels = self._with_images(rendered, shown)
            pixels = distort.after(pixels, distortion, self._processing.pixels)
            alone = not self._processing.joins
            return Prepared(ids, rendered, extras, pixels, digest, alone)
        except (ValueError, RuntimeError) as error:
            raise InvalidInput(
                f"the model's processor refuses {_sizes(images)}: {error}",
                reason="IMAGE_REFUSED",
            ) from error

    def _with_images(self, rendered: str, images: Sequence[Image.Image]) -> tuple[torch.Tensor, Tensors, Tensors]:
        """Ids, further token inputs, and pixels; the first two are cached if the processor allows it."""
        if not self._split[min(len(images), 2)]:
            return self._whole(rendered, images)
        key = (rendered, *(image.size for image in images))
        with self._lock:
            known = self._ids.get(key)
        if known is not None:
            return *known, self._pixels(images)
        ids, extras, pixels = self._whole(rendered, images)
        with self._lock:
            self._ids[key] = (ids, extras)
        return ids, extras, pixels

    def _whole(self, rendered: str, images: Sequence[Image.Image]) -> tuple[torch.Tensor, Tensors, Tensors]:
        """The processor's own call."""
        found = self._processing.prompt(rendered, images)
        return found.ids, found.tokens, found.images

    def _pixels(self, images: Sequence[Image.Image]) -> Tensors:
        shown = [list(images)] if self._processing.nested else list(images)
        batch = self._processor.image_processor(images=shown, return_tensors="pt")
        return {name: batch[name] for name in self._processing.image_names if name in batch}

    def _can_split(self, count: int) -> bool:
        images = [Image.effect_noise((57, 43 + 20 * number), 60).convert("RGB") for number in range(count)]
        whole = self._whole(self.render(user_turn("?", count)), images)[2]
        try:
            parts = self._pixels(images)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False
        return whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def _sizes(images: Sequence[Image.Image]) -> str:
    sizes = " and ".join(f"{image.width} x {image.height}" for image in images)
    return f"this image of {sizes} pixels" if len(images) == 1 else f"these images of {sizes} pixels"
