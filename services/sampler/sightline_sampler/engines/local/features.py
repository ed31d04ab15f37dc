"""Image features: outputs of tower and projector, passed to the model in the form in which it gave them.

Architectures differ in that form: one tensor or a list, of images or of tiles, and for some (Qwen3-VL's deepstack)
further features for further layers of the decoder. The form is found by encoding one image alone and together with
another.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

# Parts of a tower's output that no decoder reads.
_UNREAD = ("last_hidden_state", "hidden_states", "attentions")

Form = tuple[Literal["tensor", "images", "layers"], ...]
"""A tensor for all images, a list of their items in order, or a list of layers and the form of each."""


class Encoded:
    """An image's features.

    Attributes:
        fields: a tensor, or lists of tensors, by the output's field.
        nbytes: their size.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        self.nbytes = sum(_bytes(value) for value in fields.values())


class Features:
    """How a model's image features are split by image and joined again."""

    def __init__(self, model: Any, batch: Mapping[str, torch.Tensor], single: Mapping[str, torch.Tensor]) -> None:
        """Find the form.

        Args:
            model: with `get_image_features`.
            batch: image inputs of two prompts, joined.
            single: image inputs of the first prompt.

        Raises:
            Exception: any error of an architecture without such features.
        """
        owners = (model, getattr(model, "model", model))  # the outer one may only pass on its arguments
        self._takes = frozenset(
            name for owner in owners for name in inspect.signature(owner.get_image_features).parameters
        )
        both, one = self._encode(model, batch), self._encode(model, single)
        self._kind = type(both)
        self._forms = {
            name: _form(value, one[name]) for name, value in both.items() if name not in _UNREAD and value is not None
        }
        if "pooler_output" not in self._forms:
            raise ValueError("get_image_features gives no pooler_output")

    def encode(self, model: Any, images: Mapping[str, torch.Tensor], count: int) -> list[Encoded]:
        """The features of `count` images of one shape, image by image. They are copies, so that one does not keep the
        batch alive."""
        output = self._encode(model, images)
        split = {name: _split(form, output[name], count) for name, form in self._forms.items()}
        return [Encoded({name: parts[i] for name, parts in split.items()}) for i in range(count)]

    def join(self, images: Sequence[Encoded]) -> Any:
        """The inverse of `encode`, in the form of `mm_encoder_outputs`."""
        return self._kind(
            **{name: _join(form, [image.fields[name] for image in images]) for name, form in self._forms.items()}
        )

    def _encode(self, model: Any, images: Mapping[str, torch.Tensor]) -> Any:
        taken = {name: tensor for name, tensor in images.items() if name in self._takes}
        return model.get_image_features(**taken, return_dict=True)


def _form(both: Any, one: Any) -> Form:
    if torch.is_tensor(both):
        return ("tensor",)
    return ("layers", *_form(both[0], one[0])) if len(both) == len(one) else ("images",)


def _split(form: Form, value: Any, count: int) -> list[Any]:
    if form[0] == "tensor":
        return [part.clone() for part in value.chunk(count)]
    if form[0] == "images":
        each = len(value) // count
        return [[part.clone() for part in value[i * each : (i + 1) * each]] for i in range(count)]
    layers = [_split(form[1:], layer, count) for layer in value]
    return [list(parts) for parts in zip(*layers, strict=True)]


def _join(form: Form, parts: Sequence[Any]) -> Any:
    if form[0] == "tensor":
        return torch.cat(list(parts))
    if form[0] == "images":
        return [tensor for part in parts for tensor in part]
    return [_join(form[1:], layer) for layer in zip(*parts, strict=True)]


def _bytes(value: Any) -> int:
    return int(value.nbytes) if torch.is_tensor(value) else sum(_bytes(one) for one in value)
