"""Data: a sample of the rows that a run would draw, with their images decoded and their texts looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sightline.errors import InvalidInput, PreconditionFailed, SightlineError
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

from sightline_trainer.pools import hold_out
from sightline_trainer.pools.pool import Pool
from sightline_trainer.preflight.finding import Finding, Severity, found_by
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt

Fault: TypeAlias = tuple[str, str]
"""A reason in capitals, and its sentence."""

SAMPLED = 32
"""Rows of each dataset that are looked at."""
TOLERATED = 0.05
"""Most share of unreadable images that a check lets pass, with a warning: a run drops such prompts, and goes on."""


@dataclass
class Sample:
    """What was seen of a dataset.

    Attributes:
        rows: the prompts looked at.
        readable: those of them that can be asked about.
        image_bytes: mean size of their files.
    """

    rows: Sequence[Prompt]
    readable: list[Prompt] = field(default_factory=list)
    image_bytes: float = 0.0


def fault_of(row: Prompt) -> Fault | None:
    """Why a row can't be asked about; None where it can. The one place where a check looks at a row."""
    if not row.prompt.strip():
        return "PROMPT_EMPTY", "the prompt is empty"
    try:
        decode(row.image.read_bytes(), ImageLimits())
    except OSError as error:
        return "IMAGE_FILE_UNREADABLE", f"{row.image}: {error.strerror}"
    except InvalidInput as error:
        return error.reason, f"{row.image}: {error.message}"
    return None


def sample(rows: Sequence[Prompt]) -> tuple[Sample, list[tuple[Prompt, Fault]]]:
    """Look at some rows; also those that can't be used, and why."""
    faults = [(row, fault_of(row)) for row in rows]
    seen = Sample(rows, [row for row, fault in faults if fault is None])
    seen.image_bytes = sum(row.image.stat().st_size for row in seen.readable) / max(1, len(seen.readable))
    return seen, [(row, fault) for row, fault in faults if fault is not None]


def spread(pool: Pool, count: int = SAMPLED) -> list[Prompt]:
    """Prompts from all over a pool, the first one among them."""
    step = max(1, len(pool) // count)
    return pool.rows(range(0, len(pool), step)[:count])


def train(rows: Sequence[Prompt], *, strict: bool) -> tuple[Sample, list[Finding]]:
    """IMAGES_UNREADABLE, PROMPTS_UNUSABLE. A run drops such rows, so only a check minds some of them."""
    seen, faults = sample(rows)
    most = TOLERATED * len(rows) if strict else len(rows) - 1
    return seen, list(_told("data.train", rows, faults, most))


def test(rows: Sequence[Prompt]) -> tuple[Sample, list[Finding]]:
    """IMAGES_UNREADABLE, PROMPTS_UNUSABLE. Evaluation ends a run at one row that it can't ask about."""
    seen, faults = sample(rows)
    return seen, list(_told("data.test", rows, faults, 0))


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


def _told(key: str, rows: Sequence[Prompt], faults: Sequence[tuple[Prompt, Fault]], most: float) -> Iterator[Finding]:
    """A finding for the images and one for the texts; an error where there are more than `most`."""
    severity: Severity = "error" if len(faults) > most else "warning"
    images = [(row, message) for row, (reason, message) in faults if reason.startswith("IMAGE_")]
    texts = [(row, message) for row, (reason, message) in faults if not reason.startswith("IMAGE_")]
    if images:
        row, message = images[0]
        yield Finding(
            "IMAGES_UNREADABLE",
            f"{len(images)} of {len(rows)} sampled images of {key} can't be read, such as that of {row.id}: {message}",
            "put them there (?images=DIRECTORY names where they lie), or leave these rows out",
            severity,
        )
    if texts:
        row, message = texts[0]
        yield Finding(
            "PROMPTS_UNUSABLE",
            f"{len(texts)} of {len(rows)} sampled rows of {key} can't be asked about, such as {row.id}: {message}",
            "put these texts right, or leave these rows out",
            severity,
        )
