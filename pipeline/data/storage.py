"""Files on this machine or behind an fsspec URL: find them, read them."""

import contextlib
import glob
import hashlib
import itertools
import math
import operator
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.regular import check_size, kinds_aside, largest, open_regular, read_regular, status_of

_WILD = re.compile(r"[*?\[{]")
_DEEP = re.compile(r"(/\*\*)+(?=/|$)")  # several in a row fit what one does
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 1_000_000  # that braces of one pattern stand for
_MOST_DIGITS = 18  # of a number in braces
_THREADS = 16  # a disk on the network answers late: so many questions wait side by side
_CHUNK = 10_000  # files of one folder that a thread asks about
_PIECE = 1 << 20  # bytes that are asked for at a time of what may never end
_POSITIVE = (1 << 63) - 1  # an inode may have 64 bits
_CHANGED = ("mtime", "LastModified", "Last-Modified", "updated", "created")  # when, as kinds of servers call it
ETAG = "etag "  # before a stamp that stands for the content of a file

_Numbers = NDArray[np.int64]
T = TypeVar("T")


class File(NamedTuple):
    """A file below a root; `stamp` changes when it is written again and is not the same on every machine."""

    path: str  # relative to the root, with forward slashes
    size: int  # bytes
    stamp: str


@dataclass(frozen=True)
class Files(Sequence[File]):
    """Files sorted by path, held by columns: a million of them cost a few numbers and a name each."""

    paths: list[str]
    sizes: NDArray[np.int64]  # (N,) bytes
    stamps: NDArray[Any]  # (N, 3) mtime and ctime in ns and inode, or (N,) texts: what a server says in their place
    aside: tuple[tuple[str, int], ...] = ()  # (what, how many) were found beside that are no regular files

    @classmethod
    def sorted(cls, paths: list[str], sizes: Iterable[int], stamps: Iterable[Any]) -> "Files":
        """Columns in any order."""
        files = cls(paths, np.array(sizes, dtype=np.int64), np.array(stamps))
        if all(map(operator.le, paths, itertools.islice(paths, 1, None))):
            return files
        return files.take(sorted(range(len(paths)), key=paths.__getitem__))

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, i: int) -> File: ...

    @overload
    def __getitem__(self, i: slice) -> "Files": ...

    def __getitem__(self, i: int | slice) -> "File | Files":
        if isinstance(i, slice):
            return Files(self.paths[i], self.sizes[i], self.stamps[i])
        return File(self.paths[i], int(self.sizes[i]), str(self._times()[i]))

    def take(self, rows: list[int]) -> "Files":
        """The files at these positions."""
        return Files([self.paths[i] for i in rows], self.sizes[rows], self.stamps[rows])

    def ending(self, suffixes: tuple[str, ...]) -> "Files":
        """The files whose names end so, in small letters or capitals."""
        rows = [i for i, path in enumerate(self.paths) if path.lower().endswith(suffixes)]
        return self if len(rows) == len(self) else self.take(rows)

    def identity(self) -> str:
        """Digest of names and sizes: the same on every machine."""
        return digest(f"{path}\0{size}" for path, size in zip(self.paths, self.sizes.tolist()))

    def stamp(self) -> str:
        """Digest of the times of last change: tells that a file was replaced by one of equal size."""
        times = self._times()
        if times.dtype == np.int64:
            return hashlib.sha256(times.astype("<i8").tobytes()).hexdigest()
        return digest(map(str, times.tolist()))

    def marks(self) -> _Numbers:
        """(N, 4) size, mtime, ctime and inode: where none of them has changed, the content has not.

        Of a server's files the size, a hash of what it says of the last change, and zeros.
        """
        marks = np.zeros((len(self), 4), dtype=np.int64)
        marks[:, 0] = self.sizes
        if self.stamps.dtype == np.int64 and self.stamps.ndim == 2:
            marks[:, 1:] = self.stamps
        else:
            marks[:, 1] = [_short_hash(stamp) for stamp in self.stamps.tolist()]
        return marks

    def _times(self) -> NDArray[Any]:
        return self.stamps[:, 0] if self.stamps.ndim == 2 else self.stamps


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


def find(path: str) -> tuple[str, Files]:
    """(root, files below it sorted by path) for a folder, one file, or a pattern with * ? [] {000..009} {a,b}.

    Names that start with a dot are left out, links are followed. Raises UserError where nothing is there.
    """
    if is_url(path):
        return _find_remote(path)
    if os.path.isdir(path):
        return path, _walk(path)
    if os.path.isfile(path):
        return os.path.dirname(path), _local_files(os.path.dirname(path), [path])
    if _WILD.search(path):
        root = fixed_part(path)
        names = [name for part in braces(path) for name in _existing(part, _matching(part))]
        return root, _local_files(root, sorted(set(names)))
    if os.path.exists(path):
        raise UserError(f"{path} is not a regular file: give a folder, a .parquet file or .tar shards")
    raise UserError(f"{path} does not exist: give a folder, a .parquet file, .tar shards or the name of a data set")


def read(path: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes from `start` up to `stop` of a file (None: all of it). Raises UserError for too many or a pipe."""
    if is_url(path):
        return _read_remote(path, start or 0, stop)
    return read_regular(path, start or 0, stop)


def _read_remote(url: str, start: int, stop: int | None) -> bytes:
    """By one request: of a file whose size nobody told one byte more than is read is asked for.

    A web server may send all of it whatever it is asked for: there the size is asked for first. It may not tell that,
    or send more, without end: it is read no further than is allowed.
    """
    system, inner = _system(url)
    if stop is not None:
        check_size(stop - start, url)
    elif url.startswith(("http://", "https://")):
        size = system.info(inner).get("size")
        check_size(int(size or 0), url)
        return _read_stream(system, inner, url, size)
    try:
        found = bytes(system.cat_file(inner, start=start, end=start + largest() + 1 if stop is None else stop))
    except Exception:  # of each kind of server its own: many refuse to send a part of an empty file
        if stop is None and system.info(inner).get("size") == 0:
            return b""
        raise
    check_size(len(found), url)
    return found


def _read_stream(system: Any, inner: str, url: str, size: int | None) -> bytes:
    found, most = bytearray(), largest()
    with system.open(inner, "rb", block_size=0, size=size) as file:  # 0: as a stream
        while chunk := file.read(min(_PIECE, most + 1 - len(found))):
            found += chunk
            check_size(len(found), url)
    return bytes(found)


def size_of(path: str) -> int:
    """Bytes of a file."""
    if is_url(path):
        system, inner = _system(path)
        return int(system.size(inner) or 0)
    return os.path.getsize(path)


def last_change(path: str) -> tuple[int, ...]:
    """What changes when a file on this machine is written again; nothing of a URL."""
    if is_url(path):
        return ()
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def open_binary(path: str) -> Any:
    """A seekable binary file, to be used in a with-statement."""
    if is_url(path):
        system, inner = _system(path)
        return system.open(inner, "rb")
    return open_regular(path)


def braces(pattern: str) -> list[str]:
    """Every name that {000..009} and {a,b} stand for, in order."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    count = math.prod(_count(piece) for piece in pieces[1::2])
    if count > _MOST_NAMES:
        raise UserError(f"{pattern[:200]} stands for more than {_MOST_NAMES:,} names: so many are not looked for")
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def fixed_part(pattern: str) -> str:
    """The folder before the first wildcard."""
    wild = _WILD.search(pattern)
    return pattern[: wild.start()].rpartition("/")[0] if wild else pattern


def _count(piece: str) -> int:
    numbers = _RANGE.fullmatch(piece)
    if numbers is None:
        return 1 + piece.count(",")
    if max(map(len, numbers.groups())) > _MOST_DIGITS:
        return _MOST_NAMES + 1
    return max(0, 1 + int(numbers[2]) - int(numbers[1]))


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


def matches(pattern: str) -> bool:
    """Whether a pattern, or one of those that its braces stand for, fits something on this machine."""
    return any(glob.glob(part, recursive=True) for part in braces(pattern))


def _matching(pattern: str) -> list[str]:
    """What a pattern fits, sorted; ** goes into every folder once, where links lead to it more than once too."""
    pattern = _DEEP.sub("/**", pattern)
    if pattern.endswith("/**"):
        pattern += "/*"
    before, deep, after = pattern.partition("/**")
    if not deep or not after.startswith("/"):
        return sorted(glob.glob(pattern, recursive=not deep))
    folders = {below for top in glob.glob(before or "/") for below in _folders(top)}
    return sorted({name for folder in folders for name in _matching(glob.escape(folder) + after)})


def _folders(top: str) -> list[str]:
    """A folder and those below it, level by level; of two ways to one the shorter counts."""
    seen: set[tuple[int, int]] = set()
    found, level = list[str](), [top]
    while level:
        level = [folder for folder in level if _is_new(_place(folder), seen)]
        found += level
        level = [
            f"{folder.rstrip('/')}/{name}" for folder in level if os.path.isdir(folder) for name in _names(folder)[0]
        ]
    return found


def _walk(root: str) -> Files:
    """Folder after folder, level by level; of two ways to one folder the shorter, else the first by name, counts."""
    seen: set[tuple[int, int]] = set()  # so that a link to a parent does not loop
    paths: list[str] = []
    columns = [_columns([])]
    odd: Counter[str] = Counter()
    level = [""]  # folders below the root, each with a slash at its end
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="list") as pool:
        while level:
            level = [folder for folder, place in zip(level, _each(pool, _place, root, level)) if _is_new(place, seen)]
            found = list(zip(level, _each(pool, _names, root, level)))
            chunks = [(folder, chunk) for folder, (_, names, _) in found for chunk in _chunks(names)]
            asked = _each(pool, _ask, root, [folder for folder, _ in chunks], [names for _, names in chunks])
            for (folder, _), (names, sizes, stamps) in zip(chunks, asked):
                paths += map(folder.__add__, names)
                columns.append((sizes, stamps))
            level = [f"{folder}{name}/" for folder, (names, _, _) in found for name in names]
            odd.update(name for _, (_, _, names) in found for name in names)
    sizes, stamps = (np.concatenate(column) for column in zip(*columns))
    return replace(Files.sorted(paths, sizes, stamps), aside=tuple(sorted(odd.items())))


def _each(pool: ThreadPoolExecutor, work: Callable[..., T], root: str, folders: list[str], *more: Any) -> Iterator[T]:
    """`work` on every folder, in threads, in order."""
    return pool.map(work, (join(root, folder).rstrip("/") or "/" for folder in folders), *more)


def _place(folder: str) -> tuple[int, int] | None:
    status = status_of(folder)
    return None if status is None else (status.st_dev, status.st_ino)


def _is_new(place: tuple[int, int] | None, seen: set[tuple[int, int]]) -> bool:
    if place is None or place in seen:
        return False
    seen.add(place)
    return True


def _names(folder: str) -> tuple[list[str], list[str], list[str]]:
    """Sorted names of the folders and of the files in a folder, and of what kind each is that is neither."""
    folders, files, others = [], [], list[str]()
    with _permitted(folder), contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is(entry.is_file):
                files.append(entry.name)
            elif _is(entry.is_dir):
                folders.append(entry.name)
            else:
                others += kinds_aside([status_of(entry.path)])
    return sorted(folders), sorted(files), others


def _is(asked: Callable[[], bool]) -> bool:
    """What an entry of a folder says; False for a link that leads nowhere or in a circle."""
    try:
        return asked()
    except OSError:
        return False


def _chunks(names: list[str]) -> Iterator[list[str]]:
    return (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))


def _ask(folder: str, names: list[str]) -> tuple[list[str], _Numbers, _Numbers]:
    """(names, sizes, times of last change) of files in a folder; one that has gone meanwhile is left out."""
    with _opened(folder) as handle:  # names beside a handle are found faster than whole paths
        try:
            found = [os.stat(name, dir_fd=handle) for name in names]
        except FileNotFoundError:
            there = [(name, status) for name in names if (status := _status(name, handle)) is not None]
            names, found = [name for name, _ in there], [status for _, status in there]
    return names, *_columns(found)


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[int]:
    with _permitted(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            yield handle
        finally:
            os.close(handle)


@contextlib.contextmanager
def _permitted(folder: str) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise UserError(f"{folder} cannot be read: permission denied") from None


def _status(name: str, handle: int) -> os.stat_result | None:
    return status_of(name, folder=handle)


def _columns(found: list[os.stat_result]) -> tuple[_Numbers, _Numbers]:
    """(N,) sizes and (N, 3) stamps."""
    sizes = np.array([status.st_size for status in found], dtype=np.int64)
    stamps = np.empty((len(found), 3), dtype=np.int64)
    stamps[:, 0] = [status.st_mtime_ns for status in found]
    stamps[:, 1] = [status.st_ctime_ns for status in found]
    stamps[:, 2] = [status.st_ino & _POSITIVE for status in found]
    return sizes, stamps


def _local_files(root: str, paths: list[str]) -> Files:
    """The regular files among these; a pattern fits folders, pipes and dead links as well."""
    asked = [(path, status_of(path)) for path in paths]
    found = [(path, status) for path, status in asked if status is not None and stat.S_ISREG(status.st_mode)]
    relative = [path[len(root) :].lstrip(os.sep).replace(os.sep, "/") for path, _ in found]
    files = Files.sorted(relative, *_columns([status for _, status in found]))
    return replace(files, aside=tuple(sorted(Counter(kinds_aside([status for _, status in asked])).items())))


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url} cannot be opened: {error}") from None
    return system, path


def _find_remote(url: str) -> tuple[str, Files]:
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
    found = {name[len(root) :].lstrip("/"): info for name, info in found.items()}
    paths = [path for path in found if not _hidden(path)]
    sizes = [int(found[path].get("size") or 0) for path in paths]
    stamps = [_remote_stamp(found[path]) for path in paths]
    return str(system.unstrip_protocol(root)).rstrip("/"), Files.sorted(paths, sizes, stamps)


def _remote_stamp(info: dict[str, Any]) -> str:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return f"{ETAG}{etag}"
    return next((str(info[key]) for key in _CHANGED if info.get(key)), "")


def _short_hash(stamp: Any) -> int:
    return int.from_bytes(hashlib.sha256(str(stamp).encode()).digest()[:8]) & _POSITIVE


def _hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))
