"""The limit: the same model in this process, by torch and open_clip alone, batched as well as possible.

One thread turns JPEG bytes into scores: it decodes, applies open_clip's own transform, and runs each tower at its best
batch size. It sorts texts by length; if the text tower is causal, it pads them only to the longest of the batch.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from scorer_work import Request, Requests


class Limit:
    """A model in this process.

    Args:
        directory: the model's directory, as for open_clip's `local-dir:`.
        requests: used to find the best batch sizes.
    """

    def __init__(self, directory: Path, requests: Requests) -> None:
        import open_clip

        torch.set_num_threads(1)
        name = f"local-dir:{directory}"
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)
        self._positions, self._mask = self._model.positional_embedding.data, self._model.attn_mask
        self.image_batch, self.text_batch = 1, 8
        self._find_batches(requests.warm(16))

    def score(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        """Cosines [8] of each request's texts with its image."""
        images = self.images([request.image for request in requests])
        texts = self.texts([text for request in requests for text in request.texts])
        return [part @ images[n] for n, part in enumerate(texts.split([len(request.texts) for request in requests]))]

    @torch.inference_mode()
    def images(self, files: Sequence[bytes]) -> torch.Tensor:
        """Embeddings [N, D] of encoded images."""
        made = []
        for start in range(0, len(files), self.image_batch):
            pixels = [self._decoded(file) for file in files[start : start + self.image_batch]]
            made.append(self._normal(self._model.encode_image(torch.stack(pixels))))
        return torch.cat(made)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings [N, D] of texts."""
        ids = self._tokenizer(list(texts))
        ends = ids if self._model.text_pool_type == "argmax" else (ids == self._model.text_eos_id).int()
        lengths = ends.argmax(dim=-1) + 1
        order = lengths.argsort()
        made = torch.empty(0)
        for start in range(0, len(ids), self.text_batch):
            rows = order[start : start + self.text_batch]
            length = int(lengths[rows].max())
            self._model.positional_embedding.data = self._positions[:length]
            self._model.attn_mask = self._mask[:length, :length]
            part = self._normal(self._model.encode_text(ids[rows, :length]))
            if not len(made):
                made = torch.empty(len(ids), part.shape[1])
            made[rows] = part
        return made

    def _decoded(self, file: bytes) -> torch.Tensor:
        pixels: torch.Tensor = self._preprocess(Image.open(io.BytesIO(file)))
        return pixels

    def _normal(self, features: Any) -> torch.Tensor:
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu()

    def _find_batches(self, requests: list[Request]) -> None:
        """The batch size of each tower that takes the least time per item."""
        images, texts = [one.image for one in requests], [text for one in requests for text in one.texts]
        self.score(requests[:2])
        costs: dict[int, float] = {}
        for self.image_batch in (1, 4, 16):
            costs[self.image_batch] = _seconds(lambda: self.images(images))
        self.image_batch = min(costs, key=costs.__getitem__)
        costs = {}
        for self.text_batch in (8, 32, 128):
            costs[self.text_batch] = _seconds(lambda: self.texts(texts))
        self.text_batch = min(costs, key=costs.__getitem__)


def _seconds(work: Any) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
