"""The one exception that means "the user's input is wrong", and what is nobody's fault here."""

import difflib
import errno
import os
from collections.abc import Iterable

_DISK = {errno.ENOSPC: "free some", errno.EDQUOT: "free some", errno.EROFS: "make it writable, or use another place"}


class UserError(Exception):
    """Wrong input: one line that says what, its value and what would be right. Commands end with exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint " (did you mean 'x'?)" for a misspelt word, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


class OutsideError(RuntimeError):
    """Something outside failed: one line that says what, and what to do. Commands end with exit code 1."""


def outside_fault(error: BaseException | None) -> str | None:
    """A line about what is no fault of the program, such as a full disk, also where a worker met it; else None."""
    while error is not None:
        if isinstance(error, OutsideError):
            return str(error)
        for number, advice in _DISK.items():
            reason = os.strerror(number)
            if getattr(error, "errno", None) == number or reason in str(error):
                place = getattr(error, "filename", None)
                return f"{reason}{f': {place}' if place else ''}: {advice}, and the same command goes on"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None
