"""One writer of a folder at a time, and readers beside it that see the old state or the new."""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO, TypeVar, cast

from rayssl.pipeline.base.atomic import is_locked, writing
from rayssl.pipeline.base.errors import MissingError, UserError

WAIT_FOR_WRITER = 10.0  # seconds that a reader waits for files to fit
T = TypeVar("T")


_held: set[Path] = set()  # run folders that this process writes


_settling: ContextVar[bool] = ContextVar("_settling", default=False)


@contextmanager
def writer_lock(run: Path, wait_s: float = 30.0) -> Iterator[None]:
    """Be the only writer of a run folder; a dead writer's lock is gone with it.

    Waits, because a worker outlives its killed driver by some seconds. Raises UserError when it stays taken.
    """
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
        lock = open_own(run / ".lock", os.O_RDWR, "a+")
    check_inside(run)
    with lock as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise UserError(
                        f"{run} is being written by {file.read().strip() or 'another process'}: "
                        "wait for it or stop it, or use another --out"
                    ) from None
                time.sleep(0.1)
        with suppress(OSError):  # on a full disk nobody is told who writes
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        held = run.absolute()
        _held.add(held)
        try:
            yield
        finally:
            _held.discard(held)


def settled(folder: Path, read: Callable[[], T]) -> T:
    """What `read` makes of files in a run folder; what does not fit is read again while another process writes there.

    Files that belong together are replaced one after the other: a reader beside a writer may see one of each state.
    """
    places = (folder.absolute(), *folder.absolute().parents[:4])
    run = next((place for place in places if (place / ".lock").exists()), None)
    if run is None or run in _held or _settling.get():
        return read()
    within = _settling.set(True)  # what is read within is read again as a whole
    try:
        return _settled(run, read)
    finally:
        _settling.reset(within)


def _settled(run: Path, read: Callable[[], T]) -> T:
    deadline = time.monotonic() + WAIT_FOR_WRITER
    while time.monotonic() < deadline:
        try:
            return read()
        except MissingError:  # not waited for, but it may have gone between one look at the folder and the next
            return read()
        except UserError:
            if not is_locked(run / ".lock"):
                break
        time.sleep(0.02)
    return read()


def check_inside(run: Path) -> None:
    """Raises UserError where a folder of a run is a link to another place: what is written there would be elsewhere."""
    root = run.resolve()
    for above, folders, _ in os.walk(run):  # does not follow links
        for name in folders:
            path = Path(above, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise UserError(
                    f"{path} is a link to {os.readlink(path)}: nothing is written outside of a run's own folder: "
                    "put a folder in its place"
                )


def open_own(path: Path, flags: int, mode: str) -> TextIO:
    """A file of a run to be written; never what a link in its place leads to."""
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return _regular(os.open(path, flags, 0o644), path, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise UserError(f"{path} is a link or folder, not a file: remove it") from None
        raise


def _regular(handle: int, path: Path, mode: str) -> TextIO:
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise UserError(f"{path} is not a file: remove it")
    if found.st_nlink > 1:
        os.close(handle)
        raise UserError(f"{path} has another name elsewhere (a hard link), which would change too: put a copy there")
    return cast(TextIO, os.fdopen(handle, mode))
