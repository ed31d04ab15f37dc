"""The runs of a trainer service, by its API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from sightline.errors import PreconditionFailed, SightlineError, Unsupported
from sightline.runs import AsyncRunClient, Run, RunClient, RunComparison, RunEvent, RunPicture, RunPolicy
from sightline_chassis.shipped import shipped
from sightline_trainer.run_queue import recipes_in

from sightline_cli.console import told
from sightline_cli.console.source import Row
from sightline_cli.watch import event_of

_QUIET_SECONDS = 1.0


class RunsThere:
    """See `Runs`. Starts shipped recipes by their text, since the service has its own recipes.

    Args:
        address: the trainer's.
        credentials: arguments of its client.
    """

    files = False

    def __init__(self, address: str, credentials: Mapping[str, Any]) -> None:
        self.place = address
        self._credentials = credentials

    def listed(self) -> list[Row]:
        """See `Runs`."""
        with self._client() as client:
            rows = [_row(run) for run in client.list()]
        return sorted(rows, key=lambda row: -float(str(row["created"])))

    def start(self, name: str, recipe: str, overrides: list[str]) -> None:
        """See `Runs`."""
        text = recipes_in(shipped("recipes"))[recipe].read_text(encoding="utf-8")
        with self._client() as client:
            client.start(recipe_text=text, overrides=overrides, run_id=name)

    def stop(self, run: str) -> None:
        """See `Runs`."""
        with self._client() as client:
            client.stop(run)

    def resume(self, run: str) -> None:
        """See `Runs`."""
        with self._client() as client:
            client.resume(run)

    def row(self, run: str) -> Row:
        """See `Runs`."""
        with self._client() as client:
            return _row(client.get(run))

    async def about(self, run: str) -> dict[str, Any]:
        """See `Runs`; the numbers come from its events."""
        row = await asyncio.to_thread(self.row, run)
        policies = await asyncio.to_thread(self._policies, run)
        seen = []
        async with contextlib.aclosing(self.news(run)) as news:
            async for event in news:
                if event is None:
                    break  # no more events yet
                seen.append(event)
        return {"run": row, **told.about_events(seen, str(row["state"]), str(row["error"]), policies)}

    def gallery(self, run: str, iteration: int) -> Sequence[RunPicture]:
        """See `Runs`."""
        with self._client() as client, _newer("pictures"):
            return client.pictures(run, iteration)

    def compared(self, one: str, other: str) -> RunComparison:
        """See `Runs`."""
        with self._client() as client, _newer("comparisons"):
            return client.compare(one, other)

    async def news(self, run: str) -> AsyncGenerator[Row | None, None]:
        """See `Runs`. The call ends when the client disconnects."""
        async with (
            AsyncRunClient(self.place, **self._credentials) as client,
            contextlib.aclosing(cast("AsyncGenerator[RunEvent, None]", client.watch(run))) as watched,
        ):
            due = asyncio.ensure_future(anext(watched, None))
            try:
                while True:
                    done, _ = await asyncio.wait([due], timeout=_QUIET_SECONDS)
                    if not done:
                        yield None
                        continue
                    event = due.result()
                    if event is None:
                        return
                    yield {**asdict(event_of(event)), "time": event.time.timestamp()}
                    due = asyncio.ensure_future(anext(watched, None))
            finally:
                due.cancel()
                with contextlib.suppress(asyncio.CancelledError, SightlineError):
                    await due

    def _policies(self, run: str) -> Sequence[RunPolicy]:
        with self._client() as client:
            try:
                return client.policies(run)
            except Unsupported:  # a trainer of 0.1.0; the message for its pictures says so
                return ()

    def _client(self) -> RunClient:
        return RunClient(self.place, **self._credentials)


@contextlib.contextmanager
def _newer(what: str) -> Iterator[None]:
    """Raises PreconditionFailed if the trainer's release lacks these calls."""
    try:
        yield
    except Unsupported as error:
        raise PreconditionFailed(
            f"the trainer is older than this console and lacks {what}: run `sightline ui DIRECTORY` on its machine",
            reason="TRAINER_TOO_OLD",
        ) from error


def _row(run: Run) -> Row:
    return {
        "id": run.id,
        "state": run.state,
        "recipe": run.recipe,
        "iteration": run.iteration,
        "iterations": run.iterations,
        "created": run.create_time.timestamp(),
        "updated": run.update_time.timestamp(),
        "error": run.error,
    }
