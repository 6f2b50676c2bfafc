"""Locks of files that processes share; a process that dies leaves none behind. Some file systems have no locks."""

import contextlib
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def share(handle: int) -> None:
    """Hold an open file's lock beside others that share it, until it is closed; without effect where there are none."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """One process at a time, the others wait; without effect where files cannot be locked. Makes the file."""
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether no other holds the lock of this file (or it does not exist), and then none can while the block lasts.

    False where files cannot be locked.
    """
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
