"""Files on this machine or behind an fsspec URL: find them, read them."""

import glob
import itertools
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.errors import UserError

_WILD = re.compile(r"[*?\[{]")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class File(NamedTuple):
    """A file below a root; `stamp` changes when it is written again and is not the same on every machine."""

    path: str  # relative to the root, with forward slashes
    size: int  # bytes
    stamp: str


def is_url(path: str) -> bool:
    """Whether fsspec has to open it, e.g. s3://bucket/folder."""
    return "://" in path


def normalise(path: str) -> str:
    """An absolute path, or a URL without its last slash; file:// becomes a path, ~ the home folder."""
    path = path.removeprefix("file://")
    if is_url(path):
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path))


def join(root: str, relative: str) -> str:
    """`relative` below `root`; both with forward slashes."""
    return f"{root.rstrip('/')}/{relative}"


def find(path: str) -> tuple[str, list[File]]:
    """(root, files below it sorted by path) for a folder, one file, or a pattern with * ? [] {000..009} {a,b}.

    Names that start with a dot are left out, links are followed. Raises UserError where nothing is there.
    """
    if is_url(path):
        return _find_remote(path)
    if os.path.isdir(path):
        return path, sorted(_walk(path))
    if os.path.isfile(path):
        return os.path.dirname(path), [_local_file(os.path.dirname(path), path)]
    if _WILD.search(path):
        root = fixed_part(path)
        names = [name for part in braces(path) for name in _existing(part, sorted(glob.glob(part, recursive=True)))]
        return root, sorted({_local_file(root, name) for name in names})
    raise UserError(f"{path} does not exist: give a folder, a .parquet file, .tar shards or the name of a data set")


def read(path: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes from `start` up to `stop` of a file (None: all of it)."""
    if is_url(path):
        system, inner = _system(path)
        return bytes(system.cat_file(inner, start=start, end=stop))
    with open(path, "rb") as file:
        file.seek(start or 0)
        return file.read(-1 if stop is None else stop - (start or 0))


def open_binary(path: str) -> Any:
    """A seekable binary file, to be used in a with-statement."""
    if is_url(path):
        system, inner = _system(path)
        return system.open(inner, "rb")
    return open(path, "rb")


def braces(pattern: str) -> list[str]:
    """Every name that {000..009} and {a,b} stand for, in order."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def fixed_part(pattern: str) -> str:
    """The folder before the first wildcard."""
    wild = _WILD.search(pattern)
    return pattern[: wild.start()].rpartition("/")[0] if wild else pattern


def _choices(piece: str) -> list[str]:
    numbers = _RANGE.fullmatch(piece)
    if numbers is None:
        return piece.split(",")
    first, last = numbers.groups()
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]


def _existing(pattern: str, names: list[str]) -> list[str]:
    if not names:
        raise UserError(f"{pattern} does not exist: nothing matches")
    return names


def _walk(root: str) -> Iterator[File]:
    seen = set()  # folders already visited, so that a link to a parent does not loop
    folders = [root]
    while folders:
        folder = folders.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = list(os.scandir(folder))
        except PermissionError:
            raise UserError(f"{folder} cannot be read: permission denied") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.path)
            elif entry.is_file():  # False for a link that leads nowhere
                yield _file(root, entry.path, entry.stat())


def _local_file(root: str, path: str) -> File:
    return _file(root, path, os.stat(path))


def _file(root: str, path: str, status: os.stat_result) -> File:
    relative = path[len(root) :].lstrip(os.sep).replace(os.sep, "/")
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return File(relative, size, str(status.st_mtime_ns))


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url} cannot be opened: {error}") from None
    return system, path


def _find_remote(url: str) -> tuple[str, list[File]]:
    system, inner = _system(url)
    try:
        if _WILD.search(inner):
            root = fixed_part(inner)
            found = {name: system.info(name) for part in braces(inner) for name in _existing(part, system.glob(part))}
        elif system.isfile(inner):
            root, found = inner.rpartition("/")[0], {inner: system.info(inner)}
        elif system.exists(inner):
            root, found = inner, system.find(inner, detail=True)
        else:
            raise UserError(f"{url} does not exist")
    except (OSError, ValueError) as error:
        raise UserError(f"{url} cannot be read: {error}") from None
    files = [_remote_file(root, name, info) for name, info in found.items()]
    return str(system.unstrip_protocol(root)).rstrip("/"), sorted(f for f in files if not _hidden(f.path))


def _remote_file(root: str, name: str, info: dict[str, Any]) -> File:
    stamps = [str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created") if key in info]
    return File(name[len(root) :].lstrip("/"), int(info.get("size") or 0), stamps[0] if stamps else "")


def _hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))
