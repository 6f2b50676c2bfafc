"""What the files of a data set hold, as digests: it is by these that a set is known, not by names, sizes and times.

Promised: of an image file up to 1 MiB, and of a parquet file or shard up to 64 MiB, every byte counts; of a larger
one its size and 4 blocks of 256 KiB, or 64 of 1 MiB, spread from its first byte to its last. In a store whose
files have ETags these stand for the bytes. What is the same everywhere has the same digest everywhere: times, owners
and places do not count.

A digest is remembered with the file's size, times of last change (mtime and ctime) and inode, and the file is read
again where one of them differs; so is a file that changed less than two seconds before it was read, whose next change
the clock of its file system might not show. In a store without ETags what it tells of the last change has to do;
where it tells nothing of that either, files are read each time, and one whose size it does not tell is read whole.

Not promised: a change of a larger file that leaves its size and all of those blocks as they were. Where it leaves the
time of last change as it was, too, decoded images in the cache stay those of before.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.cache_folder import cache_dir
from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.base.files import delete, replacing
from rayssl.pipeline.data import storage
from rayssl.pipeline.data.cache_room import touch
from rayssl.pipeline.data.dataset import sample_ids
from rayssl.pipeline.data.formats import written_here
from rayssl.pipeline.data.storage import ETAG, Files

SCHEME = "2"  # of fingerprints by content; those without a scheme before them are by names and sizes

_MIB = 1 << 20
_IMAGE = (4, _MIB // 4)  # blocks and bytes a block of a file that is larger than these together
_SHARD = (64, _MIB)
_SHARDS = (".parquet", ".tar")

_FORMAT = 1  # of the table; another number leaves the old ones unused
_WIDTH = 16  # bytes of a digest
_SETTLED = 2_000_000_000  # ns after which a change shows in a file's times on every file system
_OTHERS = 1_000_000  # files that the table keeps besides those of the set, e.g. of another pattern
_OWN = hashlib.sha256(b"a picture that this project wrote").digest()[:_WIDTH]  # whatever it shows
_THREADS = 16
_CHUNK = 64  # files a task

Digests = NDArray[np.uint8]
_Marks = NDArray[np.int64]


@dataclass(frozen=True)
class Contents:
    """The files whose bytes a data set is made of."""

    root: str
    files: Files
    known: Digests | None = None  # (N, 16), where they were asked for already

    def digest(self) -> str:
        """Hex digest of their bytes, in the order of their names."""
        digests = file_digests(self.root, self.files) if self.known is None else self.known
        return hashlib.sha256(digests.tobytes()).hexdigest()


def without_own(root: str, files: Files) -> tuple[Contents, int]:
    """The files without pictures that this project wrote among them, and how many these are."""
    digests = file_digests(root, files)
    others = np.flatnonzero((digests != np.frombuffer(_OWN, np.uint8)).any(axis=1))
    if len(others) == len(files):
        return Contents(root, files, digests), 0
    return Contents(root, files.take(others.tolist()), digests[others]), len(files) - len(others)


def file_digests(root: str, files: Files) -> Digests:
    """(N, 16) digests of files below `root`; only what changed since it was last asked for is read."""
    marks, path = files.marks(), _place(root)
    trusted = np.where((_settled(marks) & _dated(files))[:, None], marks, -1)  # before anything is read
    table = _Table.load(path)
    found, missing = table.find(files, marks) if table is not None else _nothing(files)
    if len(missing):
        found[missing] = _read_digests(root, files, missing)
        _Table.of(files, trusted, found, table).save(path)
    return found


@dataclass(frozen=True)
class _Table:
    """Digests of files and the marks that they had; −1 for marks that are not to be trusted."""

    names: str  # digest of the paths of its first rows, which were asked for together
    count: int  # how many these are
    ids: _Marks  # (M,) of the paths
    marks: _Marks  # (M, 4)
    digests: Digests  # (M, 16)

    @classmethod
    def of(cls, files: Files, marks: _Marks, digests: Digests, before: "_Table | None") -> "_Table":
        """The rows of these files, then those of others that are known from before."""
        ids = sample_ids(files.paths)
        parts = [(ids, marks, digests)]
        if before is not None:
            rest = np.flatnonzero(~np.isin(before.ids, ids))[:_OTHERS]
            parts.append((before.ids[rest], before.marks[rest], before.digests[rest]))
        return cls(_names(files), len(files), *(np.concatenate(column) for column in zip(*parts)))

    @classmethod
    def load(cls, path: Path) -> "_Table | None":
        """None where there is none, or what there is is damaged."""
        try:
            with np.load(path, allow_pickle=False) as kept:
                table = cls(str(kept["names"]), int(kept["count"]), kept["ids"], kept["marks"], kept["digests"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
            return None
        n = len(table.ids)
        shapes = table.ids.shape == (n,) and table.marks.shape == (n, 4) and table.digests.shape == (n, _WIDTH)
        types = table.ids.dtype == table.marks.dtype == np.int64 and table.digests.dtype == np.uint8
        if not (shapes and types and table.count <= n):
            return None
        touch(path)
        return table

    def save(self, path: Path) -> None:
        """Write it whole or not at all; without it the files are read again."""
        if not (self.marks >= 0).any():
            return
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(
                    file,
                    names=np.array(self.names),
                    count=np.array(self.count),
                    ids=self.ids,
                    marks=self.marks,
                    digests=self.digests,
                )
        except OSError:  # a full disk
            delete(path)

    def find(self, files: Files, marks: _Marks) -> tuple[Digests, NDArray[np.int64]]:
        """(N, 16) digests, and which of them are not known."""
        if not len(self.ids):
            return _nothing(files)
        if self.count == len(files) and self.names == _names(files):  # which is quicker than to ask for each
            same = (self.marks[: self.count] == marks).all(axis=1)
            return self.digests[: self.count].copy(), np.flatnonzero(~same)
        wanted, order = sample_ids(files.paths), np.argsort(self.ids, kind="stable")
        rows = order[np.searchsorted(self.ids[order], wanted).clip(max=len(order) - 1)]
        same = (self.ids[rows] == wanted) & (self.marks[rows] == marks).all(axis=1)
        return self.digests[rows], np.flatnonzero(~same)


def _nothing(files: Files) -> tuple[Digests, NDArray[np.int64]]:
    return np.zeros((len(files), _WIDTH), np.uint8), np.arange(len(files))


def _names(files: Files) -> str:
    return digest(files.paths)


def _place(root: str) -> Path:
    return cache_dir() / "facts" / f"content-{digest([root])[:32]}-{_FORMAT}.npz"


def _settled(marks: _Marks) -> NDArray[np.bool_]:
    """Whether the next change of a file will show in its times; what a store tells of changes is taken as it is."""
    settled: NDArray[np.bool_] = marks[:, 2] < time.time_ns() - _SETTLED
    return settled


def _dated(files: Files) -> NDArray[np.bool_]:
    """Whether a next change of a file would show at all: a server may say nothing of its changes."""
    dated: NDArray[np.bool_] = np.ones(len(files), np.bool_) if files.stamps.ndim == 2 else files.stamps != ""
    return dated


def _read_digests(root: str, files: Files, rows: NDArray[np.int64]) -> Digests:
    """(n, 16) digests of the files at `rows`, read in threads."""
    digest_of = _remote(root, files) if storage.is_url(root) else _local(root, files)

    def chunk(start: int) -> bytes:
        return b"".join([digest_of(row) for row in rows[start : start + _CHUNK].tolist()])

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="content") as pool:
        found = b"".join(pool.map(chunk, range(0, len(rows), _CHUNK)))
    return np.frombuffer(found, dtype=np.uint8).reshape(len(rows), _WIDTH)


def _local(root: str, files: Files) -> Callable[[int], bytes]:
    def digest_of(row: int) -> bytes:
        path, total = files.paths[row], hashlib.sha256()
        try:
            handle = os.open(storage.join(root, path), os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not wait
            try:
                for start, length in blocks_of(path, int(files.sizes[row])):
                    block = os.pread(handle, length, start)
                    if start == 0 and written_here(block):
                        return _OWN
                    total.update(block)
            finally:
                os.close(handle)
        except OSError as error:  # whoever decodes it says so
            total.update(f"error {error.errno}".encode())
        return total.digest()[:_WIDTH]

    return digest_of


def _remote(root: str, files: Files) -> Callable[[int], bytes]:
    def digest_of(row: int) -> bytes:
        path, stamp, total = files.paths[row], str(files.stamps[row]), hashlib.sha256()
        if stamp.startswith(ETAG):
            total.update(stamp.encode())
        elif files.sizes[row] == 0:  # which a server says of what is empty, and of what it does not know the size of
            total.update(storage.read(storage.join(root, path)))
        else:
            for start, length in blocks_of(path, int(files.sizes[row])):
                total.update(storage.read(storage.join(root, path), start, start + length))
        return total.digest()[:_WIDTH]

    return digest_of


def blocks_of(path: str, size: int) -> Iterator[tuple[int, int]]:
    """(first byte, bytes) of the parts of a file that count."""
    blocks, length = _SHARD if path.lower().endswith(_SHARDS) else _IMAGE
    if size <= blocks * length:
        yield 0, size
        return
    for block in range(blocks):
        yield block * (size - length) // (blocks - 1), length
