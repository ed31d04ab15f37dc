"""Finding: something wrong with a set-up, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sightline.errors import PreconditionFailed, SightlineError

Severity = Literal["error", "warning"]

_OTHERWISE = "fix that, then check again"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: UPPER_SNAKE, stable, for programs; the reason of the error that a run would end with.
        message: what is wrong, in one sentence without its full stop.
        fix: what to do about it, verb first.
        severity: an error ends or wastes the run; a warning should be checked.
    """

    code: str
    message: str
    fix: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}"

    def tree(self) -> dict[str, str]:
        """For JSON."""
        return {"code": self.code, "message": self.message, "fix": self.fix}


def found_by(error: Exception, code: str = "UNEXPECTED", fix: str = "") -> Finding:
    """The finding for an error. If the error's text ends with advice after a semicolon, that is the fix.

    Args:
        code: for an error without its own reason.
        fix: replaces the advice in the error's text.
    """
    said = error.message if isinstance(error, SightlineError) else str(error)
    message, semicolon, advice = said.rpartition("; ")
    if fix or not semicolon:
        message, advice = said, fix or _OTHERWISE
    return Finding(error.reason if isinstance(error, SightlineError) else code, message.strip().rstrip("."), advice)


def clause(error: BaseException, most: int = 200) -> str:
    """The beginning of a library's error message, which may be pages long."""
    told = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return told.rstrip(".") if len(told) <= most else f"{told[:most]}..."


def refuse(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that are warnings.

    Raises:
        PreconditionFailed: some are errors; the first one's code is the reason, and the message lists all.
    """
    told = list(findings)
    errors = [finding for finding in told if finding.severity == "error"]
    if errors:
        raise PreconditionFailed(". ".join(map(str, errors)), reason=errors[0].code)
    return told
