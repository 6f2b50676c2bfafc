"""What a source of images has to tell: which images there are, and how to read one."""

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.data.reading import Note

TRAIN, VAL, TEST, NONE, OUTSIDE = "train", "val", "test", "", "outside"


_SPLIT_WORDS = {
    TRAIN: ("train", "training"),
    VAL: ("val", "valid", "validation", "dev"),
    TEST: ("test", "testing"),
}


class Contents(Protocol):
    """What the files of a set hold."""

    def digest(self) -> str:
        """Hex digest of it."""
        ...


class Store(ABC):
    """Encoded images by position. Picklable without open files; safe to read from several threads."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The encoded image at a position."""

    def head(self, i: int) -> bytes | Path:
        """Enough of the image for its header."""
        return self.read(i)

    def file(self, i: int) -> Path | None:
        """The file that holds this image alone, if there is one on this machine."""
        return None

    def stream(self, indices: Iterable[int]) -> Iterator[tuple[int, Callable[[], bytes]]]:
        """(position, how to read it) for ascending positions, with as much in memory as one block of the source."""
        for i in indices:
            yield i, functools.partial(self.read, i)

    def sample(self, n: int) -> NDArray[np.int64]:
        """About `n` positions, always the same ones, that are cheap to read together."""
        return np.sort(permutation(len(self), "sample")[:n])

    @abstractmethod
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Listing:
    """Every image of a source, before anything is read, left out or split. N images."""

    keys: list[str]  # N; relative path, or shard and key: what the sample's id is made of
    splits: list[str]  # N; TRAIN, VAL, TEST; NONE throughout where the source has no splits; OUTSIDE: in none of them
    labels: NDArray[np.int64] | None  # (N,); -1 where the source does not say
    class_names: tuple[str, ...] | None
    store: Store
    identity: str  # digest of names and sizes: the same on every machine, and all that runs of before know of a set
    stamp: str  # digest of the times of last change: tells that a file was replaced by one of equal size
    contents: Contents | None = None  # of the files; None for a set that its name tells
    digests: NDArray[np.uint8] | None = None  # (N, 16) of each image's own file; None where it has none
    kind: str = ""  # what it is, for people: a folder of images, parquet files …
    notes: tuple[Note, ...] = ()  # what was concluded
    passed_over: tuple[tuple[str, int], ...] = ()  # (what, how many) files or rows that are no images of the set


def split_word(name: str) -> str | None:
    """The split that a folder's name stands for."""
    return next((split for split, words in _SPLIT_WORDS.items() if name.lower() in words), None)


def split_of_file(path: str) -> str:
    """The split that a parquet file or shard belongs to, by its name (train-00000-of-00002.parquet) or its folder."""
    *folders, name = path.split("/")
    for part in [name, *reversed(folders)]:
        split = split_word(re.split(r"[^a-z]", part.lower())[0])
        if split is not None:
            return split
    return NONE


def settle_splits(splits: list[str]) -> list[str]:
    """Splits as found → as used: without a train part there are none; a validation part serves as test without one."""
    present = set(splits)
    if TRAIN not in present:
        return [NONE] * len(splits)
    renamed = {NONE: OUTSIDE}
    if TEST not in present:
        renamed[VAL] = TEST
    return [renamed.get(split, split) for split in splits]


def number_classes(names: list[str | None]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(labels with -1 for None, class names in order); whole numbers are ordered as numbers."""
    known = {name for name in names if name is not None}
    if all(re.fullmatch("-?[0-9]{1,1000}", name) for name in known):
        ordered = tuple(sorted(known, key=lambda name: (int(name), name)))
    else:
        ordered = tuple(sorted(known))
    position: dict[str | None, int] = {name: i for i, name in enumerate(ordered)}
    return np.array([position.get(name, -1) for name in names], dtype=np.int64), ordered
