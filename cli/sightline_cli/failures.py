"""Failures: an expected error is one paragraph on stderr and an exit code; a traceback comes only with `--debug`.

Exit codes of every command:

    0    done
    1    it failed: a service is away, a run ended with an error, nothing of what was asked came about
    2    what was given can't be used: a flag, a file, a recipe, a name (the message says what to change)
    130  interrupted (Ctrl-C); 143 terminated
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import typer

_GIVEN = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What the system says of a path that was given."""


def guarded(command: Callable[[], None], debug: bool) -> None:
    """Run a command; SIGTERM unwinds as Ctrl-C does, so that what was started is stopped."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from sightline.errors import AlreadyExists, InvalidInput, NotFound, PreconditionFailed, SightlineError
    from sightline_chassis.settings import SettingsError

    from sightline_cli.processes import StartError

    try:
        command()
    except (SightlineError, SettingsError, StartError) as error:
        if debug:
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        given = isinstance(error, (AlreadyExists, InvalidInput, NotFound, PreconditionFailed, SettingsError))
        raise typer.Exit(2 if given else 1) from None
    except BrokenPipeError:
        raise  # who read the output has gone: typer ends quietly
    except OSError as error:
        if debug:
            raise
        told = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        typer.secho(f"error: {told}", fg="red", err=True)
        raise typer.Exit(2 if isinstance(error, _GIVEN) else 1) from None
    except KeyboardInterrupt:
        typer.secho("interrupted; run the same command again to go on", fg="yellow", err=True)
        raise typer.Exit(130) from None
