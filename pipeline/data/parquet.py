"""Parquet files with the image schema of the Hugging Face hub: `image: struct<bytes, path>` or binary, and a label."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import storage
from pipeline.data.listing import Listing, Store, number_classes, settle_splits, split_of_file
from pipeline.data.reading import Reading
from pipeline.data.storage import Files
from pipeline.errors import UserError
from pipeline.randomness import permutation

SUFFIXES = (".parquet",)

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


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
        return _row_group(self.files[self.file_of[group]], int(self.group_of[group]), self.column)


def list_parquet(root: str, files: Files, reading: Reading) -> Listing:
    """All rows of all files; the split is told by the names of the files."""
    image, label = _columns(storage.join(root, files[0].path))
    keys: list[str] = []
    words: list[str] = []
    found_labels: list[Any] = []
    names: list[str] | None = None
    groups: list[tuple[int, int, int]] = []  # file, row group, rows
    for number, file in enumerate(files):
        part = _File(storage.join(root, file.path), image, label)
        keys += [f"{file.path}/{key}" for key in part.keys]
        words += [split_of_file(file.path)] * len(part.keys)
        found_labels += part.labels
        names = names or part.class_names
        groups += [(number, group, rows) for group, rows in enumerate(part.group_rows) if rows]
    labels, class_names = _labels(found_labels, names) if label is not None else (None, None)
    table = np.array(groups, dtype=np.int64).reshape(-1, 3)
    return Listing(
        keys=keys,
        splits=settle_splits(words),
        labels=labels,
        class_names=class_names,
        store=Rows(
            files=[storage.join(root, file.path) for file in files],
            column=image,
            file_of=table[:, 0],
            group_of=table[:, 1],
            starts=np.concatenate([[0], np.cumsum(table[:, 2])]).astype(np.int64),
        ),
        identity=files.identity(),
        stamp=files.stamp(),
    )


class _File:
    """What one file tells without reading its images."""

    def __init__(self, path: str, image: str, label: str | None) -> None:
        import pyarrow as pa

        with _opened(path) as file:
            schema = file.schema_arrow
            if image not in schema.names or (label is not None and label not in schema.names):
                wanted = image if image not in schema.names else label
                raise UserError(f"{path} has no column '{wanted}', only {', '.join(schema.names)}")
            named = pa.types.is_struct(schema.field(image).type) and "path" in _subfields(schema.field(image))
            columns = [f"{image}.path"] * named + [label] * (label is not None)
            table = file.read(columns=columns, use_threads=False) if columns else None
            self.group_rows = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
            self.class_names = _class_names(schema, label)
        n = sum(self.group_rows)
        paths = [row["path"] for row in table.column(image).to_pylist()] if named and table is not None else []
        # Without a name for every row, or with one given twice, the row's number has to do.
        self.keys = paths if len(set(paths)) == n and None not in paths else [str(row) for row in range(n)]
        self.labels = table.column(label).to_pylist() if label is not None and table is not None else []


def _columns(path: str) -> tuple[str, str | None]:
    import pyarrow as pa

    with _opened(path) as file:
        schema = file.schema_arrow
    images = [
        field.name
        for field in schema
        if pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
        or (pa.types.is_struct(field.type) and "bytes" in _subfields(field))
    ]
    if not images:
        raise UserError(
            f"{path} has no column of images (image: struct<bytes, path> or binary), only {', '.join(schema.names)}"
        )
    image = next((name for name in _IMAGE_COLUMNS if name in images), images[0])
    classes = [name for name in _features(schema) if _class_names(schema, name)]
    label = next((name for name in [*_LABEL_COLUMNS, *classes] if name in schema.names and name != image), None)
    return image, label


def _labels(found: list[Any], names: list[str] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels may be numbers (−1 or null: not told) or texts."""
    if any(isinstance(label, str) for label in found):
        return number_classes([None if label is None else str(label) for label in found])
    # pandas makes floats of whole numbers where one of them is missing
    whole = [-1 if label is None or label != label else label for label in found]
    wrong = next((x for x in whole if not isinstance(x, int) and not (isinstance(x, float) and x.is_integer())), None)
    if wrong is not None:
        raise UserError(f"the label column holds {type(wrong).__name__} values: whole numbers or texts are needed")
    labels = np.array(whole, dtype=np.int64)
    count = max(int(labels.max(initial=-1)) + 1, len(names or ()))
    return labels, tuple(names) if names and len(names) == count else tuple(str(i) for i in range(count))


def has_images(path: str) -> bool:
    """Whether a file has a column that may hold images."""
    try:
        _columns(path)
    except UserError:
        return False
    return True


def _subfields(field: Any) -> list[str]:
    return [field.type.field(i).name for i in range(field.type.num_fields)]


def _features(schema: Any) -> dict[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    feature = _features(schema).get(label or "")
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else None


def _opened(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if storage.is_url(path):
            return pq.ParquetFile(storage.open_binary(path), pre_buffer=False)
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


@functools.lru_cache(maxsize=4)
def _row_group(path: str, group: int, column: str) -> Any:
    import pyarrow as pa

    with _opened(path) as file:
        images = file.read_row_group(group, columns=[column], use_threads=False).column(column).combine_chunks()
    return images.field("bytes") if pa.types.is_struct(images.type) else images


def _bytes_of(images: Any, row: int) -> bytes:
    data = images[row].as_py()
    if data is None:
        raise UserError("the row holds no bytes")
    return bytes(data)
