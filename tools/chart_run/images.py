"""Replacement of a container image: this checkout and its environment, with the Dockerfile's entry point."""

from __future__ import annotations

import functools
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from sightline_scorer.triton.installation import find

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STANDINS = Path(__file__).parent / "standins"
PACKAGES = (
    "client",
    "services/chassis",
    "services/scorer",
    "services/sampler",
    "services/trainer",
    "playground",
    "cli",
)


@dataclass(frozen=True)
class Image:
    """The default command and the environment of an image."""

    entrypoint: tuple[str, ...]
    environment: dict[str, str]


def image_of(name: str) -> Image:
    """The replacement of an image.

    Raises:
        LookupError: there is none.
    """
    repository = name.partition("@")[0].rpartition(":")[0] or name
    last = repository.rpartition("/")[2]
    environment = {
        "PATH": f"{STANDINS}:{BIN}:/usr/bin:/bin",
        "PYTHONPATH": ":".join(str(ROOT / package) for package in PACKAGES),
        "SIGHTLINE_TRITON_HOME": _triton(),
    }
    dockerfile = ROOT / f"services/{last}/Dockerfile"
    if repository.startswith("sightline/") and dockerfile.exists():
        brought = _environment(dockerfile.read_text(encoding="utf-8"))
        return Image((str(BIN / "sightline"),), brought | environment)
    if last in ("triton", "vllm-openai", "text-generation-inference"):
        program = {"triton": "tritonserver", "vllm-openai": "vllm"}.get(last, "tgi")
        return Image((str(STANDINS / program),), environment)
    raise LookupError(f"no replacement here for the image {name} here")


@functools.cache
def _triton() -> str:
    """The installation's home; looking for it runs a program."""
    return str(find().home)


def _environment(dockerfile: str) -> dict[str, str]:
    """Variables of a Dockerfile's last stage, except for paths inside the image."""
    last = dockerfile[dockerfile.rindex("\nFROM ") :].replace("\\\n", " ")
    found = (pair for line in re.findall(r"^ENV (.*)$", last, re.MULTILINE) for pair in shlex.split(line))
    return {name: value for name, _, value in (pair.partition("=") for pair in found) if "/opt/" not in value}
