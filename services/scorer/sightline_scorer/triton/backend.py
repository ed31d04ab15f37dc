"""Asks Triton for embeddings, and turns its errors into ours.

The towers (tower.py) bound the number of batches in flight, not Triton's queue: Triton returns UNAVAILABLE both when
its queue is full and when it is down, and a call that is cancelled here frees its place at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sightline.errors import DeadlineExceeded, InternalError, Overloaded, SightlineError, Unavailable
from sightline_chassis import traces
from sightline_chassis.metrics import backend_call
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from sightline_scorer.metrics import TRITON_CALLS, backend_label
from sightline_scorer.settings import TritonSettings
from sightline_scorer.triton.card import PARAMETER, ModelCard
from sightline_scorer.triton.connection import connect, is_loopback
from sightline_scorer.triton.regions import Region, is_lost, open_region
from sightline_scorer.triton.servers import TritonServer

Embeddings = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
TOWER_DIED = "BACKEND_TOWER_DIED"

logger = logging.getLogger(__name__)
# The messages of PyTorch, CUDA, Python and C++.
_NO_MEMORY = re.compile(r"out of memory|(?:can't|cannot) allocate memory|MemoryError|bad_alloc", re.IGNORECASE)


class TritonBackend:
    """Towers by their Triton names, over one connection.

    Args:
        server: the Triton server.
        settings: batch sizes and time limits.
    """

    def __init__(self, server: TritonServer, settings: TritonSettings) -> None:
        self._server = server
        self._settings = settings
        self._label = backend_label(settings)
        self._client: InferenceServerClient | None = None
        self._client_address = ""
        self._leaving: set[asyncio.Task[None]] = set()
        self._regions: dict[str, Region | None] = {}
        self._successes: dict[str, float] = {}

    def all_worked_since(self, names: Iterable[str]) -> float:
        """time.monotonic() since which each of these towers has had a successful inference; -inf if one never had."""
        return min((self._successes.get(name, float("-inf")) for name in names), default=float("-inf"))

    async def close(self) -> None:
        """Close the connection; the server itself keeps running."""
        client, self._client, self._client_address = self._client, None, ""
        self._regions.clear()
        if client is not None:
            await client.close()
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def card(self, *names: str) -> ModelCard:
        """The facts of a model, from the configuration of its towers in the running Triton.

        Raises Unavailable, or ValueError if Triton's models were not built by this package or do not fit.
        """
        cards = []
        for name in names:
            try:
                config = await self._connected().get_model_config(name, client_timeout=10)
            except InferenceServerException as error:
                raise ValueError(f"Triton at {self._server.address()} does not serve {name}: {error}") from error
            facts = config.config.parameters[PARAMETER].string_value
            if not facts:
                raise ValueError(
                    f"Triton's model {name} is not of our repository: build it with "
                    "`python -m sightline_scorer.triton.repository`"
                )
            cards.append(ModelCard.from_json(facts))
        if len({card.weights_digest for card in cards}) > 1:
            raise ValueError(f"Triton's {' and '.join(names)} come from different weights: build the repository again")
        return cards[0]

    async def load(self, name: str) -> None:
        """Make Triton load a model of its repository; returns when it is warm. Raises ValueError that says why not."""
        try:
            await self._connected().load_model(name, client_timeout=self._settings.start_timeout_seconds)
        except InferenceServerException as error:
            raise ValueError(f"Triton could not load {name}: {error.message()}") from error

    async def unload(self, name: str) -> None:
        """Make Triton unload a model after its requests are done."""
        try:
            await self._connected().unload_model(name, client_timeout=10)
            region = self._regions.pop(name, None)
            if region is not None:
                await self._connected().unregister_system_shared_memory(region.name, client_timeout=10)
        except InferenceServerException as error:
            raise ValueError(f"Triton could not unload {name}: {error.message()}") from error

    async def embed_images(self, name: str, pixels: Sequence[Pixels]) -> Embeddings:
        """Embeddings [B, D] of images' pixels, each [3, H, W]. Raises a SightlineError."""
        client = self._connected()
        region = await self._region(client, name, pixels[0].nbytes)
        slot = None if region is None else region.take()
        if region is None or slot is None:
            return await self._infer(client, name, [_tensor("pixels", "UINT8", np.stack(pixels))], "grpc")
        try:
            return await self._infer(client, name, [region.fill(slot, "pixels", pixels)], "shared_memory")
        except InternalError as error:
            if not is_lost(error):
                raise
            self._regions.pop(name, None)
            return await self._infer(client, name, [_tensor("pixels", "UINT8", np.stack(pixels))], "grpc")
        finally:
            region.give_back(slot)

    async def embed_texts(self, name: str, rows: Sequence[Sequence[int]]) -> Embeddings:
        """Embeddings [B, D] of token rows, padded here to the longest. Raises a SightlineError."""
        return await self._infer(self._connected(), name, [_ids(rows)], "grpc")

    async def mark_pairs(self, name: str, pairs: Sequence[tuple[Pixels, Sequence[int]]]) -> Embeddings:
        """Rewards [B, 1] of pictures' pixels [3, H, W] with token rows. Raises a SightlineError."""
        pixels = _tensor("pixels", "UINT8", np.stack([picture for picture, _ in pairs]))
        return await self._infer(self._connected(), name, [pixels, _ids([row for _, row in pairs])], "grpc", "reward")

    async def _region(self, client: InferenceServerClient, name: str, image_bytes: int) -> Region | None:
        settings = self._settings
        if name not in self._regions:
            near = settings.mode != "worker" and is_loopback(self._client_address)  # the worker maps none
            wanted = settings.shared_memory == "on" or (settings.shared_memory == "auto" and near)
            self._regions[name] = None  # calls meanwhile use gRPC
            if wanted:
                slots = settings.most_in_flight + 1
                try:
                    region = await open_region(client, slots, settings.image_batch * image_bytes)
                except BaseException:  # its caller left: the next call opens it
                    if client is self._client:
                        self._regions.pop(name, None)
                    raise
                if client is self._client:
                    self._regions[name] = region
        return self._regions.get(name)

    async def _infer(
        self,
        client: InferenceServerClient,
        name: str,
        tensors: list[InferInput],
        transport: str,
        output: str = "embedding",
    ) -> Embeddings:
        seconds = self._settings.request_timeout_seconds
        TRITON_CALLS.labels(transport).inc()
        try:
            with backend_call(self._label):
                answer = await client.infer(name, tensors, client_timeout=seconds, headers=traces.headers())
        except InferenceServerException as error:
            typed = _typed(error, name, seconds)
            if isinstance(typed, DeadlineExceeded):
                self._let_go(client)
            raise typed from error
        rows: Embeddings | None = answer.as_numpy(output)
        if rows is None or len(rows) != tensors[0].shape()[0]:
            # Seen with a Triton that was starved for most of a minute; the same request is answered later.
            raise Unavailable(f"the model backend's {name} answered without {output}s", reason="BACKEND_FAILED")
        self._successes[name] = time.monotonic()
        return rows

    def _connected(self) -> InferenceServerClient:
        address = self._server.address()
        if self._client is None or address != self._client_address:
            if self._client is not None:
                asyncio.ensure_future(self._client.close())  # noqa: RUF006  it has nothing left to wait for
            self._client, self._client_address = connect(address), address
            self._regions.clear()
        return self._client

    def _let_go(self, client: InferenceServerClient) -> None:
        """Have the next call connect again: on a network that broke silently, this one never answers.

        Calls that are running on it keep it until their time is over.
        """
        if client is self._client:
            self._client = None
            self._regions.clear()
            task = asyncio.ensure_future(_close_later(client, self._settings.request_timeout_seconds + 1))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)


async def _close_later(client: InferenceServerClient, seconds: float) -> None:
    try:
        await asyncio.sleep(seconds)
    finally:
        await client.close()


def _tensor(entry: str, data_type: str, values: npt.NDArray[Any]) -> InferInput:
    tensor: InferInput = InferInput(name=entry, shape=list(values.shape), datatype=data_type)
    tensor.set_data_from_numpy(values)
    return tensor


def _ids(rows: Sequence[Sequence[int]]) -> InferInput:
    """Token rows, padded to the longest."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return _tensor("token_ids", "INT32", ids)


def _typed(error: InferenceServerException, name: str, seconds: float) -> SightlineError:
    message, status = str(error.message()), str(error.status())
    if "maximum queue size" in message:
        return Overloaded(
            f"the model backend's queue for {name} is full; try again", reason="BACKEND_QUEUE_FULL", retry_after=1
        )
    if "DEADLINE_EXCEEDED" in status or "timeout expired" in message:
        return DeadlineExceeded(
            f"the model backend's {name} did not answer within {seconds:.3g} s: allow more time, or send less at once",
            reason="BACKEND_TIMEOUT",
        )
    if "is not healthy" in message:
        return Unavailable(
            f"the process of {name} in the model backend (Triton) has died ({message}); try again",
            reason=TOWER_DIED,
            retry_after=5,
        )
    if "UNAVAILABLE" in status or "CANCELLED" in status:
        return Unavailable(
            f"the model backend (Triton) was lost while it worked on {name} ({message}); try again",
            reason="BACKEND_LOST",
            retry_after=5,
        )
    if _NO_MEMORY.search(message):
        logger.error("a tower is out of memory", extra={"tower": name, "why": message})
        return Overloaded(
            f"the model backend's {name} is out of memory; try again, or use smaller batches (triton.image_batch, "
            "triton.text_batch)",
            reason="BACKEND_OUT_OF_MEMORY",
            retry_after=5,
        )
    logger.error("a tower failed", extra={"tower": name, "why": message})
    text = message.partition("\n\nAt:")[0]  # the traceback goes to the log
    return InternalError(f"the model backend's {name} failed: {text}", reason="BACKEND_FAILED")
