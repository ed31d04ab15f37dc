"""Entry: the `sightline` script. An interrupt while it still imports ends it quietly, too."""

from __future__ import annotations

import logging
import os
import sys


def main() -> None:
    """Entry point of the `sightline` script."""
    # Torch's threads that spin while they wait become very slow when another process uses the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # gRPC's core writes a line for each failed TLS handshake; our message says what failed. A service's log keeps them.
    if sys.argv[1:2] != ["serve"]:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # On some CPUs bitsandbytes warns that a package which downloads code is missing. We never run such code.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        from sightline_cli.main import app

        try:
            app(prog_name="sightline")
        finally:  # for the help, which no command wraps
            flush_or_leave()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def flush_or_leave() -> None:
    """Flush buffered output; exit if its reader is gone."""
    from sightline_cli.failures import GONE, drop_output, flush

    try:
        flush()
    except BrokenPipeError:
        drop_output()
        sys.exit(GONE)
