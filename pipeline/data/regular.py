"""Files from elsewhere are opened only where they are regular, and read no further than they say and may be long."""

import errno
import io
import math
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from rayssl.pipeline.base.errors import UserError

LARGEST_GB = 1.0  # of what is read in one piece
VARIABLE = "RAYSSL_LARGEST_GB"

_LONGEST_NAME = 230  # bytes; 255 with what is added while a file is being written
_URL = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)  # a Path has made one slash of two
_NO_WAY = (errno.ELOOP, errno.ENAMETOOLONG)
_NOWHERE, _OTHERS = "links that lead nowhere", "pipes, sockets and devices"


def largest() -> int:
    """Bytes that are read in one piece, of an image, a table or a row group: RAYSSL_LARGEST_GB, else 1 GB.

    Raises UserError where RAYSSL_LARGEST_GB is no number.
    """
    text = os.environ.get(VARIABLE)
    try:
        gigabytes = float(text) if text else LARGEST_GB
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise UserError(f"{VARIABLE} is {text!r}: a number of gigabytes is needed, e.g. 4")
    return int(gigabytes * 1e9)


def check_size(size: int, what: str, most: int | None = None) -> None:
    """Raises UserError for what claims to be larger than `most`, if not given what is read in one piece."""
    most = largest() if most is None else most
    if size > most:
        raise UserError(
            f"{what} has {size / 1e9:.4g} GB: {VARIABLE} says how much is read in one piece, {most / 1e9:.4g} GB"
        )


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, to be read; raises UserError for a pipe, a device or a socket, and never waits for one.

    One without a size, as the system's own in /proc, holds nothing: some of these wait, and some never end.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size > 0:
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file: pipes, sockets and devices are not read")
    return io.BytesIO()


def read_regular(path: str | Path, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes from `start` up to `stop`, or to the end that the file has now. Raises UserError for too many."""
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        end = size if stop is None else min(stop, size)
        check_size(end - start, str(path))
        file.seek(start)
        return file.read(max(0, end - start))


def check_target(path: Path, flag: str) -> None:
    """Raises UserError where a picture cannot be written, or would take the place of a device, a pipe or a folder."""
    text = str(path)
    if text in ("", ".") or text.startswith("--") or "\0" in text:
        raise UserError(f"{flag} {text!r} is no name of a file: name one, e.g. {flag} found.png")
    if _URL.match(text):
        raise UserError(f"{flag} {path} is a URL: pictures are written to this machine's folders")
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise UserError(
            f"{flag} {path.name[:_LONGEST_NAME]}… has a name of more than {_LONGEST_NAME} bytes: shorten it"
        )
    status = status_of(text)
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise UserError(f"{flag} {path} is not a regular file: name a new file, or one to be replaced")
    _check_folder(path.absolute().parent, f"{flag} {path}")


def _check_folder(folder: Path, asked: str) -> None:
    """Raises UserError where nothing can be written to a folder, or to the one where it would be made."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{asked}: {folder} is not a folder: choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{asked}: nothing can be written to {folder}: choose another place")


def status_of(path: str, *, folder: int | None = None) -> os.stat_result | None:
    """What the system says of what a path leads to; None where that is nothing, or a circle of links."""
    try:
        return os.stat(path, dir_fd=folder)
    except ValueError:  # a NUL is in no name
        return None
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno in _NO_WAY:
            return None
        raise


def kinds_aside(found: list[os.stat_result | None]) -> list[str]:
    """What those are that are no regular files."""
    return [_kind(status) for status in found if status is None or not stat.S_ISREG(status.st_mode)]


def _kind(status: os.stat_result | None) -> str:
    if status is None:
        return _NOWHERE
    return "folders" if stat.S_ISDIR(status.st_mode) else _OTHERS


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
