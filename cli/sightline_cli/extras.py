"""Extras: the packages of each, and the message if one is missing."""

from __future__ import annotations

import importlib.util

EXTRAS = {
    "scorer": ("open_clip", "torch", "torchvision", "tritonclient", "PIL"),
    "sampler": ("torch", "transformers", "peft", "httpx", "PIL"),
    "trainer": ("torch", "trl", "peft", "datasets", "accelerate", "pyarrow"),
    "qlora": ("torch", "transformers", "peft", "accelerate", "bitsandbytes"),
    "liger": ("torch", "trl", "liger_kernel"),
    "report": ("jinja2", "matplotlib", "fastapi", "uvicorn"),
    "gateway": ("fastapi", "uvicorn"),
    "scorer-remote": ("tritonclient", "PIL", "ftfy", "regex"),
    "sampler-remote": ("httpx", "PIL"),
}
"""Modules of each extra, in the order in which they are imported."""
_OF_SERVICES = ("pydantic", "yaml", "grpc_health", "grpc_reflection", "prometheus_client", "cachetools")
"""Modules that every service needs; all of the above include them."""


def missing(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [module for module in (*_OF_SERVICES, *EXTRAS.get(extra, ())) if importlib.util.find_spec(module) is None]


def told_of(module: str | None, extra: str) -> str | None:
    """The message for a missing module; None if it is one of ours, which is a bug."""
    package = (module or "").partition(".")[0]
    if not package or package.startswith("sightline"):
        return None
    return f"this needs the package {package}: pip install 'sightline[{extra}]'"
