"""An update on a base in 4 bits, in a call of its own: bitsandbytes' wheel is as large as all others."""

from __future__ import annotations

import report


def work(to: report.Report) -> None:
    """Says what is there. The recipe has no key for a 4-bit base yet."""
    from importlib.util import find_spec

    to.row(
        "qlora_available", float(find_spec("bitsandbytes") is not None), "0 or 1",
        against="a recipe cannot ask for a 4-bit base yet, so there is nothing to measure",
    )  # fmt: skip


if __name__ == "__main__":
    report.run("qlora", work)
