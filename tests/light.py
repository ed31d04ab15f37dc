"""Light: a script that serves or scores in a process that cannot import the heavy packages.

python light.py scorer ADDRESS_OF_TRITON SOURCE PICTURE TEXT...     prints cosines
python light.py sampler SETTINGS.json PICTURE PROMPT                prints a candidate's text and what was loaded
"""

import asyncio
import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any

HEAVY = ("torch", "torchvision", "open_clip", "transformers", "peft", "timm", "datasets", "trl", "accelerate")


class Blocker(importlib.abc.MetaPathFinder):
    """Refuses the heavy packages, as if they were not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


async def score(address: str, source: str, picture: str, *texts: str) -> list[float]:
    from sightline.scorer import AsyncScorerClient
    from sightline_chassis.process import serving
    from sightline_chassis.settings import load_settings
    from sightline_scorer.service import ScorerService
    from sightline_scorer.settings import ScorerSettings

    overrides = ["triton.mode=remote", f"triton.address={address}", f"models.tiny.source={source}", "server.port=0"]
    settings = load_settings(ScorerSettings, service="scorer", overrides=[*overrides, "log.level=error"])
    async with serving(ScorerService(settings), settings) as at, AsyncScorerClient(at.grpc) as client:
        return (await client.score(Path(picture), list(texts))).cosine.tolist()


async def sample(file: str, picture: str, prompt: str) -> str:
    from sightline.sampler import AsyncSamplerClient
    from sightline_chassis.process import serving
    from sightline_chassis.settings import load_settings
    from sightline_sampler.service import SamplerService
    from sightline_sampler.settings import SamplerSettings

    settings = load_settings(SamplerSettings, service="sampler", config=Path(file), overrides=["server.port=0"])
    async with serving(SamplerService(settings), settings) as at, AsyncSamplerClient(at.grpc) as client:
        result = await client.sample(Path(picture), prompt, n=1, seeds=[3], max_tokens=8)
    return str(result.candidates[0].text)


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocker())
    what, *arguments = sys.argv[1:]
    told: Any = asyncio.run(score(*arguments) if what == "scorer" else sample(*arguments))
    print(json.dumps({"told": told, "heavy": [name for name in HEAVY if name in sys.modules]}))
