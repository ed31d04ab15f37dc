"""One CLIP tower as a model of Triton's Python backend. Copied into the repository as `<name>/1/model.py`.

It runs inside `tritonserver`, beside torch and open_clip and without the rest of Sightline, so that a cluster can mount
the repository in an image that has those two. The parameter `sightline` of config.pbtxt holds its facts as JSON (see
`card.py`): which tower, the architecture, the weights and their SHA-256.

    image tower: pixels     uint8 [B, 3, H, W]  ->  embedding float32 [B, D], rows of length 1
    text tower:  token_ids  int32 [B, L]        ->  embedding float32 [B, D], rows of length 1

Tensors cross only by DLPack: with NumPy 2, arrays passed through the wheel's stub come back empty without an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils import dlpack


class TritonPythonModel:
    """The interface that the Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the weights, keep one tower, and refuse weights whose digest is not the stated one."""
        facts = json.loads(json.loads(args["model_config"])["parameters"]["sightline"]["string_value"])
        self.device = _device(facts["device"], args)
        if self.device.type == "cpu":
            torch.set_num_threads(facts["threads"])
            torch.set_num_interop_threads(1)
        here = Path(args["model_repository"]) / args["model_version"]
        weights = here / facts["weights_path"]  # an absolute path stays as it is
        digest = _sha256(weights)
        if digest != facts["weights_digest"]:
            raise pb_utils.TritonModelException(
                f"{weights} has SHA-256 {digest}, but config.pbtxt was made for {facts['weights_digest']}: "
                "build the repository again"
            )
        if not facts["needs_transformers"]:
            # open_clip does without it where it is not installed; that saves a fifth of the time to (re)start.
            sys.modules.setdefault("transformers", None)  # type: ignore[arg-type]
        import open_clip

        model = open_clip.create_model(
            f"local-dir:{weights.parent}" if facts["local_dir"] else facts["architecture"],
            pretrained=None if facts["local_dir"] else str(weights),
            precision=facts["precision"],
            device=self.device,
            require_pretrained=True,
        ).eval()
        self.input = "pixels" if facts["tower"] == "image" else "token_ids"
        self.encode = (
            _image_encoder(model, facts, self.device)
            if facts["tower"] == "image"
            else _text_encoder(model, trim=facts["trim_padding"])
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the merged requests as one batch; Triton bounds its size."""
        parts = [
            dlpack.from_dlpack(pb_utils.get_input_tensor_by_name(request, self.input).to_dlpack())
            for request in requests
        ]
        batch = parts[0] if len(parts) == 1 else torch.cat(parts)
        with torch.inference_mode():
            features = self.encode(batch.to(self.device, non_blocking=True)).float()
            embeddings = torch.nn.functional.normalize(features, dim=-1).cpu()
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("embedding", rows.contiguous().__dlpack__())])
            for rows in torch.split(embeddings, [len(part) for part in parts])
        ]

    def finalize(self) -> None:
        """End at once: there is nothing to save, and the interpreter takes a second or two to put torch away."""
        os._exit(0)


def _device(wanted: str, args: dict[str, str]) -> torch.device:
    if args["model_instance_kind"] == "GPU":
        return torch.device("cuda", int(args["model_instance_device_id"]))
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _image_encoder(model: Any, facts: dict[str, Any], device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """ToTensor and Normalize of open_clip's transform, then its image tower; the text tower is let go."""
    for name in ("transformer", "token_embedding", "text"):
        if hasattr(model, name):
            delattr(model, name)
    mean = torch.tensor(facts["preprocess"]["mean"], device=device).view(-1, 1, 1)
    std = torch.tensor(facts["preprocess"]["std"], device=device).view(-1, 1, 1)
    dtype = next(model.visual.parameters()).dtype

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        values = pixels.to(torch.float32).div_(255).sub_(mean).div_(std)
        return model.encode_image(values.to(dtype))  # type: ignore[no-any-return]

    return encode


def _text_encoder(model: Any, *, trim: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """open_clip's text tower; the image tower is let go.

    With `trim` the batch is cut after its last end-of-text token. In a causal tower that pools at that token, what
    stands behind it cannot matter, so this is exact and saves the padding's work.
    """
    del model.visual
    if not trim:
        return lambda ids: model.encode_text(ids.long())
    positions, mask = model.positional_embedding.data, model.attn_mask

    def encode(ids: torch.Tensor) -> torch.Tensor:
        ids = ids.long()
        ends = ids if model.text_pool_type == "argmax" else (ids == model.text_eos_id).int()
        length = int(ends.argmax(dim=-1).max()) + 1
        model.positional_embedding.data = positions[:length]
        model.attn_mask = mask[:length, :length]
        return model.encode_text(ids[:, :length])  # type: ignore[no-any-return]

    return encode
