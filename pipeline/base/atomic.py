"""A file that appears whole or not at all, or is told to be unfinished."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rayssl.pipeline.base.errors import UserError, disk_error

UNFINISHED = ".unfinished"  # ends the name of a file that is being written, so that no reader takes it for data


@contextmanager
def placing(path: Path, put: Callable[[Path, Path], None]) -> Iterator[Path]:
    """A temporary file beside `path` to write to; when the block ends well it is `put` in the place of `path`.

    It carries no suffix that says what it is: a writer that goes by the suffix has to be told. What writers of `path`
    that were killed have left is removed. Raises UserError where there is no writing at that place, and an OSError
    that names `path` where the disk fails.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path)
        temporary, lock = _claim(path)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            put(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            os.close(lock)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails inside names `path`, also where a library hides the system's error in a text."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = disk_error(error, path)
        if found is not None:
            raise found from error
        if isinstance(error, OSError) and error.strerror and _is_place(error, path):
            raise UserError(f"{path} cannot be written: {error.strerror}: choose another place") from None
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _is_place(error: OSError, path: Path) -> bool:
    """Whether an error is about what is written or a folder above it, not about something read meanwhile."""
    if error.filename is None:
        return False
    named = Path(os.fsdecode(error.filename))
    return (
        path.is_relative_to(named)
        or named.is_relative_to(path)
        or (named.parent == path.parent and named.name.startswith(f".{path.name}."))
    )


def remove_unfinished(path: Path) -> None:
    """Remove what killed writers of `path` have left; that of a living one is locked and stays."""
    for left in path.parent.glob(f".{_literal(path.name)}.*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink(missing_ok=True)
            finally:
                os.close(handle)


def is_locked(path: Path) -> bool | None:
    """Whether somebody holds the lock of a file; None where the file system does not tell."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def _claim(path: Path) -> tuple[Path, int]:
    """A new temporary file of `path`, and the descriptor that holds its lock."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        with contextlib.suppress(OSError):  # some file systems have no locks: there nothing is cleaned up either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):  # else another writer took it for left over before it was locked
            return Path(name), handle
        os.close(handle)


def _literal(name: str) -> str:
    """A name for which a pattern stands for itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
