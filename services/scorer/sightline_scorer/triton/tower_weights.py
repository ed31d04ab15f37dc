"""The weights of one tower, read from their file straight into the model.

`open_clip.create_model` draws random weights for both towers, reads the file beside them, and copies. So a process
holds the model twice, and does not need one of its towers. Here a model is made without drawing weights (unwritten
memory takes no pages), and only one tower's weights are read. This needs a safetensors file with exactly the model's
names, shapes and number types; open_clip, which also reads other layouts, loads everything else. Copied beside model.py
into Triton's repository.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "BOOL": torch.bool}


def unfilled(make: Callable[..., Any], path: Path) -> Any | None:
    """The model that `make` returns, with undefined weights, for `fill`.

    Args:
        make: `open_clip.create_model` with the arguments of a model on the CPU.
        path: the weights.

    Returns:
        None if the file's layout differs from the model's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (tuple(each.get_shape()), _TYPES.get(each.get_dtype())) for name, each in slices.items()}
    except (SafetensorError, OSError):  # not a safetensors file, or damaged: open_clip says what is wrong
        return None
    with _nothing_drawn():
        logging.disable(logging.WARNING)  # open_clip warns of a model without weights
        try:
            model = make(load_weights=False, pretrained_text=False)
        finally:
            logging.disable(logging.NOTSET)
    wanted = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
    return model if found == wanted else None


def fill(model: Any, path: Path, wanted: Callable[[str], bool]) -> None:
    """Read weights into a model of `unfilled`.

    Args:
        model: the model.
        path: the file that it was made for.
        wanted: whether a name is read; all others stay undefined.
    """
    from safetensors import safe_open

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if wanted(name):
                with safe_open(path, "pt") as file:  # opened for each: pages that were read stay mapped until it closes
                    tensor.copy_(file.get_tensor(name))


def of_image(name: str) -> bool:
    """Whether a name is one of the image tower's weights."""
    return name.startswith("visual.")


def of_text(name: str) -> bool:
    """Whether a name is one of the text tower's weights; the scale and the bias go with them."""
    return not of_image(name)


@contextlib.contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Make functions of `torch.nn.init` leave tensors unchanged."""
    public = {name: each for name, each in vars(torch.nn.init).items() if not name.startswith("_")}
    functions = {name: each for name, each in public.items() if name.endswith("_") and callable(each)}
    for name in functions:
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, each in functions.items():
            setattr(torch.nn.init, name, each)
