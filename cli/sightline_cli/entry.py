"""Entry: the `sightline` script. An interrupt while it still imports ends it quietly, too."""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys

ESCAPED = "sightline.escaped"
"""Error handler for characters that the output's encoding lacks: `\\u00e4`, which JSON reads back."""


def main() -> None:
    """Entry point of the `sightline` script."""
    _prepare_streams()
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
            app([_home(each) for each in sys.argv[1:]], prog_name="sightline")
        finally:  # for the help, which no command wraps
            flush_or_leave()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _home(argument: str) -> str:
    """`--run=~/runs/a` with the home directory, which a shell puts there only in `--run ~/runs/a`."""
    flag, equals, value = argument.partition("=")
    return f"{flag}={os.path.expanduser(value)}" if equals and flag.startswith("--") else argument


def _prepare_streams() -> None:
    """Make every text printable, and occupy closed descriptors: the next file that is opened would become the standard
    output of our libraries and services."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    codecs.register_error(ESCAPED, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors=ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end


def flush_or_leave() -> None:
    """Flush buffered output; exit if its reader is gone."""
    from sightline_cli.failures import GONE, drop_output, flush

    try:
        flush()
    except BrokenPipeError:
        drop_output()
        sys.exit(GONE)
