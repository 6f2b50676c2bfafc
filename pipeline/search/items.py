"""Paths and labels of the indexed images by id, without their vectors.

Shapes: N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import MissingError, UserError
from rayssl.pipeline.search.embeddings import files_of, known_labels, read_columns

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """What an answer tells of an image. Paths stay in Arrow's memory: only those that are told become objects."""

    ids: Ints  # (N,)
    paths: pa.ChunkedArray  # N texts
    labels: Ints  # (N,), -1 for none
    class_names: tuple[str, ...] | None
    data_fingerprint: str
    data_path: str

    @cached_property
    def _order(self) -> Ints:
        return np.argsort(self.ids)

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


def load_items(folder: Path, run: Path) -> Items:
    """Those of all embeddings in a folder of a run; raises UserError where there are none, or they do not fit."""
    paths = files_of(folder)
    if not paths:
        raise MissingError(f"{folder} holds no embeddings: `rayssl embed {run}` writes them")
    tables, facts = zip(*(read_columns(path, ("id", "path", "label")) for path in paths), strict=True)
    _check_alike(facts, folder, run)
    labels = [known_labels(table["label"], path) for table, path in zip(tables, paths, strict=True)]
    return Items(
        ids=np.concatenate([np.asarray(np.from_dlpack(table["id"].combine_chunks())) for table in tables]),
        paths=pa.chunked_array([chunk for table in tables for chunk in table["path"].chunks], pa.string()),
        labels=np.concatenate(labels),
        class_names=facts[0]["class_names"],
        data_fingerprint=facts[0]["data_fingerprint"],
        data_path=facts[0]["data_path"],
    )


def _check_alike(facts: Sequence[dict[str, Any]], folder: Path, run: Path) -> None:
    for name in ("class_names", "encoder_hash", "data_fingerprint"):
        if any(one[name] != facts[0][name] for one in facts):
            raise UserError(f"the files in {folder} differ in {name}: `rayssl embed {run}` writes them again")
