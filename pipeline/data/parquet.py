"""Parquet files with the image schema of the Hugging Face hub: `image: struct<bytes, path>` or binary, and a label."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.data import storage
from rayssl.pipeline.data.columns import (
    LABEL_FLAG,
    Part,
    check_rows,
    choose_image,
    choose_label,
    image_of_old,
    label_of_old,
    open_part,
    read_columns,
    read_values,
)
from rayssl.pipeline.data.content import Contents
from rayssl.pipeline.data.labels import Labels, NoClassError, label_of, like_ids, missing_note, without_labels
from rayssl.pipeline.data.layout import file_splits
from rayssl.pipeline.data.listing import Listing, Store
from rayssl.pipeline.data.named_labels import by_names
from rayssl.pipeline.data.reading import WORDS, Note, Reading
from rayssl.pipeline.data.storage import Files
from rayssl.pipeline.data.told_splits import SPLIT, Splits, told_splits

SUFFIXES = (".parquet",)


@dataclass(frozen=True)
class Rows(Store):
    """Rows of parquet files, read a row group at a time."""

    files: list[str]
    column: str
    file_of: NDArray[np.int64]  # (G,) of every row group
    group_of: NDArray[np.int64]  # (G,) its number inside its file
    starts: NDArray[np.int64]  # (G + 1,) first row of every row group, counted over all files

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, i: int) -> bytes:
        group = self._group(i)
        return _bytes_of(self._images(group), i - int(self.starts[group]))

    def stream(self, indices: Iterable[int]) -> Iterator[tuple[int, Callable[[], bytes]]]:
        for group, members in groupby(indices, key=self._group):
            images = self._images(group)
            for i in members:
                yield i, functools.partial(_bytes_of, images, i - int(self.starts[group]))

    def sample(self, n: int) -> NDArray[np.int64]:
        # The first rows of row groups drawn at random, at most eight of them: each has to be read whole.
        groups = permutation(len(self.file_of), "sample")[:8]
        each = -(-n // len(groups))
        rows = [np.arange(self.starts[g], min(self.starts[g] + each, self.starts[g + 1])) for g in groups]
        return np.sort(np.concatenate(rows)).astype(np.int64)

    def _group(self, i: int) -> int:
        return int(np.searchsorted(self.starts, i, side="right")) - 1

    def _images(self, group: int) -> Any:
        path = self.files[self.file_of[group]]
        return _row_group(path, int(self.group_of[group]), self.column, storage.last_change(path))


def list_parquet(root: str, files: Files, reading: Reading) -> Listing:
    """All rows of all files; the split is told by the names of the files."""
    _check_words(reading)
    parts = [open_part(storage.join(root, file.path), file.path) for file in files]
    for part in parts:
        check_rows(part)
    image = choose_image(parts, reading.image_column)
    label, notes = choose_label(parts, image.name, reading)
    by_file, told = file_splits(root, [part.relative for part in parts], reading)
    split = SPLIT if reading.splits in WORDS and all(part.holds_texts(SPLIT) for part in parts) else None
    contents = [_Content(part, image.name, label, split) for part in parts]
    labels = _labels(parts, contents, label, reading)
    chosen = notes if label is None or labels.numbers is not None else ()
    of_files = [split for content, split in zip(contents, by_file) for _ in range(content.part.rows)]
    splits = told_splits([value for content in contents for value in content.splits], of_files, reading)
    groups = [(i, group, rows) for i, content in enumerate(contents) for group, rows in content.groups() if rows]
    table = np.array(groups, dtype=np.int64).reshape(-1, 3)
    return Listing(
        keys=[f"{part.relative}/{key}" for part, content in zip(parts, contents) for key in content.keys],
        splits=splits.of_images,
        labels=labels.numbers,
        class_names=labels.class_names,
        store=Rows(
            files=[part.path for part in parts],
            column=image.name,
            file_of=table[:, 0],
            group_of=table[:, 1],
            starts=np.concatenate([[0], np.cumsum(table[:, 2])]).astype(np.int64),
        ),
        identity=_identity(files, parts, image.name, label, splits),
        stamp=files.stamp(),
        notes=(*image.notes, *told, *splits.notes, *chosen, *labels.notes),
        contents=Contents(root, files),
    )


class _Content:
    """What one file tells without reading its images."""

    def __init__(self, part: Part, image: str, label: str | None, split: str | None) -> None:
        label = label if label in part.names else None
        named = part.has_paths(image)
        columns = [f"{image}.path"] * named + [name for name in (label, split) if name is not None]
        n = part.rows
        paths: list[str | None] = []
        self.part, self.values = part, [None] * n
        self.splits: list[str | None] = [None] * n
        if columns:
            found = dict(read_values(part.path, columns, part.footer))
            paths = [_name_in(row) for row in found[image]] if named else []
            self.values = found[label] if label is not None else self.values
            self.splits = found[split] if split is not None else self.splits
        # Without a name for every row, or with one given twice, the row's number has to do.
        self.keys = paths if len(set(paths)) == n and None not in paths else [str(row) for row in range(n)]

    def groups(self) -> list[tuple[int, int]]:
        """(number, rows) of every row group."""
        footer = self.part.footer
        return [(group, footer.row_group(group).num_rows) for group in range(footer.num_row_groups)]


def _name_in(row: dict[str, Any] | None) -> str | None:
    name = None if row is None else row["path"]
    return name if isinstance(name, str) else None


def _check_words(reading: Reading) -> None:
    if reading.labels == "folder":
        raise UserError("--data.labels folder is for folders of images: parquet files have --data.label-column")


def _identity(files: Files, parts: list[Part], image: str, label: str | None, splits: Splits) -> str:
    """Of names and sizes, and of the columns where these are not those that are taken by themselves."""
    identity = files.identity()
    if image != image_of_old(parts[0]):
        identity = digest([identity, "image column", image])
    if label is not None and label != label_of_old(parts[0], image):
        identity = digest([identity, "label column", label])
    if splits.by_column:
        identity = digest([identity, "split column"])
    return identity


def has_images(path: str) -> bool:
    """Whether a file has a column that may hold images."""
    try:
        return bool(open_part(path, path).images())
    except UserError:
        return False


def _labels(parts: list[Part], contents: list[_Content], label: str | None, reading: Reading) -> Labels:
    """The labels of all files by what they mean: numbers by the class names of their own file."""
    if label is None:
        return Labels(None, None)
    asked = reading.label_column == label and reading.labels in WORDS
    try:
        found = [[label_of(value) for value in content.values] for content in contents]
    except NoClassError as error:
        if asked:
            raise UserError(
                f"{LABEL_FLAG} {label}: the column holds {error}, whole numbers or texts are needed"
            ) from None
        return without_labels(f"column '{label}' holds {error}")
    missing = missing_note(
        [value for content in contents for value in content.values if _odd(value)], f"column '{label}'"
    )
    labels = by_names(parts, found, label)
    named = any(part.class_names(label) for part in parts)
    if not named and (told := like_ids(labels, f"column '{label}'")) is not None:
        if not asked:
            return without_labels(f"{told}, like an id")
        labels = replace(labels, notes=(*labels.notes, Note(f"{told}: they may be ids", flag=LABEL_FLAG)))
    return replace(labels, notes=(*labels.notes, *missing))


def _odd(value: object) -> bool:
    """Whether a value may stand for no label by the look of it; null and NaN go without saying."""
    return isinstance(value, str) or value == -1


@functools.lru_cache(maxsize=4)
def _row_group(path: str, group: int, column: str, changed: tuple[int, ...]) -> Any:
    import pyarrow as pa

    images = read_columns(path, [column], group, _footer(path, changed)).column(column).combine_chunks()
    return images.field("bytes") if pa.types.is_struct(images.type) else images


@functools.lru_cache(maxsize=64)
def _footer(path: str, changed: tuple[int, ...]) -> Any:
    return open_part(path, path).footer


def _bytes_of(images: Any, row: int) -> bytes:
    data = images[row].as_py()
    if data is None:
        raise UserError("the row holds no bytes")
    return bytes(data)
