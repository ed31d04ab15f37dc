"""Whether torch would find a GPU, without loading torch, which costs about 300 MiB and a few CPU seconds."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path


@functools.cache
def cuda_is_there() -> bool:
    """Whether `torch.cuda.is_available()`, by torch's build and the driver's count of GPUs.

    The driver respects CUDA_VISIBLE_DEVICES as it does for torch. A ROCm build is loaded and asked.
    """
    found = importlib.util.find_spec("torch") if "torch" not in sys.modules else None
    if found is not None and found.origin is not None:
        build: dict[str, object] = {}
        exec((Path(found.origin).parent / "version.py").read_text(), build)  # noqa: S102  torch's own file
        if build.get("hip") is None:
            return build.get("cuda") is not None and _gpus() > 0
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _gpus() -> int:
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        works = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):  # no driver
        return 0
    return count.value if works else 0
