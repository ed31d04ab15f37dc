"""The probe: each tower that has not just worked is asked, and a wrong answer is found out."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from sightline_scorer.probe import ModelProbe
from sightline_scorer.settings import ProbeSettings, TritonSettings


class Backend:
    """Gives one embedding to everything."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.worked: dict[str, float] = {}
        self.answer = np.eye(4, dtype=np.float32)[0]

    def all_worked_since(self, names: Sequence[str]) -> float:
        return min(self.worked.get(name, float("-inf")) for name in names)

    async def embed_images(self, name: str, _: Any) -> np.ndarray:
        self.calls.append(name)
        self.worked[name] = time.monotonic()
        return self.answer[None]

    embed_texts = embed_images


class Model:
    """A model of two towers, "i" and "t"."""

    name = "m"
    triton_names = ("i", "t")
    card = SimpleNamespace(image_height=2, image_width=2)
    tokenizer = SimpleNamespace(encode=lambda texts, indices: [SimpleNamespace(ids=[1])])
    image = text = SimpleNamespace(busy_since=None)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        yield


def probe(backend: Backend) -> ModelProbe:
    server: Any = SimpleNamespace(address=lambda: "127.0.0.1:1")
    models: Any = SimpleNamespace(served={"m": Model()})
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
        await until(lambda: "otherwise than at the start" in (one.trouble() or ""))
        backend.answer = good
        await until(lambda: one.trouble() is None)
        await one.stop()

    asyncio.run(test())
