"""`sightline generate`: a dataset of pictures that a text-to-image server makes from texts, the best of several."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console
from sightline.scorer import AsyncScorerClient

from sightline_cli.local import model_or_playground, service

PLAYGROUND = "playground:clip"


def generate(
    wanted: Path, to: Path, *, url: str, model: str, size: str, count: int, seed: int, scorer: str | None,
    source: str | None, pretrained: str | None,
) -> None:  # fmt: skip
    """Make the pictures and report the skipped ones.

    Raises:
        SightlineError: the file can't be read, or a service stays unavailable.
    """
    from sightline_trainer.pools.generated import generate as make
    from sightline_trainer.pools.generated import read_wanted
    from sightline_trainer.pools.picture_endpoint import PictureEndpoint

    lines = read_wanted(wanted)
    settings = [f"models.default.source={model_or_playground(scorer, source, '--scorer', PLAYGROUND)}"]
    settings += [f"models.default.pretrained={pretrained}"] if pretrained is not None else []

    async def work(address: str, credentials: dict[str, object]) -> str:
        maker = PictureEndpoint(url, model, size)
        try:
            async with AsyncScorerClient(address, **credentials) as client:  # type: ignore[arg-type]
                dropped = await make(lines, maker, client, to, count=count, seed=seed)
        finally:
            await maker.close()
        left = f"; {len(dropped)} left out: {dropped.summary}" if dropped else ""
        return f"{len(lines) - len(dropped)} pictures in {to}{left}"

    with service("scorer", scorer, settings) as at:
        Console().print(asyncio.run(work(at.address, dict(at.credentials))), highlight=False, markup=False)
