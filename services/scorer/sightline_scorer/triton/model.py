"""One tower as a model of Triton's Python backend. Copied into the repository as `<name>/1/model.py`.

It runs inside `tritonserver` with torch and open_clip but without the rest of Sightline, so that a cluster can mount
the repository in an image with these two. The parameter `sightline` of config.pbtxt holds its facts as JSON (see
`card.py`): which tower, the architecture, the weights and their SHA-256. CLIP's towers are in `towers.py`; `blip.py`,
which takes a picture and a text together, does not need open_clip.

    image tower: pixels     uint8 [B, 3, H, W]  ->  embedding float32 [B, D], rows of length 1
    text tower:  token_ids  int32 [B, L]        ->  embedding float32 [B, D], rows of length 1
    joint tower: pixels and token_ids           ->  reward float32 [B, 1]

Where the fact `text_model` or `image_model` names the other tower, both come from one process's import (beside.py):
then the text tower's process imports no torch. Requests of one batch may have texts of different L. Tensors cross only
by DLPack: with NumPy 2, arrays passed through the wheel's stub come back empty without an error.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    import torch


class TritonPythonModel:
    """The interface for Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the weights, keep one tower, and refuse weights with a wrong digest."""
        self._facts = json.loads(json.loads(args["model_config"])["parameters"]["sightline"]["string_value"])
        self._arguments = args
        self.here = Path(args["model_repository"]) / args["model_version"]
        sys.path.insert(0, str(self.here))
        self.output, self.inputs = "embedding", ["pixels" if self._facts["tower"] == "image" else "token_ids"]
        self.guest = None
        if "image_model" in self._facts:
            import beside  # type: ignore[import-not-found]

            with contextlib.suppress(beside.TowerGone):
                self.guest = beside.Guest(self.here.parent.parent / self._facts["image_model"])
                return
        self._load()

    def _load(self) -> None:
        """The tower in this process; with the image tower, also the text tower's fork if the card asks for it."""
        host = None
        if "text_model" in self._facts:
            import beside

            host = beside.Host(self.here.parent)  # first of all, because the light process waits for it
        import torch

        facts, device = self._facts, _device(self._facts["device"], self._arguments)
        if device.type == "cpu":
            torch.set_num_threads(1)  # a process with running threads must not fork
            torch.set_num_interop_threads(1)
        path = self.here / facts["weights_path"]  # an absolute path stays as it is
        digest = _sha256(path)
        if digest != facts["weights_digest"]:
            raise pb_utils.TritonModelException(
                f"{path} has SHA-256 {digest}, but config.pbtxt was made for {facts['weights_digest']}: "
                "build the repository again"
            )
        if facts["tower"] == "joint":
            import blip  # type: ignore[import-not-found]

            _set_threads(facts, device)
            self.inputs, self.output = ["pixels", "token_ids"], "reward"
            self.tower = blip.JointTower(blip.read_state(path), facts, device)
            return
        _import_lean(facts)
        import open_clip
        import tower_weights  # type: ignore[import-not-found]
        import towers  # type: ignore[import-not-found]

        make = partial(
            open_clip.create_model,
            f"local-dir:{path.parent}" if facts["local_dir"] else facts["architecture"],
            pretrained=None if facts["local_dir"] else str(path),
            precision=facts["precision"],
            device=device,
        )
        model = None
        if device.type == "cpu" and facts["precision"] == "fp32" and not facts["needs"]:
            model = tower_weights.unfilled(make, path)
        straight = model is not None
        model = (model or make(require_pretrained=True)).eval()
        if device.type == "cuda" and facts["precision"] != "fp32":
            import half  # type: ignore[import-not-found]

            half.quicken(model)

        def made(kind: Any) -> Any:
            _set_threads(facts, device)
            if straight:
                of_image = kind is towers.ImageTower
                tower_weights.fill(model, path, tower_weights.of_image if of_image else tower_weights.of_text)
            return towers.on_device(kind(model, facts, device), device, facts)

        if host is not None and device.type != "cpu":
            host.close()  # a process that uses a GPU must not fork; the other process loads its tower itself
        elif host is not None:
            gc.freeze()  # keeps garbage collection from writing to shared pages
            host.fork(lambda: _of_arrays(made(towers.TextTower)))
        self.tower = made(towers.ImageTower if facts["tower"] == "image" else towers.TextTower)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the merged requests as one batch; Triton bounds its size."""
        if self.guest is not None:
            try:
                return self._passed_on(requests)
            except (OSError, sys.modules["beside"].TowerGone):
                self.guest = None
                self._load()
        import torch
        from torch.utils import dlpack

        parts = [
            [dlpack.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack()) for request in requests]
            for name in self.inputs
        ]
        answers = self.tower(*map(_joined, parts))
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(self.output, rows.contiguous().__dlpack__())])
            for rows in torch.split(answers, [len(part) for part in parts[0]])
        ]

    def _passed_on(self, requests: list[Any]) -> list[Any]:
        """Answer by the text tower in another process."""
        assert self.guest is not None
        parts = [
            np.from_dlpack(_Capsule(pb_utils.get_input_tensor_by_name(request, self.inputs[0]).to_dlpack()))
            for request in requests
        ]
        ids = np.zeros((sum(map(len, parts)), max(part.shape[1] for part in parts)), np.int32)
        ends = np.cumsum([len(part) for part in parts])
        for part, end in zip(parts, ends, strict=True):
            ids[end - len(part) : end, : part.shape[1]] = part
        answers = self.guest(ids)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(self.output, rows.copy().__dlpack__())])
            for rows in np.split(answers, ends[:-1])
        ]

    def finalize(self) -> None:
        """End at once: there is nothing to save, and unloading torch takes a second or two."""
        os._exit(0)


class _Capsule:
    """A tensor of Triton's on the host, for NumPy."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def _of_arrays(tower: Any) -> Any:
    """A tower that takes and gives arrays."""
    import torch

    return lambda ids: tower(torch.from_numpy(ids)).numpy()


def _set_threads(facts: dict[str, Any], device: torch.device) -> None:
    if device.type == "cpu":
        import torch

        torch.set_num_threads(facts["threads"])


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The requests' tensors as one; shorter texts get zeros behind their end."""
    import torch

    if len(parts) == 1:
        return parts[0]
    if parts[0].ndim == 2:
        length = max(part.shape[1] for part in parts)
        parts = [torch.nn.functional.pad(part, (0, length - part.shape[1])) for part in parts]
    return torch.cat(parts)


def _device(wanted: str, args: dict[str, str]) -> torch.device:
    import torch

    if args["model_instance_kind"] == "GPU":
        return torch.device("cuda", int(args["model_instance_device_id"]))
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _import_lean(facts: dict[str, Any]) -> None:
    """Keep imports of open_clip that this model does not use out of the process.

    open_clip works without timm and transformers if they are not installed. torchvision imports torch's compiler for
    one function (whether detection kernels may be compiled). All three took 3.7 of 8.6 CPU seconds to (re)start and 120
    of 510 MiB.
    """
    for package in ("timm", "transformers"):
        if package not in facts["needs"]:
            sys.modules.setdefault(package, None)  # type: ignore[arg-type]
    if "timm" in facts["needs"] or facts["gpu_graphs"] == "compile" or "torch._dynamo" in sys.modules:
        return
    compiler, utils = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    compiler.__path__ = []
    utils.is_compile_supported = lambda device: False  # type: ignore[attr-defined]
    sys.modules |= {"torch._dynamo": compiler, "torch._dynamo.utils": utils}
    try:
        importlib.import_module("torchvision.ops")
    except (ImportError, AttributeError):  # a torchvision that needs more: it is imported with the compiler below
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        del sys.modules["torch._dynamo"], sys.modules["torch._dynamo.utils"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
