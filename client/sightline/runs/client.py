"""The trainer's synchronous client: start, watch and stop alignment runs from anywhere. Light."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sightline.base import SyncClient
from sightline.errors import SightlineError, typed_errors
from sightline.runs.base import BaseRunClient
from sightline.runs.types import Run, RunComparison, RunEvent, RunPicture, RunPolicy


class RunClient(BaseRunClient, SyncClient):
    """Talks to a trainer. Thread-safe; close it, or use it as a context manager. See `BaseClient`.

    Every method raises `sightline.SightlineError` subclasses, named for what went wrong; `timeout` is the seconds for a
    call, retries included, if not the client's.
    """

    def start(
        self,
        *,
        recipe_name: str | None = None,
        recipe_text: str | None = None,
        overrides: Sequence[str] = (),
        request_id: str | None = None,
        run_id: str = "",
        timeout: float | None = None,
    ) -> Run:
        """Start a run from a recipe that the service knows by name, or from a recipe's text. The same `request_id`
        twice is one run; without one, a new run starts."""
        return self._run(self._start(recipe_name, recipe_text, overrides, request_id, run_id, timeout))

    def get(self, run_id: str, *, timeout: float | None = None) -> Run:
        """Describe a run."""
        return self._run(self._get(run_id, timeout))

    def list(self, *, timeout: float | None = None) -> Iterator[Run]:
        """All runs, newest first, page by page."""
        token, more = "", True
        while more:
            runs, token = self._run(self._page(token, timeout))
            yield from runs
            more = bool(token)

    def watch(self, run_id: str, *, from_event: int = 0) -> Iterator[RunEvent]:
        """A run's events from a given one on, until the run ends."""
        watching = self._watched(run_id, from_event)
        while True:
            call = watching.call()
            try:
                with typed_errors():
                    for message in call:
                        yield watching.event(message)
                    return
            except SightlineError as error:
                self._budget.closed.wait(watching.wait_after(error))
            finally:
                call.cancel()  # leaving the iteration ends the call

    def stop(self, run_id: str, *, now: bool = False, timeout: float | None = None) -> Run:
        """Stop a run after the current stage, or now."""
        return self._run(self._stop(run_id, now, timeout))

    def resume(self, run_id: str, *, timeout: float | None = None) -> Run:
        """Resume a stopped or failed run from its last finished stage.

        Raises:
            PreconditionFailed: all its iterations are done.
        """
        return self._run(self._resume(run_id, timeout))

    def pictures(
        self, run_id: str, iteration: int = 0, *, limit: int = 0, timeout: float | None = None
    ) -> Sequence[RunPicture]:
        """Held-out pictures with the texts of the base model and of an iteration's policy; iteration 0 means the last
        measured one, limit 0 the service's default. Empty before the first iteration is measured."""
        return self._run(self._pictures(run_id, iteration, limit, timeout))

    def policies(self, run_id: str, *, timeout: float | None = None) -> Sequence[RunPolicy]:
        """The policies of a run, oldest first."""
        return self._run(self._policies(run_id, timeout))

    def compare(self, run_id: str, other_run_id: str, *, limit: int = 0, timeout: float | None = None) -> RunComparison:
        """Compare the recipes of two runs, and their last policies on the same pictures."""
        return self._run(self._compare(run_id, other_run_id, limit, timeout))
