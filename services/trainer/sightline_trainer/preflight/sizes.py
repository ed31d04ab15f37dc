"""Sizes: how large a model is and which parts are trained, counted without weights (meta device)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline_chassis.families.quantized import BYTES


@dataclass(frozen=True)
class Sizes:
    """Counts are numbers of parameters unless they say otherwise.

    Attributes:
        family: transformers' model_type.
        parameters: parameters of the base model.
        trained: parameters that an update changes.
        modules: layers with an adapter; 0 if the weights themselves are trained.
        stored: bytes of a parameter in the checkpoint.
        layers: layers of the language model. width, inner, kept: numbers per token in one layer's stream, its
            feed-forward part, and its keys (values have as many).
        shared: whether responses can share the prefix of their prompt.
        linear: parameters of the language model's layers that quantization stores in fewer bits.
    """

    family: str
    parameters: int
    trained: int
    modules: int
    stored: int
    layers: int
    width: int
    inner: int
    kept: int
    shared: bool
    linear: int = 0

    @classmethod
    def of(cls, trained: Any, config: Any) -> Sizes:
        """Count them for a model prepared for an update, with its config."""
        from sightline_trainer.dpo.support import obstacle

        text = config.get_text_config()
        every = sum(each.numel() for name, each in trained.named_parameters() if not _added(name))
        heads = _largest(text, "num_attention_heads")
        head = _largest(text, "head_dim") or text.hidden_size // heads
        names = getattr(getattr(trained, "base_model", None), "targeted_module_names", ())
        return cls(
            family=str(config.model_type),
            parameters=every,
            trained=sum(each.numel() for each in trained.parameters() if each.requires_grad),
            modules=len(names),
            stored=_bytes(getattr(config, "dtype", None) or getattr(text, "dtype", None)),
            layers=int(text.num_hidden_layers),
            width=int(text.hidden_size),
            inner=_largest(text, "intermediate_size") or 4 * int(text.hidden_size),
            kept=head * (_largest(text, "num_key_value_heads") or heads),
            shared=obstacle(trained) is None,
            linear=_linear(trained),
        )

    def weights(self, number: int, quantization: str | None) -> int:
        """Bytes of the base model at this many bytes per number, or quantized."""
        return number * self.parameters - (int((number - BYTES) * self.linear) if quantization else 0)

    @property
    def share(self) -> float:
        """Share of trained parameters; for an adapter, compared with the base model's."""
        return self.trained / max(1, self.parameters)

    def slot(self, number: int) -> int:
        """Bytes of one token's keys and values over all layers, at this many bytes per number."""
        return 2 * self.layers * self.kept * number

    def __str__(self) -> str:
        where = f"LoRA on {self.modules} layers" if self.modules else "its own weights"
        return (
            f"{self.family}, {told(self.parameters)} parameters; the update trains {told(self.trained)} "
            f"({self.share:.2%}): {where}"
        )


def _largest(text: Any, name: str) -> int:
    """A number in the decoder's config; the largest one if layers differ, as Gemma 4's heads do; 0: not given."""
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    return max(int(getattr(layer, name, None) or 0) for layer in layers)


def _linear(trained: Any) -> int:
    from sightline_trainer.dpo.decoder import linear_layers
    from sightline_trainer.dpo.support import base_of

    base = base_of(trained)
    layers = {name.removesuffix(".base_layer") for name in linear_layers(base) if ".lora_" not in name}
    named: dict[str, Any] = dict(base.named_modules())
    return sum(getattr(named[name], "base_layer", named[name]).weight.numel() for name in layers)


def _added(name: str) -> bool:
    """Whether a parameter belongs to the adapter, or is a trained copy of one of the model's."""
    return "lora_" in name or ".modules_to_save." in name


def told(count: float) -> str:
    """1.4 M, 7.06 G: a count with its prefix."""
    for factor, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= factor:
            return f"{count / factor:.3g}{prefix}"
    return f"{count:.3g}"


def _bytes(dtype: Any) -> int:
    import torch

    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else 4
