"""Images with random access, whatever they come from."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data.decode import decode, read_header, to_square
from rayssl.pipeline.data.duplicates import Duplicates, count_duplicates, duplicate_notes
from rayssl.pipeline.data.listing import Store
from rayssl.pipeline.data.reading import AUTO, Note
from rayssl.pipeline.data.shown import BY_TYPE, Pixels, Shown


class Reader(Protocol):
    """Decoded images by row."""

    @property
    def channels(self) -> int: ...

    def read(self, row: int) -> Pixels:
        """(H, W, C) of one image."""

    def uniform(self) -> Pixels | None:
        """(N, H, W, C) of all of them without a copy, where that is possible."""


@dataclass(frozen=True)
class Stream:
    """Images decoded when asked for."""

    store: Store
    channels: int
    load_size: int
    shown: Shown = BY_TYPE

    def read(self, row: int) -> Pixels:
        return decode(self.store.read(row), self.channels, self.load_size, self.shown)

    def uniform(self) -> None:
        return None


class Images:
    """Images by position. Picklable: a process that is given one opens the files for itself."""

    def __init__(
        self,
        ids: NDArray[np.int64],
        paths: list[str],
        labels: NDArray[np.int64] | None,
        reader: Reader,
        rows: NDArray[np.int64],
        store: Store,
        positions: NDArray[np.int64],
        hashes: NDArray[np.int64] | None = None,
        digests: NDArray[np.uint8] | None = None,
    ) -> None:
        """`rows` (N,) are the images' rows in `reader`, `positions` (N,) their positions in `store`.

        `labels` (N,) are positions in the data set's class names, −1 for an image without a label; `hashes` (N,) are
        equal where pixels are, `digests` (N, 16) where the bytes of the images' files are.
        """
        self.ids, self.paths, self.labels = ids, paths, labels
        self._reader, self._rows = reader, rows
        self._store, self._positions = store, positions
        self.hashes, self.digests = hashes, digests

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self._reader.channels

    def __getitem__(self, i: int) -> Pixels:
        """(H, W, C) as kept: shorter side at most 8/7 of image_size, maybe not square."""
        return self._reader.read(int(self._rows[i]))

    def square(self, indices: Sequence[int] | NDArray[np.int64], size: int) -> Pixels:
        """(B, size, size, C): shorter side resized, centre crop. For evaluation and embedding."""
        uniform = self._reader.uniform()
        if uniform is not None and uniform.shape[1:3] == (size, size):
            return uniform[self._rows[np.asarray(indices, dtype=np.int64)]]
        squares = [to_square(self[int(i)], size) for i in indices]
        return np.stack(squares) if squares else np.zeros((0, size, size, self._reader.channels), np.uint8)

    def padded(self, indices: NDArray[np.int64]) -> tuple[Pixels, NDArray[np.int64] | None]:
        """(B, H, W, C) as kept, padded at the bottom and right to a common size, and the true sizes (B, 2).

        Sizes are None where all images have one size.
        """
        uniform = self._reader.uniform()
        if uniform is not None:
            return uniform[self._rows[indices]], None
        images = [self[int(i)] for i in indices]
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
        canvas = np.zeros((len(images), *sizes.max(axis=0), images[0].shape[2]), np.uint8)
        for row, image in enumerate(images):
            canvas[row, : image.shape[0], : image.shape[1]] = image
        return canvas, sizes

    def uniform_bytes(self) -> int | None:
        """Bytes of all images together where they have one size and are decoded, else None."""
        uniform = self._reader.uniform()
        return None if uniform is None else len(self) * int(np.prod(uniform.shape[1:]))

    def labelled(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(positions, labels) of the M images that have a label, (M,) each."""
        labels = self.labels if self.labels is not None else np.full(len(self), -1, dtype=np.int64)
        known = np.flatnonzero(labels >= 0)
        return known, labels[known]

    def select(self, indices: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> "Images":
        """The images at these positions, or where a mask is true."""
        indices = np.asarray(indices)
        chosen = np.flatnonzero(indices) if indices.dtype == np.bool_ else indices.astype(np.int64)
        return Images(
            self.ids[chosen],
            [self.paths[i] for i in chosen.tolist()],
            None if self.labels is None else self.labels[chosen],
            self._reader,
            self._rows[chosen],
            self._store,
            self._positions[chosen],
            None if self.hashes is None else self.hashes[chosen],
            None if self.digests is None else self.digests[chosen],
        )

    def join(self, *others: "Images | None") -> "Images":
        """These images and those of other parts of the same data set, in the order of the parts."""
        parts = [self, *(other for other in others if other is not None)]
        labels = [part.labels for part in parts if part.labels is not None]
        hashes = [part.hashes for part in parts if part.hashes is not None]
        digests = [part.digests for part in parts if part.digests is not None]
        return Images(
            np.concatenate([part.ids for part in parts]),
            [path for part in parts for path in part.paths],
            np.concatenate(labels) if len(labels) == len(parts) else None,
            self._reader,
            np.concatenate([part._rows for part in parts]),
            self._store,
            np.concatenate([part._positions for part in parts]),
            np.concatenate(hashes) if len(hashes) == len(parts) else None,
            np.concatenate(digests) if len(digests) == len(parts) else None,
        )

    def file(self, i: int) -> Path | None:
        """The file that holds image `i` alone; None in parquet, in a shard or elsewhere on the network."""
        return self._store.file(int(self._positions[i]))

    def stored_size(self, i: int) -> tuple[int, int] | None:
        """Height and width of image `i` as it is stored, not as it is kept; None where its header cannot be read."""
        try:
            header = read_header(self._store.head(int(self._positions[i])))
        except (UserError, OSError):
            return None
        return header.height, header.width


@dataclass(frozen=True)
class Dataset:
    """Images in three parts, and how they are read."""

    name: str  # safe as a folder's name
    path: str  # absolute, or a URL, or the name of a set
    fingerprint: str  # of the files and of how they are read: what a run knows its images by, see `known_as`
    train: Images
    val: Images  # the validation split: taken from train, for every choice
    test: Images | None  # never None from open_dataset, but may be empty
    class_names: tuple[str, ...] | None  # None: unlabelled
    channels: int
    image_size: int  # side in pixels of what the network sees
    unreadable: tuple[tuple[str, str], ...]  # (path, reason) of the images set aside
    idle_rows: tuple[str, ...] = ()  # paths in the CSV of labels that are no image's
    own_val: bool = False  # the source told which images are for validation
    kind: str = ""  # what it was read from, for people
    notes: tuple[Note, ...] = ()  # what was concluded
    passed_over: tuple[tuple[str, int], ...] = ()  # (what, how many) files or rows that are no images of the set
    stored_sizes: tuple[tuple[int, ...], ...] = ()  # height and width of the smallest image and of the largest
    range: str = AUTO  # settled, where there are images that it says something of: see Reading
    background: str = AUTO
    some_classes: bool = False  # training images of other classes were taken out
    content: str = ""  # "2:" and hex digits; of the files' content: what is kept in the cache goes by
    by_names: str = ""  # hex digits; of their names and sizes: what runs of before know

    def known_as(self, fingerprint: str) -> "Dataset | None":
        """The set with this fingerprint in place of its own where both are of the same images, else None.

        One that names no scheme is of a run that knew of names and sizes only, and is compared by these.
        """
        if fingerprint not in (self.fingerprint, self.content, self.by_names) or not fingerprint:
            return None
        return replace(self, fingerprint=fingerprint)

    def count_duplicates(self) -> Duplicates | None:
        """Images that are there twice; None where that was not looked at."""
        nothing = np.zeros(0, dtype=np.int64)
        train, val, test = (nothing if part is None else part.hashes for part in (self.train, self.val, self.test))
        return None if train is None or val is None or test is None else count_duplicates(train, val, test)

    def cached_as(self) -> str:
        """What is found out of the images is kept under this."""
        return self.content or self.fingerprint

    def count_labelled(self) -> tuple[int, int]:
        """(images with a label, images) of all parts."""
        parts = [part for part in (self.train, self.val, self.test) if part is not None]
        return sum(len(part.labelled()[0]) for part in parts), sum(map(len, parts))


def of_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """With only the training images of some classes; raises UserError for a class that there is not."""
    known = dataset.class_names or ()
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"--data.classes {unknown[0]} is not a class of {dataset.path}: "
            + (f"known are {', '.join(known[:20])}" if known else "its images have no labels")
        )
    numbers = [known.index(name) for name in names]

    def chosen(part: Images) -> Images:
        assert part.labels is not None
        return part.select(np.isin(part.labels, numbers))

    train, val = chosen(dataset.train), chosen(dataset.val)
    left = replace(dataset, train=train, val=val, some_classes=True)
    told = duplicate_notes(dataset.count_duplicates())
    others = tuple(note for note in dataset.notes if note not in told)
    return replace(left, notes=(*others, *duplicate_notes(left.count_duplicates())))


def sample_id(key: str) -> int:
    """A positive 63-bit hash of a sample's relative path, or of its shard and key: it survives added files."""
    return int(sample_ids([key])[0])


def sample_ids(keys: Iterable[str]) -> NDArray[np.int64]:
    """`sample_id` of many keys, (N,)."""
    blake2b = hashlib.blake2b
    digests = b"".join([blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest() for key in keys])
    halves = np.frombuffer(digests, dtype="<u8") >> np.uint64(1)  # 63 bits: a positive number
    return np.asarray(np.maximum(halves, np.uint64(1)), dtype=np.int64)
