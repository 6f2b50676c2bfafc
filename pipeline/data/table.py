"""Labels and groups from a CSV with the columns path, label and, optionally, group."""

import csv
import io
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.data import storage
from pipeline.data.listing import OUTSIDE, TEST, Listing, number_classes
from pipeline.errors import UserError


def apply_table(listing: Listing, path: str) -> tuple[Listing, NDArray[np.int64] | None, list[str]]:
    """The listing with the labels of the CSV, the group of every image (None without that column), idle rows' paths.

    Paths are those of the listing. An image without a row gets the label −1, and a group of its own; a row whose path
    is no image's is idle.
    """
    rows = _read(path)
    if not {"label", "group"} & set(rows[0]):
        raise UserError(f"{path} has the columns {', '.join(rows[0])}: path and label (and group) are needed")
    by_path: dict[str, dict[str, str]] = {}
    for row in rows:
        row["path"] = row["path"].removeprefix("./").replace("\\", "/")
        first = by_path.setdefault(row["path"], row)
        if any(first.get(name) != row.get(name) for name in ("label", "group")):
            raise UserError(f"{path} says two things about {row['path']}: keep one of its rows")
    matched = [by_path.get(key) for key in listing.keys]
    if not any(matched):
        raise UserError(
            f"{path} names none of the {len(listing.keys)} images: its paths look like '{rows[0]['path']}', "
            f"the images' like '{listing.keys[0]}'"
        )
    idle = sorted(by_path.keys() - set(listing.keys))
    if "label" in rows[0]:
        labels, class_names = number_classes([(row["label"] or None) if row else None for row in matched])
        if class_names:
            listing = replace(listing, labels=labels, class_names=class_names)
    if "group" not in rows[0]:
        return listing, None, idle
    # A NUL cannot be in a path: an image without a group cannot meet a named one.
    names = [row["group"] if row and row["group"] else f"\0{key}" for row, key in zip(matched, listing.keys)]
    groups = np.unique(names, return_inverse=True)[1].astype(np.int64)
    _check_splits(listing, names, path)
    return listing, groups, idle


def _read(path: str) -> list[dict[str, str]]:
    try:
        text = storage.read(storage.normalise(path)).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: a CSV with the columns path and label is needed") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a CSV: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    columns = [name.strip().lower() for name in reader.fieldnames or []]
    if "path" not in columns:
        raise UserError(f"{path} has the columns {', '.join(columns) or '(none)'}: path and label are needed")
    reader.fieldnames = columns
    rows = [{name: (row[name] or "").strip() for name in columns} for row in reader]
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def _check_splits(listing: Listing, groups: list[str], path: str) -> None:
    split_of: dict[str, str] = {}
    for split, group in zip(listing.splits, groups):
        if split == OUTSIDE:
            continue
        if split_of.setdefault(group, split) != split and TEST in (split, split_of[group]):
            raise UserError(f"{path} has images of group '{group}' in both train and test: move one of them")
