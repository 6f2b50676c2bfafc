"""What is known of the indexed images, by id, without their vectors: paths, labels, splits, what their files hold.

Shapes: N images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.run.folder import own_data
from rayssl.pipeline.search.embeddings import CONTENT, files_of, has_contents, known_labels, read_columns

VALIDATION = "val"
ADDED = "added"  # the split of images that came after the run: nothing is evaluated on them
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "path": pa.string(),  # relative to the run's images where it lies among them, else absolute
        "label": pa.int64(),  # null for none
        "split": pa.string(),
        "content": CONTENT,  # null where it is not known
        "source": pa.string(),  # the folder or file that was added; null for the run's own images
    }
)

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """What an answer tells of an image. Columns stay in Arrow's memory: only what is told becomes objects."""

    table: pa.Table  # N rows; at least the columns id, path and label
    class_names: tuple[str, ...] | None
    data_fingerprint: str
    data_path: str
    place: str | None = None  # where that folder is by now, if that was told
    columns: pa.Table | None = None  # id, and what else is known of images, in other rows

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def ids(self) -> Ints:
        """(N,)."""
        return ints(self.table["id"])

    @property
    def paths(self) -> pa.ChunkedArray:
        """N texts."""
        return self.table["path"]

    @cached_property
    def labels(self) -> Ints:
        """(N,), −1 for none."""
        return known_labels(self.table["label"], Path("items"))

    @cached_property
    def _order(self) -> Ints:
        return np.argsort(self.ids, kind="stable")  # quick where the rows are ascending already

    def rows(self, ids: Ints) -> Ints:
        """The rows of ids, in the same shape; -1 for one that is not known."""
        if not len(self.ids):
            return np.full_like(ids, -1)
        places = np.searchsorted(self.ids, ids, sorter=self._order).clip(max=len(self.ids) - 1)
        rows = self._order[places]
        return np.where(self.ids[rows] == ids, rows, -1)

    def path(self, row: int) -> str:
        """The path of the image in a row."""
        return str(self.paths[row].as_py())

    def told(self, row: int) -> dict[str, Any]:
        """What an answer tells of the image."""
        return {"path": self.path(row), "label": self.label(row)}

    def label(self, row: int) -> str | int | None:
        """The name of its class, else the label's number, else None."""
        label = int(self.labels[row])
        if label < 0:
            return None
        return label if self.class_names is None else self.class_names[label]


def ints(column: pa.ChunkedArray) -> Ints:
    """(N,) of a column without nulls, without a copy where it is in one piece."""
    chunks = [np.frombuffer(one.buffers()[1], np.int64)[one.offset :][: len(one)] for one in column.chunks if len(one)]
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)


def floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """(N, D) of a column of fixed-size lists without nulls, without a copy where it is in one piece."""
    dim, found = int(column.type.list_size), []
    for chunk in column.chunks:  # `flatten` imports pyarrow.compute, and so pandas where that is installed
        values, start = chunk.values, chunk.values.offset + chunk.offset * dim
        flat = np.frombuffer(values.buffers()[1] or b"", np.float32)[start:][: len(chunk) * dim]
        found.append(flat.reshape(-1, dim))
    if len(found) == 1:
        return found[0]
    return np.concatenate(found) if found else np.zeros((0, dim), np.float32)


def load_items(folder: Path, run: Path, *, whole: bool = False) -> Items:
    """Those of all embeddings in a folder of a run; raises UserError where there are none, or they do not fit.

    `whole`: with all columns of `SCHEMA`, for an index; else those that an answer needs.
    """
    paths = files_of(folder)
    if not paths:
        raise MissingError(f"{folder} holds no embeddings: `rayssl embed {run}` writes them")
    names = ("id", "path", "label")
    found = [read_columns(path, (*names, "content") if whole and has_contents(path) else names) for path in paths]
    tables, facts = zip(*found, strict=True)
    _check_alike(facts, folder, run)
    if whole:
        splits = [splits_of(one, len(table), run) for table, one in zip(tables, facts, strict=True)]
        tables = tuple(_completed(table, split) for table, split in zip(tables, splits, strict=True))
    items = Items(
        pa.concat_tables([table.replace_schema_metadata(None) for table in tables]),
        facts[0]["class_names"],
        facts[0]["data_fingerprint"],
        facts[0]["data_path"],
    )
    if len(np.unique(items.ids)) != len(items):
        raise UserError(f"the files in {folder} hold an id twice: `rayssl embed {run}` writes them again")
    return items


def splits_of(facts: Mapping[str, Any], n: int, run: Path) -> list[str]:
    """The split of each of the n images of a file of embeddings: among the run's training images those of validation
    come last."""
    own = own_data(run)
    train = min(n, int(own["train"])) if (facts["split"], facts["data"]) == ("train", own["name"]) else n
    return [facts["split"]] * train + [VALIDATION] * (n - train)


def _completed(table: pa.Table, splits: list[str]) -> pa.Table:
    """With the columns of `SCHEMA`."""
    n = len(table)
    table = table.append_column("split", pa.array(splits, pa.string()))
    table = table.append_column("source", pa.nulls(n, pa.string()))
    if "content" not in table.column_names:
        table = table.append_column("content", pa.nulls(n, CONTENT))
    return table.select(SCHEMA.names).cast(SCHEMA)


def _check_alike(facts: Sequence[dict[str, Any]], folder: Path, run: Path) -> None:
    for name in ("class_names", "encoder_hash", "data_fingerprint"):
        if any(one[name] != facts[0][name] for one in facts):
            raise UserError(f"the files in {folder} differ in {name}: `rayssl embed {run}` writes them again")
