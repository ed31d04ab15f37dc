"""The in-process engine without the service: requests in, candidates out, on its own event loop."""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sightline.errors import PreconditionFailed
from sightline.sampler.params import SamplingParams
from sightline.sampler.turns import Asked, Images, conversation
from sightline.sampler.types import Candidate, Summary
from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import Conversation, EncodedImage, SampleWork
from sightline_sampler.engines.local.transformers import TransformersEngine
from sightline_sampler.settings import EngineSettings, SamplerLimits

T = TypeVar("T")


def asked(images: Images, prompt: Asked) -> Conversation:
    """A request as the service reads it; images are encoded."""
    pictures, turns = conversation(images, prompt)
    encoded = [EncodedImage(image, hashlib.sha256(image).hexdigest()) for image in pictures if isinstance(image, bytes)]
    return Conversation(turns, tuple(encoded))


class Base:
    """A lease on the base model."""

    def bind(self) -> int:
        return 0


class RunningEngine:
    """A started engine; `steps` holds the rows of each of its steps."""

    def __init__(self, model: Path, **engine: Any) -> None:
        self.steps: list[int] = []
        settings = EngineSettings.model_validate({"model": str(model), "threads": 1, **engine})
        self.engine = TransformersEngine(settings, SamplerLimits(), on_step=self.steps.append)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.run(self.engine.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    async def asked(self, images: Images, prompt: Asked, n: int, **options: Any) -> list[Candidate]:
        """All candidates in index order; options are those of `SamplingParams`, and `seed` or `seeds`."""
        found = [event async for event in self.engine.sample(self.work(images, prompt, n, **options))]
        assert isinstance(found.pop(), Summary)
        candidates = [event for event in found if isinstance(event, Candidate)]
        assert sorted(c.index for c in candidates) == list(range(n))
        return sorted(candidates, key=lambda c: c.index)

    def sample(self, images: Images, prompt: Asked, n: int, **options: Any) -> list[Candidate]:
        return self.run(self.asked(images, prompt, n, **options))

    @staticmethod
    def work(images: Images, prompt: Asked, n: int, **options: Any) -> SampleWork:
        derived = seeds.derive(options.pop("seed", 0), n)
        chosen: Sequence[int] = options.pop("seeds", derived)
        options = {"max_tokens": 20, **options}
        return SampleWork("test", asked(images, prompt), chosen, SamplingParams(**options), Base())

    def close(self) -> None:
        self.run(self.engine.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@contextlib.contextmanager
def running_engine(model: Path, **engine: Any) -> Iterator[RunningEngine]:
    at = RunningEngine(model, **engine)
    try:
        yield at
    finally:
        at.close()


def ids(candidate: Candidate) -> list[int]:
    return [int(token) for token in candidate.token_ids]


def refusal(model: object, **options: str) -> PreconditionFailed:
    """Why the engine does not start on a model, in one line."""
    settings = EngineSettings.model_validate({"model": str(model), "threads": 1, **options})

    async def start() -> None:
        engine = TransformersEngine(settings, SamplerLimits())
        try:
            await engine.start()
        finally:
            await engine.stop()

    with pytest.raises(PreconditionFailed) as caught:
        asyncio.run(start())
    assert "\n" not in str(caught.value)
    return caught.value
