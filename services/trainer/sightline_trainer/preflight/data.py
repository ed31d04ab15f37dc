"""Data: a sample of the rows that a run would draw, with their images decoded and their texts looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sightline.errors import InvalidInput, PreconditionFailed, SightlineError
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

from sightline_trainer.pools import hold_out
from sightline_trainer.pools.pool import Pool
from sightline_trainer.preflight.finding import Finding, found_by
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt

SAMPLED = 32
"""Rows of each dataset that are looked at."""
TOLERATED = 0.05
"""Most share of unreadable images that a check lets pass, with a warning: a run drops such prompts, and goes on."""


@dataclass
class Sample:
    """What was seen of a dataset.

    Attributes:
        rows: the prompts looked at.
        readable: those of them whose image can be decoded.
        image_bytes: mean size of their files.
    """

    rows: Sequence[Prompt]
    readable: list[Prompt] = field(default_factory=list)
    image_bytes: float = 0.0


def sample(rows: Sequence[Prompt]) -> tuple[Sample, list[tuple[Prompt, InvalidInput]]]:
    """Read the pictures of some prompts; also what could not be read, and why."""
    seen, damaged, sizes = Sample(rows), list[tuple[Prompt, InvalidInput]](), list[int]()
    for prompt in rows:
        try:
            content = prompt.image.read_bytes()
            decode(content, ImageLimits())
        except OSError as error:
            told = InvalidInput(f"{prompt.image}: {error.strerror}", reason="IMAGE_FILE_UNREADABLE")
            damaged.append((prompt, told))
        except InvalidInput as error:
            damaged.append((prompt, InvalidInput(f"{prompt.image}: {error.message}", reason=error.reason)))
        else:
            seen.readable.append(prompt)
            sizes.append(len(content))
    seen.image_bytes = sum(sizes) / max(1, len(sizes))
    return seen, damaged


def spread(pool: Pool, count: int = SAMPLED) -> list[Prompt]:
    """Prompts from all over a pool, the first one among them."""
    step = max(1, len(pool) // count)
    return pool.rows(range(0, len(pool), step)[:count])


def train(rows: Sequence[Prompt], *, strict: bool) -> tuple[Sample, list[Finding]]:
    """IMAGES_UNREADABLE, PROMPTS_EMPTY. A run drops what it can't read, so only a check minds some of it."""
    seen, damaged = sample(rows)
    found = [*_texts("data.train", rows)]
    if damaged:
        most = TOLERATED * len(rows) if strict else len(rows) - 1
        found.append(_damaged("data.train", rows, damaged, "error" if len(damaged) > most else "warning"))
    return seen, found


def test(rows: Sequence[Prompt]) -> tuple[Sample, list[Finding]]:
    """IMAGES_UNREADABLE, PROMPTS_EMPTY. Evaluation ends a run at one picture that it can't read."""
    seen, damaged = sample(rows)
    found = [*_texts("data.test", rows)]
    return seen, [*found, *([_damaged("data.test", rows, damaged, "error")] if damaged else [])]


def held_out(recipe: Recipe, pool: Pool, test: Sequence[Prompt]) -> Iterator[Finding]:
    """TEST_LEAKS: of what all iterations would draw, pictures are in the test set."""
    count, seed = recipe.data.prompts_per_iteration, recipe.seed
    drawn = (
        prompt
        for iteration in range(1, recipe.iterations + 1)
        for prompt in pool.draw(count, iteration=iteration, seed=seed)
    )
    try:
        hold_out(drawn, test)
    except PreconditionFailed as error:
        yield found_by(error, fix="take these pictures out of data.train, or name another data.test")
    except SightlineError as error:
        yield found_by(error)


def _texts(key: str, rows: Sequence[Prompt]) -> Iterator[Finding]:
    faulty = [prompt for prompt in rows if not prompt.prompt.strip()]
    if faulty:
        yield Finding(
            "PROMPTS_EMPTY",
            f"{len(faulty)} of {len(rows)} sampled rows of {key} ask nothing, such as {faulty[0].id}",
            "give each row a prompt, or leave these out",
        )


def _damaged(
    key: str, rows: Sequence[Prompt], damaged: Sequence[tuple[Prompt, InvalidInput]], severity: str
) -> Finding:
    prompt, error = damaged[0]
    return Finding(
        "IMAGES_UNREADABLE",
        f"{len(damaged)} of {len(rows)} sampled images of {key} can't be read, such as that of {prompt.id}: "
        f"{error.message}",
        "put them there (?images=DIRECTORY names where they lie), or leave these rows out",
        "error" if severity == "error" else "warning",
    )
