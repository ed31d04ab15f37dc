"""Data: a sample of the rows that a run would draw, with their images decoded and their texts looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sightline.errors import PreconditionFailed, SightlineError

from sightline_trainer.pools import hold_out
from sightline_trainer.pools.pool import Pool
from sightline_trainer.preflight.finding import Finding, Severity, found_by
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.refusal import Refusal
from sightline_trainer.row_gate import RowGate

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


def sample(rows: Sequence[Prompt], gate: RowGate) -> tuple[Sample, list[tuple[Prompt, Refusal]]]:
    """Look at some rows; also those that can't be used, and why."""
    faults = [(row, gate.asked(row)) for row in rows]
    seen = Sample(rows, [row for row, fault in faults if fault is None])
    seen.image_bytes = sum(row.image.stat().st_size for row in seen.readable) / max(1, len(seen.readable))
    return seen, [(row, fault) for row, fault in faults if fault is not None]


def spread(pool: Pool, count: int = SAMPLED) -> list[Prompt]:
    """Prompts from all over a pool, the first one among them."""
    step = max(1, len(pool) // count)
    return pool.rows(range(0, len(pool), step)[:count])


def train(rows: Sequence[Prompt], gate: RowGate, *, strict: bool) -> tuple[Sample, list[Finding]]:
    """IMAGES_UNREADABLE, PROMPTS_UNUSABLE. A run drops such rows, so only a check minds some of them."""
    seen, faults = sample(rows, gate)
    most = TOLERATED * len(rows) if strict else len(rows) - 1
    return seen, list(_told("data.train", rows, faults, most))


def test(rows: Sequence[Prompt], gate: RowGate) -> tuple[Sample, list[Finding]]:
    """IMAGES_UNREADABLE, PROMPTS_UNUSABLE. A run asks other prompts in their place, which only a check minds."""
    seen, faults = sample(rows, gate)
    return seen, list(_told("data.test", rows, faults, TOLERATED * len(rows)))


def left_out(key: str, pool: Pool) -> Iterator[Finding]:
    """ROWS_LEFT_OUT: rows that are no prompts, or whose texts the model cannot take."""
    gone = len(pool.dropped)
    if gone:
        yield Finding(
            "ROWS_LEFT_OUT",
            f"{gone} of {gone + len(pool)} rows of {key} are left out: {pool.dropped.summary}",
            "mend these rows (docs/data.md has the reasons), or leave them out",
            "error" if gone > TOLERATED * (gone + len(pool)) else "warning",
        )


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


def _told(key: str, rows: Sequence[Prompt], faults: Sequence[tuple[Prompt, Refusal]], most: float) -> Iterator[Finding]:
    """A finding for the images and one for the texts; an error where there are more than `most`."""
    severity: Severity = "error" if len(faults) > most else "warning"
    images = [(row, fault.message) for row, fault in faults if fault.reason.startswith("IMAGE_")]
    texts = [(row, fault.message) for row, fault in faults if not fault.reason.startswith("IMAGE_")]
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
