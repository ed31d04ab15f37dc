"""Checks a sample of the rows that a run would draw, with the run's own gate (`row_gate`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sightline.errors import PreconditionFailed, SightlineError

from sightline_trainer.draws import Draws
from sightline_trainer.pools import hold_out
from sightline_trainer.pools.pool import Pool
from sightline_trainer.preflight.finding import Finding, Severity, found_by
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.refusal import Refusal
from sightline_trainer.records.released import Released
from sightline_trainer.row_gate import RowGate, text_fault

SAMPLED = 32
"""Number of rows of each dataset to check."""
TOLERATED = 0.05
"""Maximum share of unusable rows for which a check only warns, since a run drops such prompts and continues."""


@dataclass
class Sample:
    """Facts about a dataset's sample.

    Attributes:
        rows: the prompts checked.
        readable: the prompts that pass the gate.
        image_bytes: mean size of a prompt's image files.
    """

    rows: Sequence[Prompt]
    readable: list[Prompt] = field(default_factory=list)
    image_bytes: float = 0.0


def sample(rows: Sequence[Prompt], gate: RowGate, *, whole: bool) -> tuple[Sample, list[tuple[Prompt, Refusal]]]:
    """Check some rows; returns also the unusable ones, with the reason.

    Args:
        whole: whether the gate's model is usable; without it only faults for any model are found.
    """

    def fault_of(row: Prompt) -> Refusal | None:
        if not whole:
            return text_fault(row.prompt, "prompt") or gate.images(row)
        answers = row.answers if isinstance(row, Released) else ()
        faults = (gate.tokenised(row, row.prompt, text)[1] for text in answers)
        return gate.check(row) or next((fault for fault in faults if fault is not None), None)

    faults = [(row, fault_of(row)) for row in rows]
    seen = Sample(rows, [row for row, fault in faults if fault is None])
    size = sum(image.stat().st_size for row in seen.readable for image in row.images)
    seen.image_bytes = size / max(1, len(seen.readable))
    return seen, [(row, fault) for row, fault in faults if fault is not None]


def spread(pool: Pool, count: int = SAMPLED) -> list[Prompt]:
    """Prompts spread over a pool, including the first one."""
    step = max(1, len(pool) // count)
    return pool.rows(range(0, len(pool), step)[:count])


def usable(
    key: str, rows: Sequence[Prompt], gate: RowGate, *, strict: bool, whole: bool = True
) -> tuple[Sample, list[Finding]]:
    """IMAGES_UNREADABLE, ROWS_UNUSABLE for the dataset `key`. A run drops such rows, so only a check objects to
    some."""
    seen, faults = sample(rows, gate, whole=whole)
    most = TOLERATED * len(rows) if strict else len(rows) - 1
    return seen, list(_told(key, rows, faults, "error" if len(faults) > most else "warning"))


def left_out(key: str, pool: Pool) -> Iterator[Finding]:
    """ROWS_LEFT_OUT: rows that are not prompts, or that the model can't take."""
    if pool.dropped:
        yield Finding(
            "ROWS_LEFT_OUT",
            f"{len(pool.dropped)} rows of {key} are left out: {pool.dropped.summary}",
            "correct them, or continue without them",
            "warning",
        )


def held_out(draws: Draws, test: Sequence[Prompt]) -> Iterator[Finding]:
    """TEST_LEAKS: pictures that the iterations would draw are in the test set."""
    try:
        hold_out(draws.all(), test)
    except PreconditionFailed as error:
        yield found_by(error, fix="take these pictures out of data.train and data.pairs, or name another data.test")
    except SightlineError as error:
        yield found_by(error)


def _told(
    key: str, rows: Sequence[Prompt], faults: Sequence[tuple[Prompt, Refusal]], severity: Severity
) -> Iterator[Finding]:
    """A finding for the images and one for the rest."""
    images = [(row, fault.message) for row, fault in faults if fault.reason.startswith("IMAGE_")]
    others = [(row, fault.message) for row, fault in faults if not fault.reason.startswith("IMAGE_")]
    if images:
        row, message = images[0]
        yield Finding(
            "IMAGES_UNREADABLE",
            f"{len(images)} of {len(rows)} sampled images of {key} can't be read, such as that of {row.id}: {message}",
            "put them in place (?images=DIRECTORY names their directory), or leave these rows out",
            severity,
        )
    if others:
        row, message = others[0]
        yield Finding(
            "ROWS_UNUSABLE",
            f"{len(others)} of {len(rows)} sampled rows of {key} can't be used, such as {row.id}: {message}",
            "correct these texts, or leave these rows out",
            severity,
        )
