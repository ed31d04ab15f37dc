"""A running service, or one that is started for a single call and stopped after it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput
from sightline_chassis.shipped import model_place

from sightline_cli.credentials import given


@dataclass(frozen=True)
class Reached:
    """A service to call."""

    address: str
    credentials: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its client."""


@contextmanager
def service(name: str, address: str | None, settings: Sequence[str]) -> Iterator[Reached]:
    """A running service, or one started with these settings.

    Raises:
        StartError, StartRefused: it did not start; the message is the service's last one.
        InvalidInput: the packages of the service are not installed.
    """
    if address is not None:
        yield Reached(address, given().arguments())
        return
    from sightline_cli.processes import Processes

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with (
        tempfile.TemporaryDirectory(prefix=f"sightline-{name}-") as scratch,
        Processes(Path(scratch), passing=True) as processes,
    ):
        processes.start(name, settings)
        yield Reached(processes.wait(name).grpc)


def model_or_playground(address: str | None, model: str | None, flag: str, playground: str) -> str | None:
    """The model to start a service with: the named one, or the playground's; None if an address is given.

    Raises:
        InvalidInput: both are given.
        NotFound: neither is given, and this installation has no playground.
    """
    if address is not None:
        if model is not None:
            raise InvalidInput(f"give {flag} or --model, not both", reason="BAD_OPTIONS")
        return None
    if model is None:
        model_place(playground)
    return model or playground
