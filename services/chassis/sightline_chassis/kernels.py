"""Whether kernels written in Triton (the compiler, not the server) can run here."""

from __future__ import annotations

import importlib.util
import os
import shutil


def kernels_unusable() -> str:
    """Why Triton's kernels cannot run on this machine's GPU; "" if they can. The GPU itself is not checked."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton compiles their launcher, and there is no C compiler: install gcc, or set CC"
    return ""
