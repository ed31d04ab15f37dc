"""`sightline sample`: what does a policy say about a picture? A table, or one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from sightline.errors import InvalidInput
from sightline.patience import Patience
from sightline.sampler import Candidate, DiffusionNoise, SampleOptions, SamplerClient, Samples, Turn
from sightline.sampler.turns import user_turn
from sightline_trainer.display import draw

from sightline_cli.local import model_or_playground, service

PLAYGROUND = "playground:llava"


@dataclass(frozen=True)
class Wanted:
    """How to sample; None leaves the service's default. `noise` is a step of the diffusion schedule."""

    n: int = 4
    seed: int = 0
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    noise: int | None = None

    def options(self) -> SampleOptions:
        """The options for the client."""
        options = SampleOptions(seed=self.seed, max_tokens=self.max_tokens)
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.top_p is not None:
            options["top_p"] = self.top_p
        if self.noise is not None:
            if self.noise < 0:
                raise InvalidInput(f"--noise is {self.noise}; it must be in 0..999", reason="BAD_DISTORTION")
            options["distortion"] = DiffusionNoise(self.noise, self.seed)
        return options


def sample(
    images: Sequence[Path],
    prompt: str,
    wanted: Wanted,
    *,
    system: str | None,
    sampler: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Ask a running sampler, or start one for this call, and print the candidates.

    Raises:
        SightlineError: the sampler refuses the request, or cannot be reached.
        StartError: no sampler could be started.
    """
    for image in images:
        if not image.is_file():
            raise InvalidInput(f"there is no image {image}: check the path", reason="IMAGE_NOT_FOUND")
    asked = user_turn(prompt, len(images))
    turns = asked if system is None else (Turn("system", (system,)), *asked)
    source = model_or_playground(sampler, model, "--sampler", PLAYGROUND)
    with (
        service("sampler", sampler, [f"engine.model={source}"]) as at,
        SamplerClient(at.address, timeout=600, patience=Patience(seconds=5), **at.credentials) as client,
    ):
        samples = client.sample(list(images), turns, wanted.n, **wanted.options())
    if as_json:
        for candidate in samples.candidates:
            print(json.dumps(record(candidate, samples), ensure_ascii=False))
    else:
        draw(table(samples), Console())


def record(candidate: Candidate, samples: Samples) -> dict[str, Any]:
    """A candidate for JSON."""
    behaviour = candidate.behaviour_logprobs
    return {
        "index": candidate.index,
        "text": candidate.text,
        "token_ids": candidate.token_ids.tolist(),
        "logprobs": candidate.logprobs.tolist(),
        "behaviour_logprobs": None if behaviour is None else behaviour.tolist(),
        "finish_reason": candidate.finish_reason,
        "seed": candidate.seed,
        "policy_version": candidate.policy_version,
        "engine": samples.engine,
        "request_id": samples.request_id,
    }


def table(samples: Samples) -> Table:
    """All candidates; the log-probability is the policy's mean over tokens."""
    title = f"{samples.engine}, {samples.seconds:.2f} s"
    # Few frames and the text last: it gets what the numbers leave of 80 columns.
    found = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for name in ("#", "tokens", "log-prob", "seed", "policy", "finish", "text"):
        left = name in ("text", "finish")
        found.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=name != "text")
    for c in samples.candidates:
        mean = f"{float(np.mean(c.logprobs)):.3f}" if len(c.logprobs) else "-"
        finish, version = c.finish_reason, f"v{c.policy_version}"
        found.add_row(str(c.index), str(len(c.token_ids)), mean, str(c.seed), version, finish, Text(c.text))
    return found
