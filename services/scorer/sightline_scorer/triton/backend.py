"""Asks Triton for embeddings, and turns its errors into ours.

The number of calls in flight to a tower is bounded here (`triton.max_queue`); over it callers get RESOURCE_EXHAUSTED. A
Triton with a queue limit of its own says UNAVAILABLE both when that is reached and when it is gone: the first is load
too, and only the second may be tried again at once by gRPC's own retries.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sightline_chassis.errors import DeadlineExceeded, InternalError, Overloaded, SightlineError, Unavailable
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from sightline_scorer.metrics import NONFINITE
from sightline_scorer.settings import TritonSettings
from sightline_scorer.triton.card import PARAMETER, ModelCard
from sightline_scorer.triton.connection import connect, server_ready
from sightline_scorer.triton.repository import triton_name

Embeddings = npt.NDArray[np.float32]
_PIECES_AT_ONCE = 4  # of one request with more texts than a batch, so that it leaves places for others


class TritonServer(Protocol):
    """Where Triton runs: `EmbeddedTriton` or `RemoteTriton`."""

    def address(self) -> str:
        """host:port of the gRPC endpoint; raises Unavailable while there is none."""

    async def start(self) -> None:
        """Returns when Triton and its models are ready."""

    async def stop(self) -> None:
        """Let it go."""

    async def restart(self, why: str) -> None:
        """Do what can be done about a Triton that hangs."""


class RemoteTriton:
    """A Triton that somebody else runs, for example in a cluster."""

    def __init__(self, settings: TritonSettings) -> None:
        self._settings = settings

    def address(self) -> str:
        """As configured."""
        return self._settings.address

    async def start(self) -> None:
        """Wait until it is ready. Raises Unavailable after triton.start_timeout_seconds."""
        deadline = asyncio.get_running_loop().time() + self._settings.start_timeout_seconds
        while not await server_ready(self._settings.address):
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"Triton at {self._settings.address} was not ready within "
                    f"{self._settings.start_timeout_seconds:g} s: see its log, and triton.address"
                )
            await asyncio.sleep(0.5)

    async def stop(self) -> None:
        """Nothing to do: it is not ours."""

    async def restart(self, why: str) -> None:
        """Nothing to do: its own probes restart it."""


class TritonBackend:
    """Both towers of every model, over one connection.

    Args:
        server: where Triton runs.
        settings: batch sizes and time limits.
        default_model: the model whose towers are called `clip_image` and `clip_text`.
    """

    def __init__(self, server: TritonServer, settings: TritonSettings, default_model: str) -> None:
        self._server = server
        self._settings = settings
        self._default_model = default_model
        self._client: InferenceServerClient | None = None
        self._client_address = ""
        self._in_flight: Counter[str] = Counter()

    async def close(self) -> None:
        """Close the connection; the server itself is not ours to stop."""
        client, self._client, self._client_address = self._client, None, ""
        if client is not None:
            await client.close()

    async def card(self, model: str) -> ModelCard:
        """The facts of a model, from the configuration of the running Triton.

        Raises Unavailable, and ValueError where Triton's models were not built by this package or do not fit.
        """
        cards = []
        for tower in ("image", "text"):
            name = triton_name(tower, model, self._default_model)
            try:
                config = await self._connected().get_model_config(name, client_timeout=10)
            except InferenceServerException as error:
                raise ValueError(f"Triton at {self._server.address()} does not serve {name}: {error}") from error
            text = config.config.parameters[PARAMETER].string_value
            if not text:
                raise ValueError(f"Triton's model {name} was not made by sightline_scorer.triton.repository")
            cards.append(ModelCard.from_json(text))
        if cards[0].weights_digest != cards[1].weights_digest:
            raise ValueError(f"Triton's two towers of {model} come from different weights: build the repository again")
        return cards[0]

    async def embed_image(self, model: str, pixels: npt.NDArray[np.uint8], seconds: float | None = None) -> Embeddings:
        """Embedding [D] of one image's pixels [3, H, W]. `seconds` is the time left; raises a SightlineError."""
        name = triton_name("image", model, self._default_model)
        rows = await self._infer(name, "pixels", "UINT8", pixels[np.newaxis], seconds)
        first: Embeddings = rows[0]
        return first

    async def embed_texts(
        self, model: str, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], seconds: float | None = None
    ) -> Embeddings:
        """Embeddings [N, D] of token rows [N, L]; rows of like length share a batch where there are several."""
        name = triton_name("text", model, self._default_model)
        most = self._settings.text_batch
        if len(ids) <= most:
            return await self._infer(name, "token_ids", "INT32", ids, seconds)
        order = np.argsort(lengths, kind="stable")
        places = asyncio.Semaphore(_PIECES_AT_ONCE)

        async def piece(rows: npt.NDArray[np.int32]) -> Embeddings:
            async with places:
                return await self._infer(name, "token_ids", "INT32", rows, seconds)

        pieces = [piece(ids[order[start : start + most]]) for start in range(0, len(ids), most)]
        found = np.concatenate(await all_or_none(*pieces))
        result = np.empty_like(found)
        result[order] = found
        return result

    async def _infer(
        self, name: str, entry: str, data_type: str, values: npt.NDArray[Any], left: float | None
    ) -> Embeddings:
        limit = self._settings.request_timeout_seconds
        seconds = limit if left is None else min(limit, left)
        if seconds <= 0:
            raise DeadlineExceeded("the deadline passed before the model was asked")
        if self._in_flight[name] >= self._settings.max_queue:
            raise _overloaded(name)
        tensor = InferInput(name=entry, shape=list(values.shape), datatype=data_type)
        tensor.set_data_from_numpy(values)
        self._in_flight[name] += 1
        try:
            answer = await self._connected().infer(name, [tensor], client_timeout=seconds)
        except InferenceServerException as error:
            raise _typed(error, name, seconds) from error
        finally:
            self._in_flight[name] -= 1
        rows: Embeddings | None = answer.as_numpy("embedding")
        if rows is None or len(rows) != len(values) or not _unit_length(rows):
            NONFINITE.inc()
            raise InternalError(
                f"the model backend's {name} gave an embedding that is not finite or not of length 1; no score is made "
                "of it",
                reason="NONFINITE_EMBEDDING",
            )
        return rows

    def _connected(self) -> InferenceServerClient:
        address = self._server.address()
        if self._client is None or address != self._client_address:
            if self._client is not None:
                asyncio.ensure_future(self._client.close())  # noqa: RUF006  it has nothing left to wait for
            self._client, self._client_address = connect(address), address
        return self._client


async def all_or_none(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of works done at the same time; when one fails, its error, and the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _unit_length(rows: Embeddings) -> bool:
    """Whether every row has length 1 within a percent; NaN and Inf have not."""
    return bool((np.abs(np.einsum("nd,nd->n", rows, rows) - 1) < 0.02).all())


def _overloaded(name: str) -> Overloaded:
    return Overloaded(
        f"the model backend's queue for {name} is full; try again", reason="BACKEND_QUEUE_FULL", retry_after=1
    )


def _typed(error: InferenceServerException, name: str, seconds: float) -> SightlineError:
    message, status = str(error.message()), str(error.status())
    if "maximum queue size" in message:
        return _overloaded(name)
    if "DEADLINE_EXCEEDED" in status or "timeout expired" in message:
        return DeadlineExceeded(
            f"the model backend's {name} did not answer within {seconds:.3g} s: allow more time, or send less at once",
            reason="BACKEND_TIMEOUT",
        )
    if "UNAVAILABLE" in status or "is not healthy" in message or "CANCELLED" in status:
        return Unavailable(
            f"the model backend (Triton) was lost while it worked on {name} ({message}); try again",
            reason="BACKEND_LOST",
            retry_after=5,
        )
    return InternalError(f"the model backend's {name} failed: {message}", reason="BACKEND_FAILED")
