"""From an image and a user's text to what the model takes: chat template, image tokens, pixels. Runs in a pool."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import torch
from cachetools import LRUCache
from PIL import Image
from sightline.errors import InvalidInput, PreconditionFailed
from sightline.sampler.types import Distortion

from sightline_sampler.engines.local import distort
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.placeholders import refuse_placeholders, refuse_special, spelled

Tensors = dict[str, torch.Tensor]

_TEXT_KEYS = ("input_ids", "attention_mask")


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt ready for the model.

    Attributes:
        ids: token ids (length,), image placeholders expanded.
        rendered: the prompt after the chat template, placeholder not expanded.
        extras: further inputs of one row per prompt (1, length), for example token types.
        pixels: inputs for the vision part; empty for a text-only prompt.
        digest: names the image, distorted or not ("" without one).
    """

    ids: torch.Tensor
    rendered: str
    extras: Tensors
    pixels: Tensors
    digest: str

    def shape(self) -> tuple[object, ...]:
        """What must be equal for two prompts to be run in one batch."""
        return (len(self.ids), *sorted(self.extras), *((name, *t.shape) for name, t in sorted(self.pixels.items())))


class PromptBuilder:
    """Renders, tokenises and preprocesses, as the model's own processor does.

    A processor's call on one small image is slower than decoding a token, so where the processor allows it (checked
    once, against its own full call) only the image goes through it and the ids are kept by (text, image size).
    """

    def __init__(self, base: BaseModel, *, remembered: int = 4096) -> None:
        self._processor = base.processor
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
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        return str(self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

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
            ids, extras, _ = self._whole(rendered, None)
            return Prepared(ids, rendered, extras, {}, "")
        image, digest = distort.before(image, distortion), distort.image_name(digest, distortion)
        try:
            ids, extras, pixels = self._with_image(rendered, image)
            return Prepared(ids, rendered, extras, distort.after(pixels, distortion), digest)
        except (ValueError, RuntimeError) as error:
            raise InvalidInput(
                f"the model's processor refuses this image of {image.width} x {image.height} pixels: {error}",
                reason="IMAGE_REFUSED",
            ) from error

    def _with_image(self, rendered: str, image: Image.Image) -> tuple[torch.Tensor, Tensors, Tensors]:
        """As `_whole`, with ids that are kept where the processor allows it."""
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

    def _whole(self, rendered: str, image: Image.Image | None) -> tuple[torch.Tensor, Tensors, Tensors]:
        """The processor's own call: ids (length,), extras and pixels."""
        bos = self._processor.tokenizer.bos_token
        # A template that writes the begin token itself must not get a second one.
        special: dict[str, Any] = {"add_special_tokens": False} if bos and rendered.startswith(bos) else {}
        if image is None:
            batch = self._processor(text=[rendered], return_tensors="pt", **special)
        else:
            batch = self._processor(images=[image], text=[rendered], return_tensors="pt", **special)
        ids = batch["input_ids"]
        rest = {k: v for k, v in batch.items() if k not in _TEXT_KEYS and isinstance(v, torch.Tensor)}
        extras = {k: v for k, v in rest.items() if v.shape == ids.shape and not v.is_floating_point()}
        return ids[0], extras, {k: v for k, v in rest.items() if k not in extras}

    def _pixels(self, image: Image.Image) -> Tensors:
        batch = self._processor.image_processor(images=[image], return_tensors="pt")
        return {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}

    def _can_split(self) -> bool:
        image = Image.effect_noise((57, 43), 60).convert("RGB")
        try:
            whole = self._whole(self.render("?", True), image)[2]
        except Exception as error:
            raise PreconditionFailed(
                f"the model's processor cannot be used as it is: {error}", reason="PROCESSOR_UNUSABLE"
            ) from error
        try:
            parts = self._pixels(image)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False
        return whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
