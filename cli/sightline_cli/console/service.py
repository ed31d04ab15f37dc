"""The runs of a trainer service, by its API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from sightline.runs import RunClient
from sightline_chassis.shipped import shipped
from sightline_trainer.run_queue import recipes_in

from sightline_cli.console.source import Row
from sightline_cli.watch import event_of


class RunsThere:
    """See `Runs`. Starts shipped recipes by their text, since the service has recipes of its own.

    Args:
        address: of the trainer.
        credentials: arguments of its client.
    """

    files = False

    def __init__(self, address: str, credentials: Mapping[str, Any]) -> None:
        self.place = address
        self._credentials = credentials

    def listed(self) -> list[Row]:
        """See `Runs`."""
        with self._client() as client:
            rows = [
                {
                    "id": run.id,
                    "state": run.state,
                    "recipe": run.recipe,
                    "iteration": run.iteration,
                    "iterations": run.iterations,
                    "created": run.create_time.timestamp(),
                    "updated": run.update_time.timestamp(),
                    "error": run.error,
                }
                for run in client.list()
            ]
        return sorted(rows, key=lambda row: -float(str(row["created"])))

    def start(self, name: str, recipe: str, overrides: list[str]) -> None:
        """See `Runs`."""
        text = recipes_in(shipped("recipes"))[recipe].read_text()
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

    def news(self, run: str) -> Iterator[Row | None]:
        """See `Runs`."""
        with self._client() as client:
            for event in client.watch(run):
                yield {**asdict(event_of(event)), "time": event.time.timestamp()}

    def _client(self) -> RunClient:
        return RunClient(self.place, **self._credentials)
