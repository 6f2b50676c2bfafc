"""What tables say of a listing: the ones that the user names, or one that lies beside the images."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.data import storage
from rayssl.pipeline.data.file_names import masks_in_names, offered_by_names, splits_in_names
from rayssl.pipeline.data.folder import ImageFiles
from rayssl.pipeline.data.listing import NONE, Listing
from rayssl.pipeline.data.own_table import apply_own_tables
from rayssl.pipeline.data.reading import AUTO, WORDS, Reading
from rayssl.pipeline.data.table import LABELS, apply_splits, apply_table


@dataclass(frozen=True)
class Tabled:
    """A listing with what its tables say."""

    listing: Listing
    groups: NDArray[np.int64] | None  # (N,); None: nobody told
    idle: list[str]  # paths in the tables that are no image's
    digest: str  # of the tables, "" where there are none


def apply_tables(listing: Listing, path: str, reading: Reading) -> Tabled:
    """The listing with the labels, groups and splits of the tables; `path` is that of the data. Raises UserError."""
    root = listing.store.root if isinstance(listing.store, ImageFiles) else storage.fixed_part(path)
    groups, idle, said = None, list[str](), ""
    if reading.labels not in WORDS:
        listing, groups, idle = apply_table(listing, reading.labels, root, reading.label_column)
        said = _digest(reading.labels)
        if reading.label_column is not None:
            said = digest([said, reading.label_column])
    elif reading.labels == AUTO:
        listing, said = apply_own_tables(listing, root, LABELS)
        listing = _with_offer(listing)
    if isinstance(listing.store, ImageFiles):
        listing = _with_names_told(listing)
    if reading.splits not in WORDS:
        listing, more = apply_splits(listing, reading.splits, root, groups)
        idle = sorted({*idle, *more})
        said = digest([said, "splits", _digest(reading.splits)])
    return Tabled(listing, groups, idle, said)


def _with_offer(listing: Listing) -> Listing:
    offer = offered_by_names(listing.keys) if listing.labels is None else None
    return listing if offer is None else replace(listing, notes=(*listing.notes, offer))


def _with_names_told(listing: Listing) -> Listing:
    """What file names seem to tell of splits, where there are none, and of masks."""
    found = [masks_in_names(listing.keys), None if set(listing.splits) - {NONE} else splits_in_names(listing.keys)]
    return replace(listing, notes=(*listing.notes, *(note for note in found if note is not None)))


def _digest(table: str) -> str:
    return hashlib.sha256(storage.read(storage.normalise(table))).hexdigest()
