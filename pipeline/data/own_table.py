"""The table that the Hugging Face hub has beside images: metadata.csv or metadata.jsonl with the column file_name."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import storage
from rayssl.pipeline.data.folder import ImageFiles
from rayssl.pipeline.data.labels import NoClassError, label_of, missing_note, notes_beside, number_labels
from rayssl.pipeline.data.listing import Listing
from rayssl.pipeline.data.matching import match_paths
from rayssl.pipeline.data.reading import Note
from rayssl.pipeline.data.tabular import Table, read_table

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
_FLAG = "--data.labels"


@dataclass(frozen=True)
class _Given:
    """What the tables say of the images."""

    labels: list[str | None]  # per image
    notes: tuple[Note, ...]


def apply_own_tables(listing: Listing, root: str, label_names: Sequence[str]) -> tuple[Listing, str]:
    """The listing with the labels of tables that lie in the folder, and a digest of these ("" where none is used).

    They are looked for in the folder of the data and in those with images. Raises UserError where the class folders
    say something else.
    """
    if not isinstance(listing.store, ImageFiles) or storage.is_url(root):
        return listing, ""
    paths = _tables(root, listing.keys)
    try:
        tables = [read_table(path, (FILE_NAME,)) for path in paths]
    except UserError as error:
        return _noted(listing, Note(f"not used as labels: {error}", flag=_FLAG)), ""
    tables = [table for table in tables if FILE_NAME in table.columns and table.rows]
    if not tables:
        return listing, ""
    if "split" in tables[0].columns:
        told = f"{tables[0].path} has a column 'split', which --data.splits {tables[0].path} uses"
        listing = _noted(listing, Note(told, flag="--data.splits"))
    column = next((name for name in label_names if all(name in table.columns for table in tables)), None)
    if column is None:
        others = ", ".join(name for name in tables[0].columns if name != FILE_NAME) or "none"
        told = f"{tables[0].path} has no column of labels ({others})"
        return _noted(listing, Note(f"{told}: --data.labels FILE with --data.label-column takes one", flag=_FLAG)), ""
    try:
        given = _labels(listing, root, tables, column)
    except (UserError, NoClassError) as error:
        return _noted(listing, Note(f"{tables[0].path} is not used as labels: {error}", guess=True, flag=_FLAG)), ""
    return _decided(listing, tables, column, given)


def _tables(root: str, keys: Sequence[str]) -> list[str]:
    """Their paths, beside images or at the root; of several in one folder the first of NAMES."""
    folders = sorted({"", *(key.rpartition("/")[0] for key in keys)})
    found = [[path for name in NAMES if os.path.isfile(path := os.path.join(root, folder, name))] for folder in folders]
    return [paths[0] for paths in found if paths]


def _labels(listing: Listing, root: str, tables: Sequence[Table], column: str) -> _Given:
    labels: list[str | None] = [None] * len(listing.keys)
    notes: list[Note] = []
    for table in tables:
        below = os.path.relpath(os.path.dirname(table.path), root)
        paths = [os.path.join(below, str(path).strip()) for path in table.column(FILE_NAME)]
        match = match_paths(table.path, paths, listing.keys, root)
        values = table.column(column)
        for position, value in zip(match.positions, values):
            if position is not None:
                labels[position] = label_of(value)
        idle = match.positions.count(None)
        notes += [*match.notes, *missing_note(values, table.path)]
        notes += [Note(f"{idle:,} rows of {table.path} are of no image")] * (idle > 0)
    return _Given(labels, tuple(notes))


def _decided(listing: Listing, tables: Sequence[Table], column: str, given: _Given) -> tuple[Listing, str]:
    numbered = number_labels(given.labels)
    if numbered.numbers is None:
        return listing, ""
    path = tables[0].path + (f" and {len(tables) - 1} more tables" if len(tables) > 1 else "")
    if listing.labels is None:
        note = Note(f"labels: column '{column}' of {path}", guess=True, flag=_FLAG)
        notes = (*notes_beside(listing.notes), note, *given.notes, *numbered.notes)
        listing = replace(listing, labels=numbered.numbers, class_names=numbered.class_names, notes=notes)
        return listing, hashlib.sha256(b"".join(storage.read(table.path) for table in tables)).hexdigest()
    if not _alike(listing.labels, numbered.numbers):
        raise UserError(
            f"the folders and column '{column}' of {path} both say what the labels are, and not the same: "
            f"give {_FLAG} folder or {_FLAG} {tables[0].path}"
        )
    return _noted(listing, Note(f"column '{column}' of {path} agrees with the class folders")), ""


def _alike(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Whether two numberings put the same images together, of those that both have a label for."""
    both = (one >= 0) & (other >= 0)
    pairs = np.unique(np.stack([one[both], other[both]]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


def _noted(listing: Listing, note: Note) -> Listing:
    return replace(listing, notes=(*listing.notes, note))
