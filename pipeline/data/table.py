"""Labels, groups and splits from a table: a CSV with the columns path, label, group and split, or one like it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.settings_files import cut
from rayssl.pipeline.data import storage
from rayssl.pipeline.data.labels import (
    Labels,
    NoClassError,
    label_of,
    like_ids,
    missing_note,
    notes_beside,
    number_labels,
    without_labels,
)
from rayssl.pipeline.data.layout import split_words
from rayssl.pipeline.data.listing import OUTSIDE, TEST, TRAIN, Listing, settle_splits
from rayssl.pipeline.data.matching import Match, match_paths
from rayssl.pipeline.data.reading import Note
from rayssl.pipeline.data.tabular import Table, read_table

# Names of columns; the first of each is the documented one and goes before the others.
PATHS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name", "img",
    "img_path",
)  # fmt: skip
IDS = ("image_id", "id", "id_code")  # paths where there is no other column of them
LABELS = ("label", "class", "category", "target", "y", "labels", "class_name")
GROUP, SPLIT = "group", "split"
_LIKE_GROUPS = ("patient", "patient_id", "subject", "subject_id", "group_id", "case_id")
_LABEL_FLAG, _SPLITS_FLAG = "--data.label-column", "--data.splits"
_OFFERED = "has a column 'split', which --data.splits"


@dataclass(frozen=True)
class _Matched:
    """A table and the image of every row."""

    table: Table
    paths: list[str]  # per row, as written
    match: Match
    header: tuple[Note, ...]

    @property
    def notes(self) -> tuple[Note, ...]:
        return (*self.header, *self.match.notes)

    def idle(self) -> list[str]:
        """Paths that are no image's."""
        return sorted({path for path, position in zip(self.paths, self.match.positions) if position is None})

    def per_image(self, listing: Listing, values: Sequence[Any]) -> list[Any]:
        """Values of the rows → one per image, None without a row."""
        given: list[Any] = [None] * len(listing.keys)
        for position, value in zip(self.match.positions, values):
            if position is not None:
                given[position] = value
        return given

    def check_once(self, listing: Listing, values: Sequence[Any]) -> None:
        """Refuse rows that say different things about one image."""
        first: dict[int, Any] = {}
        for position, value in zip(self.match.positions, values):
            if position is not None and first.setdefault(position, value) != value:
                raise UserError(
                    f"{self.table.path} says two things about {listing.keys[position]}: keep one of its rows"
                )


def apply_table(
    listing: Listing, path: str, root: str = "", label_column: str | None = None
) -> tuple[Listing, NDArray[np.int64] | None, list[str]]:
    """The listing with the labels of the table, the group of every image (None without that column), idle rows' paths.

    Paths are those of the listing, in one of the ways of `match_paths`, with `root` the folder of the data. An image
    without a row gets the label −1, and a group of its own; a row whose path is not an image's is idle.
    """
    found = _matched(listing, path, root, label_column)
    columns = found.table.columns
    label, notes = _label_column(found.table, label_column)
    if label is None and GROUP not in columns:
        raise UserError(
            f"{path} has the columns {cut(', '.join(columns))}: path and label (and group) are needed, "
            f"or the name of one with {_LABEL_FLAG}"
        )
    values = found.table.column(label) if label is not None else [None] * len(found.paths)
    labels = _labels_of(found.table, label, values)
    group_of = [_text(value) for value in found.table.column(GROUP)] if GROUP in columns else [""] * len(found.paths)
    found.check_once(listing, list(zip(labels, group_of)))
    listing = _with_labels(listing, found, label, labels, values)
    listing = replace(listing, notes=(*listing.notes, *found.notes, *notes, *_offers(found.table, path)))
    if GROUP not in columns:
        return listing, None, found.idle()
    # A NUL cannot be in a path: an image without a group cannot meet a named one.
    names = [name or f"\0{key}" for name, key in zip(found.per_image(listing, group_of), listing.keys)]
    _check_groups(listing, names, path)
    return listing, np.unique(names, return_inverse=True)[1].astype(np.int64), found.idle()


def apply_splits(
    listing: Listing, path: str, root: str = "", groups: NDArray[np.int64] | None = None
) -> tuple[Listing, list[str]]:
    """The listing with the splits of the table's columns path and split, and the paths of idle rows.

    A split is a word such as train, val or test; a group of `groups` (N,) must not be in both train and test. An image
    without a row, or with nothing there, is in no part. Without rows for testing those for validation serve as test.
    """
    found = _matched(listing, path, root, None)
    if SPLIT not in found.table.columns:
        raise UserError(f"{path} has the columns {cut(', '.join(found.table.columns))}: path and split are needed")
    said = [_text(value) for value in found.table.column(SPLIT)]
    words = [split_words([value]).get(value) for value in said]
    for value, word, line in zip(said, words, found.table.lines):
        if value and word is None:
            raise UserError(f"{path}, line {line}: '{value[:50]}' is no split: train, val or test")
    found.check_once(listing, words)
    splits = [word or OUTSIDE for word in found.per_image(listing, words)]
    if TRAIN not in splits:
        raise UserError(f"{path} says of no image that it is for training: train, val or test")
    notes = (
        *_without_offers(listing.notes),
        *found.notes,
        Note(f"splits: column 'split' of {path}", flag=_SPLITS_FLAG),
    )
    listing = replace(listing, splits=settle_splits(splits), notes=notes)
    if groups is not None:
        _check_groups(listing, groups.tolist(), path)
    return listing, found.idle()


def _matched(listing: Listing, path: str, root: str, label_column: str | None) -> _Matched:
    table, notes = _with_header(read_table(path, _known(label_column)), listing, label_column)
    below = _below(storage.normalise(path), root)
    options = [name for name in PATHS if name in table.columns] or [name for name in IDS if name in table.columns]
    if not options:
        raise UserError(f"{path} has the columns {cut(', '.join(table.columns))}: path and label are needed")
    if not table.rows:
        raise UserError(f"{path} has no rows")
    if PATHS[0] in options:
        options = options[:1]
    fitting: list[tuple[str, list[str], Match]] = []
    for name in options:
        paths = [_text(value) for value in table.column(name)]
        try:
            fitting.append((name, paths, match_paths(path, paths, listing.keys, root, below)))
        except UserError:
            if len(options) == 1 or (name == options[-1] and not fitting):
                raise
    if other := next((name for name, _, match in fitting if match.positions != fitting[0][2].positions), None):
        raise UserError(f"{path}: '{fitting[0][0]}' and '{other}' both name images: call one of them 'path'")
    return _Matched(table, fitting[0][1], fitting[0][2], notes)


def _known(label_column: str | None) -> tuple[str, ...]:
    return (*PATHS, *IDS, *LABELS, GROUP, SPLIT, *([label_column.lower()] if label_column else []))


def _with_header(table: Table, listing: Listing, label_column: str | None) -> tuple[Table, tuple[Note, ...]]:
    """The table; where its first line is no header but names an image, that line is a row like the others."""
    if set(table.columns) & set(_known(label_column)) or len(table.header) != 2:
        return table, ()
    try:
        match_paths(table.path, [str(table.header[0])], listing.keys, "")
    except UserError:
        return table, ()
    text = f"{table.path} has no header: its columns are taken for path and label"
    whole = Table(table.path, ["path", "label"], [table.header, *table.rows], [1, *table.lines])
    return whole, (Note(text, guess=True, flag="--data.labels"),)


def _below(where: str, root: str) -> str:
    """The folder of the table, relative to that of the data; empty where it is not below that."""
    folder, start = where.rpartition("/")[0], root.rstrip("/") + "/"
    return folder.removeprefix(start) if folder.startswith(start) else ""


def _label_column(table: Table, asked: str | None) -> tuple[str | None, tuple[Note, ...]]:
    if asked is not None:
        if asked.strip().lower() not in table.columns:
            raise UserError(f"{_LABEL_FLAG} {asked}: {table.path} has the columns {cut(', '.join(table.columns))}")
        return asked.strip().lower(), ()
    found = [name for name in LABELS if name in table.columns]
    if len(found) < 2:
        return (found[0] if found else None), ()
    if found[0] != LABELS[0]:
        raise UserError(f"{table.path}: '{found[0]}' and '{found[1]}' may be the labels: choose with {_LABEL_FLAG}")
    others = ", ".join(f"'{name}'" for name in found[1:])
    return found[0], (Note(f"labels: column 'label'; there is {others} as well", guess=True, flag=_LABEL_FLAG),)


def _labels_of(table: Table, label: str | None, values: Sequence[Any]) -> list[str | None]:
    known: dict[str, str | None] = {}  # many rows, few classes
    found: list[str | None] = []
    for value, line in zip(values, table.lines):
        try:
            text = value if isinstance(value, str) else label_of(value) or ""
            if text not in known:
                known[text] = label_of(text)
            found.append(known[text])
        except NoClassError as error:
            raise UserError(
                f"{table.path}, line {line}: '{label}' holds {error}, whole numbers or texts are needed"
            ) from None
    return found


def _with_labels(
    listing: Listing, found: _Matched, column: str | None, labels: Sequence[str | None], values: Sequence[Any]
) -> Listing:
    numbered = number_labels(found.per_image(listing, labels))
    if column is None:
        return listing
    if numbered.numbers is None:  # and not what the folders are called: the table was asked
        numbered = without_labels(f"column '{column}' of {found.table.path} says nothing of any image")
    origin = Note(f"labels: column '{column}' of {found.table.path}", flag="--data.labels")
    used = [value for value, position in zip(values, found.match.positions) if position is not None]
    odd = (*missing_note(used, found.table.path), *_id_note(numbered, found.table.path, column))
    notes = (*((origin,) if numbered.numbers is not None else ()), *numbered.notes, *odd)
    return replace(
        listing, labels=numbered.numbers, class_names=numbered.class_names, notes=(*notes_beside(listing.notes), *notes)
    )


def _id_note(labels: Labels, path: str, column: str) -> tuple[Note, ...]:
    told = like_ids(labels, f"{path}: '{column}'")
    return () if told is None else (Note(f"{told}: they may be ids", guess=True, flag=_LABEL_FLAG),)


def _offers(table: Table, path: str) -> tuple[Note, ...]:
    """What else the table could be used for."""
    found = []
    if SPLIT in table.columns:
        found.append(Note(f"{path} {_OFFERED} {path} uses", flag=_SPLITS_FLAG))
    like = next((name for name in _LIKE_GROUPS if name in table.columns), None)
    if like is not None and GROUP not in table.columns:
        found.append(
            Note(f"{path}: images of one '{like}' may come into different parts; call it 'group' to keep them together")
        )
    return tuple(found)


def _without_offers(notes: Sequence[Note]) -> tuple[Note, ...]:
    """Notes without what offers splits: a table of them was given."""
    return tuple(note for note in notes if _OFFERED not in note.text)


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _check_groups(listing: Listing, groups: Sequence[object], path: str) -> None:
    split_of: dict[object, str] = {}
    for split, group, key in zip(listing.splits, groups, listing.keys):
        if split == OUTSIDE:
            continue
        if split_of.setdefault(group, split) != split and TEST in (split, split_of[group]):
            told = f"group '{group}'" if isinstance(group, str) else f"the group of {key}"
            raise UserError(f"{path} has images of {told} in both train and test: move one of them")
