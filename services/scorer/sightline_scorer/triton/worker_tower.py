"""One tower in its own process, for `triton.mode: worker`: runs the repository's model.py without Triton.

model.py is exactly the file that Triton's Python backend runs; this module replaces the backend's module
`triton_python_backend_utils`. Tensors are passed over a pipe:

    parent ──(uint8 or int32 [B, ...], ...)──> this process ──("rows", float32 [B, D]) or ("error", why)──> parent
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

PARAMETER = "sightline"


class _Tensor:
    """`pb_utils.Tensor`, as far as model.py uses it."""

    def __init__(self, name: str, values: Any) -> None:
        self.name = name
        self.values = values

    def to_dlpack(self) -> Any:
        return self.values

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> _Tensor:
        from torch.utils import dlpack

        return cls(name, dlpack.from_dlpack(capsule))


class TowerProgram:
    """A tower, loaded.

    Args:
        directory: a model's directory in the repository.
        facts: its config's parameter `sightline`.
    """

    def __init__(self, directory: Path, facts: str) -> None:
        _stand_in()
        where = importlib.util.spec_from_file_location("model", directory / "1/model.py")
        assert where is not None
        assert where.loader is not None
        module = importlib.util.module_from_spec(where)
        where.loader.exec_module(module)
        self._model = module.TritonPythonModel()
        config = json.dumps({"parameters": {PARAMETER: {"string_value": facts}}})
        repository = str(directory)
        self._model.initialize(
            {
                "model_config": config,
                "model_repository": repository,
                "model_version": "1",
                "model_instance_kind": "CPU",  # the facts' `device` says more
            }
        )

    def __call__(self, *values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Rows [B, D] of one batch; `values` are the model's inputs in order."""
        import torch

        request = {
            name: torch.from_numpy(np.array(each)) for name, each in zip(self._model.inputs, values, strict=True)
        }
        (response,) = self._model.execute([request])
        rows: npt.NDArray[np.float32] = response.output_tensors[0].values.numpy()
        return rows


def _stand_in() -> None:
    """The module that Triton's stub would provide."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor = _Tensor
    module.TritonModelException = RuntimeError
    module.InferenceResponse = lambda tensors: SimpleNamespace(output_tensors=tensors)
    module.get_input_tensor_by_name = lambda request, name: _Tensor(name, request[name])
    sys.modules["triton_python_backend_utils"] = module


def run(pipe: Connection, directory: str, facts: str) -> None:
    """Serve batches until the pipe closes, when the parent has ended for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        tower = TowerProgram(Path(directory), facts)
    except BaseException as error:  # open_clip or a damaged file may raise anything
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        os._exit(1)
    pipe.send(("ready", ""))
    while True:
        try:
            values = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            answer: tuple[str, Any] = ("rows", tower(*values))
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}")
        pipe.send(answer)
