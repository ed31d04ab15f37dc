"""Failures: an error is one paragraph on stderr and an exit code; tracebacks and logs come only with `--debug`.

Exit codes of every command:

    0    done
    1    it failed: a service is unavailable, a run ended with an error, no part of the request succeeded
    2    unusable input: a flag, a file, a recipe, a name, a package that is not installed (the message says what to
         change)
    130  interrupted (Ctrl-C); 141 the output's reader is gone (`| head`); 143 terminated
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from sightline_cli.extras import told_of

_GIVEN = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""The system's errors about a given path."""
GONE = 128 + signal.SIGPIPE


def guarded(command: Callable[[], None], debug: bool, extra: str = "service") -> None:
    """Run a command; SIGTERM unwinds like Ctrl-C, so that started services are stopped.

    Args:
        command: the work, its imports included.
        debug: whether a failure prints a traceback.
        extra: the extra with the packages that the command needs.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        command()
        flush()
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        drop_output()  # rich ends the program when its output's reader is gone, with code 1
        raise typer.Exit(GONE) from None
    except BrokenPipeError as error:
        if error.filename is not None:  # a named pipe, not our output
            _end(error, debug, 1)
        drop_output()
        raise typer.Exit(GONE) from None
    except KeyboardInterrupt as stop:
        _say("; ".join(("interrupted", *map(str, stop.args))), "yellow")
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except ModuleNotFoundError as error:
        told = told_of(error.name, extra)
        if debug or told is None:
            raise
        _tell(told, 2)
    except OSError as error:
        _end(error, debug, 2 if isinstance(error, _GIVEN) else 1)
    except UnicodeEncodeError as error:  # from the command line, whose bytes may not be text
        if debug:
            raise
        _tell(f"{error.object[:100]!r} holds half of a character: {_whole_text()}", 2)
    except Exception as error:
        _end(error, debug, 1)


def _end(error: Exception, debug: bool, code: int) -> NoReturn:
    """Print what went wrong, and exit with a code."""
    from sightline.errors import (
        AlreadyExists,
        InvalidInput,
        NotFound,
        PreconditionFailed,
        SightlineError,
        first_line,
    )
    from sightline.unreached import advice, away

    if debug:
        if log := getattr(error, "log", ""):
            typer.echo(log, err=True)
        raise error
    if isinstance(error, InvalidInput) and error.reason == "TEXT_NOT_UNICODE":
        _tell(f"{error}: {_whole_text()}", 2)
    if isinstance(error, (AlreadyExists, InvalidInput, NotFound, PreconditionFailed)) or _is_of_settings(error):
        _tell(str(error), 2)
    if isinstance(error, SightlineError):
        told = advice(error, "service") or ("is the service running, and at that address?" if away(error) else "")
        _tell(f"{error}; {told}" if told else str(error), 1)
    if isinstance(error, OSError):
        _tell(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), code)
    _tell(f"{type(error).__name__}: {first_line(error)}; this error has no clear message yet: --debug shows where", 1)


def _whole_text() -> str:
    """What to do about half of a character. In a locale without UTF-8 the command line's text was read so."""
    known = sys.getfilesystemencoding()
    return "give whole text, in UTF-8" if known == "utf-8" else f"this locale has {known}: set PYTHONUTF8=1"


def _is_of_settings(error: Exception) -> bool:
    known = sys.modules.get("sightline_chassis.layers")  # if it is not imported, nothing raised it
    return known is not None and isinstance(error, known.SettingsError)


def _tell(message: str, code: int) -> NoReturn:
    _say(f"error: {message}", "red")
    raise typer.Exit(code) from None


def _say(message: str, colour: str) -> None:
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    typer.secho(message, fg=colour, err=True, color=False if plain else None)


def flush() -> None:
    """Flush buffered output while a failure can still be reported."""
    if sys.stdout is not None:  # closed by the shell (>&-)
        sys.stdout.flush()


def drop_output() -> None:
    """Discard buffered output: its reader is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
