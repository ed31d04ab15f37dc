"""The trainer's client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from sightline.base import AsyncClient
from sightline.errors import SightlineError, typed_errors
from sightline.runs.base import BaseRunClient
from sightline.runs.types import Run, RunComparison, RunEvent, RunPicture, RunPolicy


class AsyncRunClient(BaseRunClient, AsyncClient):
    """As `RunClient`, for asyncio. Make it inside the running event loop."""

    async def start(
        self,
        *,
        recipe_name: str | None = None,
        recipe_text: str | None = None,
        overrides: Sequence[str] = (),
        request_id: str | None = None,
        run_id: str = "",
        timeout: float | None = None,  # noqa: ASYNC109  gRPC sends it to the server
    ) -> Run:
        """As `RunClient.start`."""
        return await self._run(self._start(recipe_name, recipe_text, overrides, request_id, run_id, timeout))

    async def get(self, run_id: str, *, timeout: float | None = None) -> Run:  # noqa: ASYNC109
        """As `RunClient.get`."""
        return await self._run(self._get(run_id, timeout))

    async def list(self, *, timeout: float | None = None) -> AsyncIterator[Run]:  # noqa: ASYNC109
        """As `RunClient.list`, for `async for`."""
        token, more = "", True
        while more:
            runs, token = await self._run(self._page(token, timeout))
            for run in runs:
                yield run
            more = bool(token)

    async def watch(self, run_id: str, *, from_event: int = 0) -> AsyncIterator[RunEvent]:
        """As `RunClient.watch`, for `async for`."""
        watching = self._watched(run_id, from_event)
        while True:
            call = watching.call()
            try:
                with typed_errors():
                    async for message in call:
                        yield watching.event(message)
                    return
            except SightlineError as error:
                await asyncio.sleep(watching.wait_after(error))
            finally:
                call.cancel()  # leaving the iteration ends the call

    async def stop(self, run_id: str, *, now: bool = False, timeout: float | None = None) -> Run:  # noqa: ASYNC109
        """As `RunClient.stop`."""
        return await self._run(self._stop(run_id, now, timeout))

    async def resume(self, run_id: str, *, timeout: float | None = None) -> Run:  # noqa: ASYNC109
        """As `RunClient.resume`."""
        return await self._run(self._resume(run_id, timeout))

    async def pictures(
        self,
        run_id: str,
        iteration: int = 0,
        *,
        limit: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Sequence[RunPicture]:
        """As `RunClient.pictures`."""
        return await self._run(self._pictures(run_id, iteration, limit, timeout))

    async def policies(self, run_id: str, *, timeout: float | None = None) -> Sequence[RunPolicy]:  # noqa: ASYNC109
        """As `RunClient.policies`."""
        return await self._run(self._policies(run_id, timeout))

    async def compare(
        self,
        run_id: str,
        other_run_id: str,
        *,
        limit: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> RunComparison:
        """As `RunClient.compare`."""
        return await self._run(self._compare(run_id, other_run_id, limit, timeout))
