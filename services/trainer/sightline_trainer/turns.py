"""Turns: if sampler and update share a device, the sampler frees its memory while the update trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sightline_trainer.connections import Connections
from sightline_trainer.recipe import Recipe
from sightline_trainer.session import Session, connected


@contextmanager
def sampler_rests(
    recipe: Recipe, connections: Connections | None = None, halt: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Inside, the sampler has released caches and weights, if the recipe says so (`sampling.rests`); afterwards it has
    checked that its weights came back.

    Raises:
        SightlineError: the sampler is unavailable, does not support it, or its weights did not come back.
    """
    if not recipe.sampling.rests:
        yield
        return
    connected(recipe, _rest, policies=None, connections=connections, halt=halt)
    try:
        yield
    finally:
        connected(recipe, wake, policies=None, connections=connections)


async def _rest(session: Session) -> None:
    await session.at_each(lambda one: one.pause("drain", release=True), "rest")


async def wake(session: Session) -> None:
    """Make the sampler restore its memory; nothing happens if it has."""
    await session.at_each(lambda one: one.resume(), "restore its weights")
