"""A folder of image files, with or without train/ and test/ and class sub-folders."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data import storage
from pipeline.data.listing import NONE, OUTSIDE, Listing, Store, digest, number_classes, settle_splits, split_word
from pipeline.data.storage import File

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".npy")

_HEAD = 1 << 16  # bytes that hold the header of nearly every image


@dataclass(frozen=True)
class ImageFiles(Store):
    """One file an image."""

    root: str
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int) -> bytes:
        return storage.read(storage.join(self.root, self.keys[i]))

    def head(self, i: int) -> bytes | Path:
        path = storage.join(self.root, self.keys[i])
        return storage.read(path, 0, _HEAD) if storage.is_url(path) else Path(path)

    def file(self, i: int) -> Path | None:
        path = storage.join(self.root, self.keys[i])
        return None if storage.is_url(path) else Path(path)


def list_folder(root: str, files: list[File]) -> Listing:
    """Image files below `root`; labelled when each lies in a class folder and there are two or more of them."""
    keys = [file.path for file in files]
    words = [split_word(key.split("/")[0]) or NONE if "/" in key else NONE for key in keys]
    splits = settle_splits(words)
    labels, class_names = _classes(keys, splits)
    return Listing(
        keys=keys,
        splits=splits,
        labels=labels,
        class_names=class_names,
        store=ImageFiles(root, keys),
        identity=digest(f"{file.path}\0{file.size}" for file in files),
        stamp=digest(file.stamp for file in files),
    )


def _classes(keys: list[str], splits: list[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    names: list[str | None] = []
    for key, split in zip(keys, splits):
        folders = key.split("/")[:-1]
        if split != NONE:
            folders = folders[1:]  # without train/ or test/
        if not folders and split != OUTSIDE:
            return None, None
        names.append(None if split == OUTSIDE else folders[0])
    labels, class_names = number_classes(names)
    return (labels, class_names) if len(class_names) >= 2 else (None, None)
