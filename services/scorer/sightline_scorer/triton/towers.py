"""The two towers of an open_clip model, without work that cannot change an embedding.

- A causal text tower reads a batch up to its last end-of-text token: later positions cannot matter.
- In a transformer's last block, only the pooled token is computed (the class token, the end-of-text token); its keys
  and values are still those of all tokens. This saves about 7 % of a tower with 12 blocks, and changes an embedding
  only by rounding.

Whether the second holds is checked when a model is loaded, against open_clip's own output; if not, open_clip's code is
used. Copied beside model.py into Triton's repository; it imports only torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
_TOLERANCE = 1e-4
_LENGTH_BUCKET = 16  # on a GPU with fixed shapes texts are padded to a multiple of this
Encode = Callable[[Tensor], Tensor]


class ImageTower:
    """ToTensor and Normalize of open_clip's transform, then its image tower; the text tower is released.

    Args:
        model: the open_clip model, in evaluation mode.
        facts: its card.
        device: its device.
    """

    def __init__(self, model: Any, facts: dict[str, Any], device: torch.device) -> None:
        for name in ("transformer", "token_embedding", "text"):
            if hasattr(model, name):
                delattr(model, name)
        self._model = model
        self._mean = torch.tensor(facts["preprocess"]["mean"], device=device).view(-1, 1, 1)
        self._std = torch.tensor(facts["preprocess"]["std"], device=device).view(-1, 1, 1)
        self._dtype = input_dtype(model.visual)
        example = torch.randint(0, 256, (2, 3, facts["image_height"], facts["image_width"]), device=device)
        _try(self, example.to(torch.uint8), self._pool_early)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Nothing to do on the host."""
        return pixels

    def encode(self, pixels: Tensor) -> Tensor:
        """Features [B, D] of pixels uint8 [B, 3, H, W]."""
        values = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return self._model.encode_image(values.to(self._dtype))  # type: ignore[no-any-return]

    def _pool_early(self) -> None:
        """Make the last block compute only the class token."""
        visual = self._model.visual
        if visual.pool_type != "tok" or visual.attn_pool is not None or not visual.transformer.batch_first:
            raise NotImplementedError
        if visual.output_tokens:
            raise NotImplementedError
        block = visual.transformer.resblocks[-1]
        block.forward = lambda x, *_, **__: _last_block(block, x, x[:, :1], lambda normed: normed[:, :1], None)


def input_dtype(visual: torch.nn.Module) -> torch.dtype:
    """The number type of an image tower's first layer.

    Not that of the first parameter: in half precision, open_clip keeps a ViT's class embedding, which comes first, in
    float32.
    """
    for module in visual.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            return module.weight.dtype
    return next(visual.parameters()).dtype


class TextTower:
    """The text tower; the image tower is released. Arguments as for `ImageTower`."""

    def __init__(self, model: Any, facts: dict[str, Any], device: torch.device) -> None:
        del model.visual
        self._model = model
        self._trim = facts["trim_padding"]
        self._fixed = facts["gpu_graphs"] != "off" and device.type == "cuda"
        self._window = facts["context_length"]
        self.encode: Encode = self._encode_whole
        if self._trim:
            self.encode = self._encode_trimmed
            length = min(12, self._window)
            example = torch.randint(1, max(2, min(1000, model.vocab_size - 2)), (3, length), device=device)
            for row, end in enumerate((length - 1, length // 2, 2)):
                example[row, end] = self._end_id()
                example[row, end + 1 :] = 0
            _try(self, example, self._pool_early)

    def prepare(self, ids: Tensor) -> Tensor:
        """The batch without columns that no text reaches; on a GPU with fixed shapes, up to a multiple of 16."""
        if not self._trim:
            return ids
        length = int(self._ends(ids).max()) + 1
        if self._fixed:
            length = min(-(-length // _LENGTH_BUCKET) * _LENGTH_BUCKET, self._window)
            ids = torch.nn.functional.pad(ids, (0, max(0, length - ids.shape[1])))
        return ids[:, :length]

    def _end_id(self) -> int:
        model = self._model
        return int(model.vocab_size - 1) if model.text_pool_type == "argmax" else int(model.text_eos_id)

    def _ends(self, ids: Tensor) -> Tensor:
        """Position of each text's end token, as in open_clip's pooling."""
        if self._model.text_pool_type == "argmax":
            return ids.argmax(dim=-1)
        ends: Tensor = (ids == self._model.text_eos_id).int().argmax(dim=-1)
        return ends

    def _encode_whole(self, ids: Tensor) -> Tensor:
        """open_clip's own, all columns."""
        return self._model.encode_text(ids.long())  # type: ignore[no-any-return]

    def _encode_trimmed(self, ids: Tensor) -> Tensor:
        """open_clip's own, on as many positions as there are columns."""
        model, length = self._model, ids.shape[1]
        positions, mask = model.positional_embedding.data, model.attn_mask
        try:
            model.positional_embedding.data, model.attn_mask = positions[:length], mask[:length, :length]
            return model.encode_text(ids.long())  # type: ignore[no-any-return]
        finally:
            model.positional_embedding.data, model.attn_mask = positions, mask

    def _encode_pooled(self, ids: Tensor) -> Tensor:
        """As `_encode_trimmed`, with only the end tokens in the last block."""
        model, length = self._model, ids.shape[1]
        dtype = model.transformer.get_cast_dtype()
        ids = ids.long()
        ends = self._ends(ids)
        x = model.token_embedding(ids).to(dtype) + model.positional_embedding[:length].to(dtype)
        mask = model.attn_mask[:length, :length]
        for block in model.transformer.resblocks[:-1]:
            x = block(x, attn_mask=mask)
        rows = torch.arange(len(ids), device=ids.device)
        behind = torch.arange(length, device=ids.device)[None] > ends[:, None]
        last = model.transformer.resblocks[-1]
        x = _last_block(last, x, x[rows, ends][:, None], lambda normed: normed[rows, ends][:, None], behind)
        x = model.ln_final(x[:, 0])
        projection = model.text_projection
        if isinstance(projection, torch.nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return x  # type: ignore[no-any-return]

    def _pool_early(self) -> None:
        if not self._model.transformer.batch_first:
            raise NotImplementedError
        self.encode = self._encode_pooled


def _last_block(block: Any, x: Tensor, pooled: Tensor, pick: Encode, ignore: Tensor | None) -> Tensor:
    """open_clip's ResidualAttentionBlock for one query token [B, 1, W] over all tokens [B, L, W]."""
    normed = block.ln_1(x)
    attended = block.attn(pick(normed), normed, normed, need_weights=False, key_padding_mask=ignore)[0]
    x = pooled + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]


def _try(tower: Any, example: Tensor, change: Callable[[], None]) -> None:
    """Change a tower if its outputs stay the same."""
    if not tower._model.__class__.__module__.startswith("open_clip"):
        return
    visual = getattr(tower._model, "visual", None)
    blocks = getattr(getattr(visual if visual is not None else tower._model, "transformer", None), "resblocks", None)
    if not blocks or type(blocks[-1]).__name__ != "ResidualAttentionBlock" or hasattr(blocks[-1], "ln_1_kv"):
        return
    encode = tower.encode
    with torch.inference_mode():
        before = torch.nn.functional.normalize(tower.encode(example).float(), dim=-1)
        try:
            change()
            after = torch.nn.functional.normalize(tower.encode(example).float(), dim=-1)
            same = bool((after - before).abs().max() < _TOLERANCE * (1 if before.dtype == torch.float32 else 50))
        except (NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
            logger.warning("running the tower as open_clip does: %r", error)
            same = False
    if not same:
        tower.encode = encode
        vars(blocks[-1]).pop("forward", None)


def on_device(tower: Any, device: torch.device, facts: dict[str, Any]) -> Encode:
    """From a batch on the host to embeddings float32 [B, D] of length 1 on the host."""

    def embed(batch: Tensor) -> Tensor:
        return torch.nn.functional.normalize(tower.encode(batch).float(), dim=-1)

    if device.type != "cuda":

        def on_cpu(batch: Tensor) -> Tensor:
            with torch.inference_mode():
                return embed(tower.prepare(batch))

        return on_cpu

    run = embed
    if facts["gpu_graphs"] == "compile":
        run = _Buckets(torch.compile(embed), facts["batch"], graphs=False)
    elif facts["gpu_graphs"] == "cuda_graphs":
        run = _Buckets(embed, facts["batch"], graphs=True)

    def on_gpu(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            pinned = tower.prepare(batch).contiguous().pin_memory()
            return run(pinned.to(device, non_blocking=True)).cpu()

    return on_gpu


class _Buckets:
    """Runs batches of fixed sizes (1, 2, 4 ... and the largest), each compiled or captured as a CUDA graph once.

    Args:
        encode: the work, on the GPU, without synchronising with the host.
        largest: maximum rows in a batch.
        graphs: whether to capture graphs.
    """

    def __init__(self, encode: Encode, largest: int, *, graphs: bool) -> None:
        self._encode = encode
        self._graphs = graphs
        self._sizes = sorted({*(2**n for n in range(12) if 2**n < largest), largest})
        self._captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, batch: Tensor) -> Tensor:
        rows = len(batch)
        size = next((size for size in self._sizes if size >= rows), rows)
        padded = batch if size == rows else torch.cat([batch, batch[-1:].expand(size - rows, *batch.shape[1:])])
        return (self._replay(padded) if self._graphs else self._encode(padded))[:rows]

    def _replay(self, batch: Tensor) -> Tensor:
        key = tuple(batch.shape)
        if key not in self._captured:
            static = batch.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # lets libraries select kernels and allocate before the capture
                for _ in range(3):
                    self._encode(static)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self._encode(static)
            self._captured[key] = (graph, static, result)
        graph, static, result = self._captured[key]
        static.copy_(batch)
        graph.replay()
        return result.clone()
