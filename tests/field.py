"""Controls: rows of field tests that were right before the fix too.

`make faults` leaves them out, so that each test it runs failed on the parent of its mend.
"""

from typing import Any

import pytest


def controls(*rows: Any) -> list[Any]:
    """Each row (a value, or a tuple of values, as the test takes them) with the marker `control`."""
    return [pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.control) for row in rows]
