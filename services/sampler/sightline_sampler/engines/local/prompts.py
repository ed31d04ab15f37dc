"""From an image and a user's text to what the model takes: chat template, image tokens, pixels. Runs in a pool."""

from __future__ import annotations

import dataclasses
import threading

import torch
from cachetools import LRUCache
from PIL import Image
from sightline.errors import InvalidInput
from sightline.sampler.types import Distortion

from sightline_sampler.engines.local import distort
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.placeholders import refuse_placeholders, refuse_special, spelled

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt ready for the model.

    Attributes:
        ids: token ids (length,), image placeholders expanded.
        rendered: the prompt after the chat template, placeholder not expanded.
        extras: further inputs of one row per prompt (1, length), for example token types.
        pixels: inputs for the vision part; empty for a text-only prompt.
        digest: names the image, distorted or not ("" without one).
        alone: whether it cannot be run together with other prompts.
    """

    ids: torch.Tensor
    rendered: str
    extras: Tensors
    pixels: Tensors
    digest: str
    alone: bool = False

    def shape(self) -> tuple[object, ...]:
        """What must be equal for two prompts to be run in one batch."""
        pixels = ((name, *tensor.shape) for name, tensor in sorted(self.pixels.items()))
        return (id(self) if self.alone else 0, len(self.ids), *sorted(self.extras), *pixels)


class PromptBuilder:
    """Renders, tokenises and preprocesses, as the model's own processor does.

    A processor's call on one small image is slower than decoding a token, so where the processor allows it (checked
    once, against its own full call) only the image goes through it and the ids are kept by (text, image size).
    """

    def __init__(self, base: BaseModel, *, remembered: int = 4096) -> None:
        self._processor, self._processing = base.processor, base.processing
        self._ids: LRUCache[tuple[str, int, int], tuple[torch.Tensor, Tensors]] = LRUCache(remembered)
        self._lock = threading.Lock()
        names = ("image_token", "video_token", "audio_token")
        tokens = {getattr(owner, n, None) for owner in (base.processor, base.tokenizer) for n in names}
        tokens |= {base.tokenizer.convert_ids_to_tokens(i) for i in base.placeholders if i < len(base.tokenizer)}
        self.placeholders = tuple(sorted(token for token in tokens if isinstance(token, str) and token))
        added = [token.content for token in base.tokenizer.added_tokens_decoder.values() if token.special]
        self.special = spelled([*base.tokenizer.all_special_tokens, *added])
        self._split = self._can_split()

    def check(self, text: str) -> None:
        """Refuse a user's text that would be taken for an image, or for an end or another turn.

        Raises:
            InvalidInput: the text holds a placeholder, or another special token of the model.
        """
        refuse_placeholders(text, self.placeholders)
        refuse_special(text, self.special)

    def render(self, text: str, with_image: bool) -> str:
        """The prompt after the chat template, ready for the answer."""
        content: list[dict[str, str]] = [{"type": "image"}] if with_image else []
        return self._processing.render([{"role": "user", "content": [*content, {"type": "text", "text": text}]}])

    def prepare(
        self, text: str, image: Image.Image | None, digest: str = "", distortion: Distortion | None = None
    ) -> Prepared:
        """Make a prompt ready; `image` is RGB, and is distorted on the way.

        Raises:
            InvalidInput: the text holds a placeholder, or the processor refuses the image.
        """
        self.check(text)
        rendered = self.render(text, image is not None)
        if image is None:
            try:
                found = self._processing.prompt(rendered, [])
            except (ValueError, RuntimeError) as error:
                raise InvalidInput(
                    f"the model's processor refuses a prompt without an image: {error}", reason="IMAGE_NEEDED"
                ) from error
            return Prepared(found.ids, rendered, found.tokens, {}, "")
        image, digest = distort.before(image, distortion), distort.image_name(digest, distortion)
        try:
            ids, extras, pixels = self._with_image(rendered, image)
            pixels, alone = distort.after(pixels, distortion), not self._processing.joins
            return Prepared(ids, rendered, extras, pixels, digest, alone)
        except (ValueError, RuntimeError) as error:
            raise InvalidInput(
                f"the model's processor refuses this image of {image.width} x {image.height} pixels: {error}",
                reason="IMAGE_REFUSED",
            ) from error

    def _with_image(self, rendered: str, image: Image.Image) -> tuple[torch.Tensor, Tensors, Tensors]:
        """Ids, further numbers of tokens, and pixels; the first two are kept where the processor allows it."""
        if not self._split:
            return self._whole(rendered, image)
        key = (rendered, image.width, image.height)
        with self._lock:
            known = self._ids.get(key)
        if known is not None:
            return *known, self._pixels(image)
        ids, extras, pixels = self._whole(rendered, image)
        with self._lock:
            self._ids[key] = (ids, extras)
        return ids, extras, pixels

    def _whole(self, rendered: str, image: Image.Image) -> tuple[torch.Tensor, Tensors, Tensors]:
        """The processor's own call."""
        found = self._processing.prompt(rendered, [image])
        return found.ids, found.tokens, found.images

    def _pixels(self, image: Image.Image) -> Tensors:
        shown = [[image]] if self._processing.nested else [image]
        batch = self._processor.image_processor(images=shown, return_tensors="pt")
        return {name: batch[name] for name in self._processing.image_names if name in batch}

    def _can_split(self) -> bool:
        image = Image.effect_noise((57, 43), 60).convert("RGB")
        whole = self._whole(self.render("?", True), image)[2]
        try:
            parts = self._pixels(image)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False
        return whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
