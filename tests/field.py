"""Rows of a table that failed on the parent of their mend: `make faults` runs these.

Rows beside them that were right before stand there as controls, without the marker.
"""

from typing import Any

import pytest


def faults(*rows: tuple[Any, ...]) -> list[Any]:
    """Each row, a tuple of the parametrised arguments, with the marker `field`."""
    return [pytest.param(*row, marks=pytest.mark.field) for row in rows]
