"""The one exception that means "the user's input is wrong", and what is nobody's fault here."""

import difflib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

# What the system says of a disk, and what helps.
_DISK = {
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some",
    errno.EROFS: "make it writable, or use another place",
    errno.EIO: "look after the disk or the network behind it",
    errno.ESTALE: "look after the network behind it",
    errno.EFBIG: "use a place that takes larger files",
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.ENFILE: "close some programs",
}
# What it says of other things, whose words could mean anything in the text of a library.
_SYSTEM = {
    errno.EACCES: "allow writing there",
    errno.EPERM: "allow writing there",
    errno.ENOMEM: "free some memory",
}


class UserError(Exception):
    """Wrong input: one line that says what, its value and what would be right. Commands end with exit code 2."""


class MissingError(UserError):
    """A file that a command reads is not there."""


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
        found = disk_error(error)
        if found is not None and found.errno is not None:
            place = f": {os.fsdecode(found.filename)}" if found.filename is not None else ""
            advice = _DISK[found.errno]
            return f"{found.strerror}{place}: what is finished is kept; {advice}, and the same command goes on"
        if isinstance(error, OSError) and error.errno in _SYSTEM and error.filename is not None:
            place, advice = os.fsdecode(error.filename), _SYSTEM[error.errno]
            return f"{error.strerror}: {place}: what is finished is kept; {advice}, and the same command goes on"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def impossible_path(error: BaseException | None) -> str | None:
    """A line about a name that no file can have, or a link that leads nowhere but to itself; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ELOOP and error.filename is not None:
            return f"{os.fsdecode(error.filename)} is a link that leads to itself: remove it"
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
            return f"{place}{os.strerror(errno.ENAMETOOLONG).lower()}: give a shorter one"
        if isinstance(error, ValueError) and "embedded null" in str(error):
            return "a name holds a NUL, which no file's name can: give another"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def disk_error(error: BaseException, path: Path | None = None) -> OSError | None:
    """The system's error that this is, or that a library has put into a text; None where it is no disk's.

    It names `path`, or else the file that it names itself.
    """
    for number in _DISK:
        reason = os.strerror(number)
        if getattr(error, "errno", None) == number or reason in str(error):
            return OSError(number, reason, str(path) if path is not None else _named(error, reason))
    return None


def _named(error: BaseException, reason: str) -> str | None:
    """The file that an error names, also where it is told in the words of another process."""
    if (filename := getattr(error, "filename", None)) is not None:
        return os.fsdecode(filename)
    told = re.search(rf"{re.escape(reason)}: '([^'\n]+)'", str(error))
    return told[1] if told else None
