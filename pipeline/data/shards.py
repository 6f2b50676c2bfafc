"""WebDataset tar shards: `key.jpg` with its label in `key.cls` or `key.json`."""

import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import folder, storage
from pipeline.data.listing import Listing, Store, number_classes, settle_splits, split_of_file
from pipeline.data.reading import Reading
from pipeline.data.storage import Files
from pipeline.errors import UserError

SUFFIXES = (".tar",)


@dataclass(frozen=True)
class Members(Store):
    """Members of uncompressed tar files, read by their position in the file."""

    files: list[str]
    file_of: NDArray[np.int64]  # (N,)
    starts: NDArray[np.int64]  # (N,) first byte in its file
    sizes: NDArray[np.int64]  # (N,) bytes

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, i: int) -> bytes:
        start = int(self.starts[i])
        return storage.read(self.files[self.file_of[i]], start, start + int(self.sizes[i]))


@dataclass
class _Found:
    keys: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    where: list[tuple[int, int, int]] = field(default_factory=list)  # file, start, size


def list_shards(root: str, files: Files, reading: Reading) -> Listing:
    """All images of all shards; the split is told by the names of the shards."""
    found = _Found()
    for number, file in enumerate(files):
        _scan(storage.join(root, file.path), file.path, number, found)
    if not found.keys:
        raise UserError(f"{storage.join(root, files[0].path)} holds no image: key.jpg, key.png … are needed")
    table = np.array(found.where, dtype=np.int64)
    labelled = any(label is not None for label in found.labels)
    labels, class_names = number_classes(found.labels) if labelled else (None, None)
    return Listing(
        keys=found.keys,
        splits=settle_splits(found.words),
        labels=labels,
        class_names=class_names,
        store=Members([storage.join(root, file.path) for file in files], table[:, 0], table[:, 1], table[:, 2]),
        identity=files.identity(),
        stamp=files.stamp(),
    )


def _scan(path: str, relative: str, number: int, found: _Found) -> None:
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str | None] = {}
    try:
        with storage.open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folders, slash, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                key = folders + slash + stem
                if f".{suffix.lower().rpartition('.')[2]}" in folder.SUFFIXES:
                    images.setdefault(key, (member.name, member.offset_data, member.size))
                elif suffix in ("cls", "json"):
                    labels[key] = _label(suffix, tar.extractfile(member)) or labels.get(key)
    except tarfile.TarError as error:
        raise UserError(f"{path} cannot be read as a tar file: {error}") from None
    split = split_of_file(relative)
    for key, (name, start, size) in images.items():
        found.keys.append(f"{relative}/{name}")
        found.words.append(split)
        found.labels.append(labels.get(key))
        found.where.append((number, start, size))


def _label(suffix: str, file: Any) -> str | None:
    text = file.read().decode("utf-8", "replace").strip()
    if suffix == "cls":
        return text or None
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        return None
    label = values.get("label", values.get("cls")) if isinstance(values, dict) else None
    return None if label is None else str(label)
