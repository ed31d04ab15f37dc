"""How a processor takes images and what it returns for them, found by calling it with probes.

Processors differ in how images are nested, how many rows of pixels an image has, in which dimension images are joined,
and what they return for each token. None of this is guessed from names or ranks: a few small calls are made at start,
and their outputs compared.

- An output belongs to tokens if its second dimension grows with the ids when the text grows; otherwise to the images.
- Images of two prompts are joined in the dimension in which one call with both equals two calls put side by side,
padded with zeros in the others. If there is no such dimension, prompts cannot be joined.
- Pixels are the outputs that differ between two pictures of one size. They are padded in a dimension, other than that
  of joining, in which pictures of different sizes differ; they hold frames if each is there several times.
- For the tokens of a response, the further outputs follow transformers' generation: they repeat those of the prompt's
  last token, or are the processor's own for a suffix, if it knows suffixes (PaliGemma).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from sightline.errors import first_line

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN = ("input_ids", "attention_mask")
_WORD = " a"
CHANNELS = 3


class ProcessorUnusable(ValueError):
    """A processor cannot be used; the message is one sentence that says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class PromptInputs:
    """A processor's outputs for one prompt.

    Attributes:
        ids: token ids (length,), image placeholders expanded.
        tokens: further outputs for each token, (1, length, ...): types, masks.
        images: the tower's inputs and sizes, for all images of the prompt; empty for a text alone.
    """

    ids: Tensor
    tokens: dict[str, Tensor]
    images: dict[str, Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class PixelLayout:
    """How an output holds normalised pixels.

    Attributes:
        padded_to: entries of the dimensions up to this one that are all zero are padding; None if there is none.
        frames: how many times an image is repeated to make a video, in a last dimension of (3 channels, frames, height
            x width); 1 in all other layouts.
    """

    padded_to: int | None = None
    frames: int = 1


class Processing:
    """A model's processor, and how it behaves.

    Attributes:
        processor: a transformers processor with a chat template.
        nested: whether it takes a list of images for each prompt; otherwise it takes one flat list.
        token_names: outputs that belong to tokens.
        image_names: outputs that belong to images.
        joined_in: for each image output, the dimension in which those of several prompts are joined; None if they
            cannot be.
        pixels: the image outputs that hold pixels, and how.
        text_decides: image outputs that also depend on the text (InstructBLIP's), so that the features do too.
        one_image_only: why a prompt takes only one image; "" if it takes several.
    """

    def __init__(self, processor: Any, accepted: Collection[str], *, shown: str | None = None) -> None:
        """Find out how a processor behaves.

        Args:
            processor: with its chat template.
            accepted: names of the model's inputs; other outputs are dropped, and so are `labels`.
            shown: a rendered prompt with one image; None renders one by the chat template.

        Raises:
            ProcessorUnusable: it has no chat template that can be rendered and shows an image, or refuses its own
                prompt.
        """
        self.processor = processor
        self._accepted = frozenset(accepted) - {"labels"}
        self.nested = True
        self.token_names: tuple[str, ...] = ()
        self.image_names: tuple[str, ...] = ()
        self.joined_in: dict[str, int | None] = {}
        self.pixels: dict[str, PixelLayout] = {}
        self._suffix: dict[str, Tensor] = {}
        rendered = shown or self._own_prompt()
        first, second = _noise(64, 48, 40), _noise(48, 96, 90)
        single = self._first_call(rendered, first)
        longer = self.call([rendered + _WORD], [[first]])
        self._sort(single, longer)
        self.text_decides = tuple(_different(self.image_names, single, longer))
        like_it, tall, large = (
            self.call([rendered], [[each]]) for each in (_noise(64, 48, 90), second, _noise(700, 700, 60))
        )
        self._find_joins(rendered, [first, second], [single, tall])
        self._find_pixels(single, like_it, [tall, large])
        self._find_suffix(rendered, first)
        self.one_image_only = self._found_one_only([first, second]) if getattr(processor, "chat_template", None) else ""

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation rendered by the chat template, ready for the answer."""
        return str(self.processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))

    def _own_prompt(self) -> str:
        try:
            return self.render([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}])
        except Exception as error:  # a template is a program: it raises what it likes
            name = type(self.processor).__name__
            raise ProcessorUnusable(f"the chat template of {name} cannot be rendered: {first_line(error)}") from error

    def prompt(self, rendered: str, images: Sequence[Image.Image]) -> PromptInputs:
        """The processor's outputs for one rendered prompt and its images (RGB), sorted.

        Raises:
            ValueError: the processor refuses them, in its own words; it may also raise RuntimeError or TypeError.
        """
        return self.sorted(self.call([rendered], [list(images)]))

    def sorted(self, outputs: Mapping[str, Any]) -> PromptInputs:
        """A call's outputs for one prompt, sorted."""
        return PromptInputs(
            outputs["input_ids"][0],
            {name: outputs[name] for name in self.token_names if name in outputs},
            {name: outputs[name] for name in self.image_names if name in outputs},
        )

    def join(self, prompts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The image inputs of several prompts, joined as if they came from one call.

        Raises:
            ValueError: there are several prompts, and `joins` is false.
        """
        if len(prompts) == 1:
            return dict(prompts[0])
        joined = {}
        for name in prompts[0]:
            dimension = self.joined_in[name]
            if dimension is None:
                raise ValueError(f"{name} of several prompts cannot be joined")
            joined[name] = side_by_side([prompt[name] for prompt in prompts], dimension)
        return joined

    @property
    def joins(self) -> bool:
        """Whether image inputs of several prompts can be joined."""
        return all(dimension is not None for dimension in self.joined_in.values())

    def continued(self, tokens: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """A prompt's further outputs for each token, followed by those of a response of `count` tokens."""
        import torch

        longer = {}
        for name, values in tokens.items():
            last = self._suffix.get(name, values[:, -1:]).to(values)
            longer[name] = torch.cat([values, last.expand(-1, count, *values.shape[2:])], dim=1)
        return longer

    def _first_call(self, rendered: str, image: Image.Image) -> dict[str, Any]:
        for self.nested in (True, False):
            try:
                return self.call([rendered], [[image]])
            except (ValueError, TypeError, AttributeError, IndexError, RuntimeError, KeyError) as error:
                failure = error
        name = type(self.processor).__name__
        raise ProcessorUnusable(f"{name} refuses an image in a prompt of its own chat template: {failure}")

    def call(self, rendered: Sequence[str], images: Sequence[Sequence[Image.Image]], **more: Any) -> dict[str, Any]:
        """The processor's outputs for rendered prompts and the images of each; only those that the model takes."""
        bos = getattr(self.processor.tokenizer, "bos_token", None)
        # If the template writes the begin token itself, there must not be a second one.
        special = {"add_special_tokens": False} if bos and rendered[0].startswith(bos) else {}
        shown: dict[str, Any] = {}
        if any(images):
            shown["images"] = [list(one) for one in images] if self.nested else [i for one in images for i in one]
        outputs = self.processor(text=list(rendered), return_tensors="pt", **shown, **special, **more)
        return {name: value for name, value in outputs.items() if name in _PLAIN or name in self._accepted}

    def _sort(self, single: Mapping[str, Any], longer: Mapping[str, Any]) -> None:
        import torch

        length, grown = single["input_ids"].shape[1], longer["input_ids"].shape[1]
        if grown <= length:
            raise ProcessorUnusable(f"{type(self.processor).__name__} adds no token when a word is added")
        tokens: list[str] = []
        images: list[str] = []
        for name in single:
            if name in _PLAIN:
                continue
            if not isinstance(single[name], torch.Tensor):
                raise ProcessorUnusable(f"{type(self.processor).__name__} returns {name} in a form other than a tensor")
            lengths = [outputs[name].shape[1:2] for outputs in (single, longer)]
            (tokens if lengths == [(length,), (grown,)] else images).append(name)
        if not images:
            raise ProcessorUnusable(
                f"{type(self.processor).__name__} returns nothing for an image: its chat template may not show images"
            )
        self.token_names, self.image_names = tuple(tokens), tuple(images)

    def _find_joins(self, rendered: str, pictures: Sequence[Image.Image], alone: Sequence[Mapping[str, Any]]) -> None:
        import torch

        try:
            together = self.call([rendered] * 2, [[picture] for picture in pictures], padding=True)
        except (ValueError, TypeError, RuntimeError):
            self.joined_in = dict.fromkeys(self.image_names)
            return
        for name in self.image_names:
            parts, whole = [outputs[name] for outputs in alone], together[name]
            self.joined_in[name] = next(
                (
                    dimension
                    for dimension in range(whole.dim())
                    if whole.shape[dimension] == sum(part.shape[dimension] for part in parts)
                    and torch.equal(side_by_side(parts, dimension), whole)
                ),
                None,
            )

    def _find_pixels(
        self, single: Mapping[str, Any], like_it: Mapping[str, Any], others: Sequence[Mapping[str, Any]]
    ) -> None:
        import torch

        for name in self.image_names:
            values, joined = single[name], self.joined_in[name]
            if not values.is_floating_point() or torch.equal(values, like_it[name]):
                continue
            padded = {
                dimension
                for dimension in range(values.dim())
                if any(other[name].shape[dimension] != values.shape[dimension] for other in others)
            }
            padded.discard(joined)
            self.pixels[name] = PixelLayout(max(padded, default=None) if joined is not None else None, _frames(values))

    def _found_one_only(self, pictures: Sequence[Image.Image]) -> str:
        import torch

        name = type(self.processor).__name__
        texts, outputs = [], []
        try:
            for count in (1, 2):
                content = [*[{"type": "image"}] * count, {"type": "text", "text": "a"}]
                texts.append(self.render([{"role": "user", "content": content}]))
                outputs.append(self.call(texts[-1:], [list(pictures[:count])]))
        except Exception as error:  # templates and processors may raise anything
            return f"{name} takes only one image in a prompt ({first_line(error)})"
        one, two = outputs
        seen = any(
            one[each].shape != two[each].shape or not torch.equal(one[each], two[each]) for each in self.image_names
        )
        if not seen or texts[0] == texts[1] or torch.equal(one["input_ids"], two["input_ids"]):
            return f"{name} or its chat template shows only one image in a prompt"
        return ""

    def _find_suffix(self, rendered: str, image: Image.Image) -> None:
        if "suffix" not in inspect.signature(type(self.processor).__call__).parameters:
            return
        outputs = self.call([rendered], [[image]], suffix=["a"])
        self._suffix = {name: outputs[name][:, -1:] for name in self.token_names}


def _different(names: Collection[str], one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in names if one[name].shape != other[name].shape]


def _frames(pixels: Tensor) -> int:
    """How many times each image is in rows of (3 channels, frames, height x width)."""
    import torch

    size = pixels.shape[-1]
    for frames in range(2, size // CHANNELS + 1):
        if size % (CHANNELS * frames) == 0:
            rows = pixels.reshape(-1, CHANNELS, frames, size // (CHANNELS * frames))
            if torch.equal(rows, rows[:, :, :1].expand_as(rows)):
                return frames
    return 1


def side_by_side(parts: Sequence[Tensor], dimension: int) -> Tensor:
    """Tensors joined in a dimension, padded with zeros in the others."""
    import torch
    from torch.nn import functional

    sizes = [max(part.shape[d] for part in parts) for d in range(parts[0].dim())]
    filled = []
    for part in parts:
        room = [
            0 if d == dimension else size - have for d, (size, have) in enumerate(zip(sizes, part.shape, strict=True))
        ]
        filled.append(functional.pad(part, [n for d in reversed(room) for n in (0, d)]) if any(room) else part)
    return torch.cat(filled, dim=dimension)


def _noise(width: int, height: int, sigma: int) -> Image.Image:
    return Image.effect_noise((width, height), sigma).convert("RGB")
