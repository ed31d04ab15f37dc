"""The probe: it asks each tower without a recent inference, and detects a wrong answer."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from sightline.errors import Unavailable
from sightline_scorer.probe import ModelProbe
from sightline_scorer.settings import ProbeSettings, TritonSettings
from sightline_scorer.triton.backend import TOWER_DIED


class Backend:
    """Returns one embedding for every input."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.worked: dict[str, float] = {}
        self.answer = np.eye(4, dtype=np.float32)[0]
        self.dead: set[str] = set()
        self.restarts = 0

    def all_worked_since(self, names: Sequence[str]) -> float:
        return min(self.worked.get(name, float("-inf")) for name in names)

    async def embed_images(self, name: str, _: Any) -> np.ndarray:
        self.calls.append(name)
        if name in self.dead:
            raise Unavailable("it has died", reason=TOWER_DIED)
        self.worked[name] = time.monotonic()
        return self.answer[None]

    embed_texts = embed_images

    async def unload(self, name: str) -> None:
        raise ValueError("a dead one says nothing")

    async def load(self, name: str) -> None:
        self.dead.discard(name)

    async def restarted(self, why: str) -> None:
        self.restarts += 1


class Model:
    """A model with two towers, "i" and "t"."""

    card = SimpleNamespace(image_height=2, image_width=2)
    tokenizer = SimpleNamespace(encode=lambda texts, indices: [SimpleNamespace(ids=[1])])
    info = SimpleNamespace(error="")
    towers = (SimpleNamespace(busy_since=None),) * 2

    def __init__(self, name: str = "m", towers: tuple[str, str] = ("i", "t")) -> None:
        self.name = name
        self.triton_names = towers

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        yield


def probe(backend: Backend, *others: Model) -> ModelProbe:
    """A probe of the default model `m` and others."""
    first = Model()
    server: Any = SimpleNamespace(address=lambda: "127.0.0.1:1", restart=backend.restarted)
    served = {model.name: model for model in (first, *others)}
    models: Any = SimpleNamespace(served=served, find=lambda name: first, members=lambda found: [found])
    as_backend: Any = backend
    return ModelProbe(models, as_backend, server, ProbeSettings(every_seconds=0.05), TritonSettings())


async def until(what: Any) -> None:
    for _ in range(400):
        if what():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("not in time")


def test_a_tower_that_works_anyway_is_not_asked() -> None:
    async def test() -> None:
        backend = Backend()
        one = probe(backend)
        await one.start()
        assert backend.calls == ["i", "t"]
        backend.worked["t"] = time.monotonic() + 100  # requests keep it busy
        await until(lambda: backend.calls.count("i") >= 4)
        assert backend.calls.count("t") == 1
        assert one.trouble() is None
        await one.stop()

    asyncio.run(test())


def test_a_poisoned_tower_is_found_out_and_so_is_its_recovery() -> None:
    async def test() -> None:
        backend = Backend()
        one = probe(backend)
        await one.start()
        good, backend.answer = backend.answer, np.full(4, np.nan, np.float32)
        await until(lambda: "not finite" in (one.trouble() or ""))
        backend.answer = np.eye(4, dtype=np.float32)[1]
        await until(lambda: "differently than at the start" in (one.trouble() or ""))
        backend.answer = good
        await until(lambda: one.trouble() is None)
        await one.stop()

    asyncio.run(test())


def test_a_model_that_dies_takes_no_other_along_and_is_loaded_again_alone() -> None:
    async def test() -> None:
        backend, other = Backend(), Model("other", ("other_i", "other_t"))
        other.info = SimpleNamespace(error="")
        one = probe(backend, other)
        await one.start()
        backend.dead.add("other_t")
        await until(lambda: "died" in other.info.error)
        assert one.trouble() is None, "the default model answers"
        await until(lambda: not other.info.error)
        assert (backend.dead, backend.restarts) == (set(), 0)
        backend.dead.add("i")
        await until(lambda: "died" in (one.trouble() or ""))
        await until(lambda: one.trouble() is None)
        assert backend.restarts == 0
        await one.stop()

    asyncio.run(test())
