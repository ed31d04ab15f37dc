"""`sightline doctor`: what this machine has, what each service needs, and how to get what is missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from sightline_chassis.kernels import kernels_unusable
from sightline_trainer.display import draw, narrow

from sightline_cli.extras import EXTRAS, missing

Verdict = Literal["ok", "warn", "bad"]
PORTS = {"scorer": (50051, 50061, 9101), "sampler": (50052, 50062, 9102)}
GLIBC = (2, 35)


@dataclass(frozen=True)
class Look:
    """One check; `fix` says what to do if it is not ok."""

    what: str
    verdict: Verdict
    found: str
    fix: str = ""


def doctor(as_json: bool) -> bool:
    """Look at this machine and print it.

    Returns:
        Whether nothing is bad. A warning concerns a part that you may not need, or that is slow without it.
    """
    return show("sightline doctor", [finding for check in CHECKS for finding in check()], as_json)


def show(title: str, found: Sequence[Look], as_json: bool) -> bool:
    """Print the checks; returns whether nothing is bad."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        table = narrow(title)
        for name in ("", "what", "found", "what to do"):
            table.add_column(name, overflow="fold")
        marks = {"ok": "[green]ok[/green]", "warn": "[yellow]warn[/yellow]", "bad": "[red]bad[/red]"}
        for finding in found:
            table.add_row(marks[finding.verdict], finding.what, escape(finding.found), escape(finding.fix))
        draw(table, Console())
    return all(finding.verdict != "bad" for finding in found)


def _python() -> Iterator[Look]:
    here = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Look("Python", "ok" if good else "bad", here, "" if good else "install Python 3.11 or newer")
    name, libc = platform.libc_ver()
    parts = tuple(int(part) for part in libc.split(".")[:2]) if name == "glibc" else (0, 0)
    good = parts >= GLIBC
    fix = "" if good else "Triton's wheel needs glibc 2.35: Debian 12, Ubuntu 22.04 or newer, or triton.mode=remote"
    yield Look("C library", "ok" if good else "warn", f"{name} {libc}", fix)


def _packages() -> Iterator[Look]:
    for extra in EXTRAS:
        lacking = missing(extra)
        fix = f"pip install 'sightline[{extra}]', to run it here" if lacking else ""
        yield Look(f"extra {extra}", "warn" if lacking else "ok",
                      f"without {', '.join(lacking)}" if lacking else "installed", fix)  # fmt: skip


def _triton() -> Iterator[Look]:
    library = Path(sysconfig.get_config_var("LIBDIR") or "") / (sysconfig.get_config_var("INSTSONAME") or "")
    good = library.is_file() and ".so" in library.name
    fix = "" if good else "Triton's Python models need libpython.so: use a Python built with --enable-shared"
    yield Look("libpython for Triton", "ok" if good else "warn", str(library), fix)
    try:
        from sightline_scorer.triton.installation import TritonNotInstalled, find
    except ModuleNotFoundError:
        return  # without the scorer's extra nothing needs Triton; the missing extra was reported above
    try:
        yield Look("Triton's wheel", "ok", str(find().binary))
    except TritonNotInstalled as error:
        fix = "sightline triton install; if it does not run, triton.mode=worker or remote"
        yield Look("Triton's wheel", "warn", str(error), fix)


def _torch() -> Iterator[Look]:
    try:
        here = version("torch")
    except PackageNotFoundError:
        return
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Look("torch", "ok", f"{here}, {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
        why = kernels_unusable()
        fix = "without them the sampler decodes several times slower, and updates run without Liger" if why else ""
        yield Look("kernels for the GPU", "warn" if why else "ok", why or "Triton and a C compiler", fix)
    else:
        yield Look("torch", "warn", f"{here}, no CUDA device", "real models need a GPU; the playground does not")
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    good = policy.upper() == "PASSIVE"
    fix = "" if good else "export OMP_WAIT_POLICY=PASSIVE: spinning threads are very slow on shared cores"
    yield Look("OMP_WAIT_POLICY", "ok" if good else "warn", policy or "not set", fix)


def _machine() -> Iterator[Look]:
    cores = len(os.sched_getaffinity(0))
    yield Look("cores", "ok" if cores >= 2 else "warn", str(cores), "" if cores >= 2 else "the demo needs two")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    fix = "" if memory >= 6 else "the demo needs about 6 GiB"
    yield Look("memory", "ok" if memory >= 6 else "warn", f"{memory:.0f} GiB", fix)
    free = shutil.disk_usage(".").free / 2**30
    fix = "" if free >= 5 else "runs and policies need space; free some, or run elsewhere"
    yield Look("disk, this directory", "ok" if free >= 5 else "warn", f"{free:.0f} GiB free", fix)


def _ports() -> Iterator[Look]:
    taken = []
    for service, ports in PORTS.items():
        for port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    taken.append(f"{port} ({service})")
    fix = "if no service of yours runs there, --set server.port=0 uses a free one" if taken else ""
    yield Look("ports of the shipped settings", "warn" if taken else "ok", ", ".join(taken) or "free", fix)


CHECKS: tuple[Callable[[], Iterator[Look]], ...] = (_python, _packages, _triton, _torch, _machine, _ports)
