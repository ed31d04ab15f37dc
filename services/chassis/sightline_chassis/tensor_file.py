"""Tensor file: reads a file of tensors as released, by safetensors or by torch, and never unpickles code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import first_line

if TYPE_CHECKING:
    from torch import Tensor

_LFS = b"version https://git-lfs"


def read_tensors(file: Path, *, mmap: bool = False) -> dict[str, Tensor]:
    """The tensors by name; of a `.pt` file also what is beside them, such as a table of tensors.

    Args:
        mmap: map a file of torch's into memory instead of reading it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or is not such a file; the message says so in a sentence.
    """
    import torch
    from safetensors.torch import load_file

    safe = file.suffix == ".safetensors"
    try:
        found: Any = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # zip, pickle and safetensors raise many kinds; pickle's advice is to run foreign code
        raise ValueError(f"{file} {_fault(file, error, safe)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, not tensors by name")
    return dict(found)


def _fault(file: Path, error: Exception, safe: bool) -> str:
    with file.open("rb") as held:
        if held.read(len(_LFS)) == _LFS:
            return "is only Git LFS's pointer to the weights: fetch them with `git lfs pull`"
    told = f" ({first_line(error)})" if safe else ""
    return f"is damaged, or holds something else than tensors{told}"
