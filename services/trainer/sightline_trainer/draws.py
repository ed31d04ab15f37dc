"""Draws an iteration's prompts, and rows of a released set in addition or instead."""

from __future__ import annotations

from collections.abc import Iterator

from sightline_trainer.pools.pool import Pool
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.released import Released


class Draws:
    """The draws of each iteration; always the same.

    Args:
        released: rows of data.pairs, if the recipe names a set.
    """

    def __init__(self, recipe: Recipe, train: Pool, released: Pool | None) -> None:
        self.recipe = recipe
        self.train = train
        self.pairs = released

    def _offline(self, iteration: int) -> int:
        """How many of an iteration's prompts are rows of the released set."""
        data = self.recipe.data
        if self.pairs is None:
            return 0
        share = 1.0 if iteration <= data.mix.start else data.mix.offline
        return round(share * data.prompts_per_iteration)

    def asked(self, iteration: int) -> list[Prompt]:
        """Prompts whose candidates are sampled."""
        count = self.recipe.data.prompts_per_iteration - self._offline(iteration)
        walked = iteration - (self.recipe.data.mix.start if self.pairs is not None else 0)
        return self.train.draw(count, iteration=walked, seed=self.recipe.seed) if count else []

    def released(self, iteration: int) -> list[Released]:
        """Rows of the released set."""
        count = self._offline(iteration)
        if not count or self.pairs is None:
            return []
        data, walked = self.recipe.data, iteration
        if iteration > data.mix.start > 0:  # shorter steps, starting after what the first iterations drew
            walked = -(-data.mix.start * data.prompts_per_iteration // count) + iteration - data.mix.start
        drawn = self.pairs.draw(count, iteration=walked, seed=self.recipe.seed)
        return [row for row in drawn if isinstance(row, Released)]

    def all(self) -> Iterator[Prompt]:
        """Everything that all iterations draw."""
        for iteration in range(1, self.recipe.iterations + 1):
            yield from self.asked(iteration)
            yield from self.released(iteration)

    def named(self, iteration: int) -> dict[str, Prompt]:
        """An iteration's prompts and rows by id."""
        return {prompt.id: prompt for prompt in [*self.asked(iteration), *self.released(iteration)]}
