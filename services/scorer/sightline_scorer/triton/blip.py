"""ImageReward for Triton: takes a picture and a text together and returns one number. Needs only torch.

The checkpoint is read as its authors released it (ImageReward.pt): BLIP's ViT, BERT with cross-attention to the picture
in every layer (Li et al. 2022, arXiv:2201.12086), and a network without activations on the first token's state.

    blip.visual_encoder.*   pre-norm blocks; one matrix for query, key and value
    blip.text_encoder.*     post-norm layers: attention to the text, to the picture, two dense layers
    mlp.layers.*            768 -> 1024 -> 128 -> 64 -> 16 -> 1

A picture is encoded once for all its texts: equal pictures in a batch share the work, and the states of the last few
pictures are cached. Copied beside model.py into Triton's repository.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the network's numbers over the authors' data: the reward is (number - MEAN) / STD."""
HEAD = 64
"""Dimensions of an attention head, in both encoders."""
_SEEN = "blip.visual_encoder."
_READ = "blip.text_encoder."
_MARK = "mlp.layers."
_KEPT = 32  # pictures whose states are kept, 0.8 MB each in single precision
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def read_state(file: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors, without unpickling. Raises the errors of torch and safetensors for a damaged one."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(file))
    found: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return found


def layers_of(state: dict[str, Tensor], prefix: str) -> list[int]:
    """Numbers of the layers whose keys begin with `prefix`, increasing."""
    return sorted({int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)})


class JointTower:
    """Rewards of pictures and texts.

    Args:
        state: the checkpoint.
        facts: the model's card.
        device: where it runs.

    Raises:
        KeyError, IndexError: the checkpoint lacks a part.
    """

    def __init__(self, state: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> None:
        self._device = device
        self._dtype = _DTYPES[facts["precision"]]
        kept = {key: value for key, value in state.items() if key.startswith((_SEEN, _READ, _MARK))}
        kept.pop(f"{_READ}embeddings.position_ids", None)
        self._state = {
            key: value.to(device, torch.float32 if key.startswith(_MARK) else self._dtype)
            for key, value in kept.items()
        }
        self._blocks = layers_of(kept, f"{_SEEN}blocks.")
        self._layers = layers_of(kept, f"{_READ}encoder.layer.")
        self._marks = layers_of(kept, _MARK)
        for wanted in (self._blocks, self._layers, self._marks):
            wanted[-1]  # IndexError: there is none
        self._mean = torch.tensor(facts["preprocess"]["mean"], device=device).view(-1, 1, 1)
        self._std = torch.tensor(facts["preprocess"]["std"], device=device).view(-1, 1, 1)
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Rewards float32 [B, 1] of pixels uint8 [B, 3, H, W] and token ids int32 [B, L], padded with 0."""
        with torch.inference_mode():
            length = max(1, int((ids != 0).sum(1).max()))
            states = self._states(pixels)
            return self._rewards(states, ids[:, :length].to(self._device).long()).cpu()

    def _states(self, pixels: Tensor) -> Tensor:
        """States [B, P, W] of the pictures' patches."""
        keys = [hashlib.sha256(picture.numpy().tobytes()).digest() for picture in pixels]
        fresh = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._known}
        found = {key: self._known[key] for key in keys if key in self._known}
        if fresh:
            found |= zip(fresh, self._seen(pixels[list(fresh.values())].to(self._device)), strict=True)
        for key in keys:
            self._known[key] = found[key]
            self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return torch.stack([found[key] for key in keys])

    def _seen(self, pixels: Tensor) -> Tensor:
        state = self._state
        values = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std).to(self._dtype)
        kernel = state[f"{_SEEN}patch_embed.proj.weight"]
        patches = F.conv2d(values, kernel, state[f"{_SEEN}patch_embed.proj.bias"], stride=kernel.shape[-1])
        first = state[f"{_SEEN}cls_token"].expand(len(values), -1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], 1) + state[f"{_SEEN}pos_embed"]
        for number in self._blocks:
            at = f"{_SEEN}blocks.{number}."
            query, key, value = self._dense(self._norm(x, f"{at}norm1", 1e-6), f"{at}attn.qkv").chunk(3, -1)
            x = x + self._dense(_attended(query, key, value), f"{at}attn.proj")
            x = x + self._dense(F.gelu(self._dense(self._norm(x, f"{at}norm2", 1e-6), f"{at}mlp.fc1")), f"{at}mlp.fc2")
        return self._norm(x, f"{_SEEN}norm", 1e-6)

    def _rewards(self, states: Tensor, ids: Tensor) -> Tensor:
        table = f"{_READ}embeddings."
        places = self._state[f"{table}position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(self._state[f"{table}word_embeddings.weight"][ids] + places, f"{table}LayerNorm", 1e-12)
        mask = ids != 0
        mask[:, 0] = True  # rows of zeros, from Triton's warm-up, need something to attend to
        for number in self._layers:
            at = f"{_READ}encoder.layer.{number}."
            x = self._looked(x, x, f"{at}attention.", mask[:, None, None])
            x = self._looked(x, states, f"{at}crossattention.", None)
            inner = F.gelu(self._dense(x, f"{at}intermediate.dense"))
            x = self._norm(self._dense(inner, f"{at}output.dense") + x, f"{at}output.LayerNorm", 1e-12)
        mark = x[:, 0].float()
        for number in self._marks:
            mark = self._dense(mark, f"{_MARK}{number}")
        return (mark - MEAN) / STD

    def _looked(self, x: Tensor, at: Tensor, name: str, mask: Tensor | None) -> Tensor:
        """Attention from x [B, L, W] to its context, followed by the norm."""
        query, key, value = (
            self._dense(of, f"{name}self.{part}") for of, part in ((x, "query"), (at, "key"), (at, "value"))
        )
        dense = self._dense(_attended(query, key, value, mask), f"{name}output.dense")
        return self._norm(dense + x, f"{name}output.LayerNorm", 1e-12)

    def _dense(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._state[f"{name}.weight"], self._state[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight = self._state[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self._state[f"{name}.bias"], eps)


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention [B, L, W] with heads of 64; `mask` [B, 1, 1, M] marks allowed positions."""
    query, key, value = (part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
