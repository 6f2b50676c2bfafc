"""A folder of image files, with or without train/ and test/ and class sub-folders."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data import storage
from pipeline.data.listing import NONE, OUTSIDE, Listing, Store, number_classes, settle_splits, split_word
from pipeline.data.reading import Reading
from pipeline.data.storage import Files

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


def list_folder(root: str, files: Files, reading: Reading) -> Listing:
    """Image files below `root`; labelled when there are two or more class folders, but for those outside of these."""
    keys = files.paths
    folders = [key.rpartition("/")[0] for key in keys]
    word_of = {folder: split_word(folder.split("/")[0]) or NONE for folder in set(folders)}  # few folders, many files
    splits = settle_splits([word_of[folder] for folder in folders])
    labels, class_names = _classes(folders, splits)
    return Listing(
        keys=keys,
        splits=splits,
        labels=labels,
        class_names=class_names,
        store=ImageFiles(root, keys),
        identity=files.identity(),
        stamp=files.stamp(),
    )


def _classes(folders: list[str], splits: list[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    name_of = {folder: _class_of(folder, split) for folder, split in dict(zip(folders, splits)).items()}
    labels, class_names = number_classes([name_of[folder] for folder in folders])
    return (labels, class_names) if len(class_names) >= 2 else (None, None)


def _class_of(folder: str, split: str) -> str | None:
    names = folder.split("/")
    if split != NONE:
        names = names[1:]  # without train/ or test/
    return names[0] or None if names and split != OUTSIDE else None
