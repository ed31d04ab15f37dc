"""Entry: the `sightline` script. What a person does to it while it still imports ends it quietly, too."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the `sightline` script."""
    # Threads of torch that wait for each other by spinning crawl as soon as another process wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from sightline_cli.main import app

        try:
            app(prog_name="sightline")
        finally:  # the help, which no command guards
            flush_or_leave()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def flush_or_leave() -> None:
    """Flush buffered output; if its reader has gone, exit."""
    from sightline_cli.failures import GONE, drop_output, flush

    try:
        flush()
    except BrokenPipeError:
        drop_output()
        sys.exit(GONE)
