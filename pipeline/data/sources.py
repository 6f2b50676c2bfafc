"""From what the user calls the data to a listing of its images."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.data import folder, parquet, shards, storage
from pipeline.data.listing import NONE, Listing, split_of_file
from pipeline.data.named import NAMED, list_named
from pipeline.data.reading import Reading
from pipeline.data.storage import Files
from pipeline.errors import UserError, nearest

# Endings of its files → what lists them, given their root. A new kind of source is one function and one line;
# a new data set with a name is one function and one line in NAMED.
SOURCES: tuple[tuple[tuple[str, ...], Callable[[str, Files, Reading], Listing]], ...] = (
    (folder.SUFFIXES, folder.list_folder),
    (parquet.SUFFIXES, parquet.list_parquet),
    (shards.SUFFIXES, shards.list_shards),
)


@dataclass(frozen=True)
class Source:
    """A listing and what it is called."""

    name: str  # safe as a folder's name
    path: str  # absolute, or a URL, or the name of a data set
    listing: Listing


def find_source(path: str, reading: Reading) -> Source:
    """The images behind a path, a pattern, a URL or a name. Raises UserError where there are none.

    A name goes before a folder of that name in the working directory, which is `./name`.
    """
    if path in NAMED:
        return Source(path, path, list_named(path))
    where = storage.normalise(path)
    _check_name(path, where)
    root, files = storage.find(where)
    for suffixes, list_files in SOURCES:
        fitting = files.ending(suffixes)
        if not fitting:
            continue
        if list_files is folder.list_folder and storage.join(root, fitting[0].path) == where:
            raise UserError(f"{where} is one image: give a folder of images")
        return Source(_name(where), where, list_files(root, fitting, reading))
    raise UserError(
        f"{where} holds no images ({len(files)} files): JPEG, PNG, WebP, BMP, TIFF, .parquet or .tar are read"
    )


def _check_name(path: str, where: str) -> None:
    """A word that is no path is a misspelt name."""
    if re.fullmatch(r"[\w-]+", path) and not os.path.exists(where):
        known = ", ".join(NAMED)
        raise UserError(f"{path} does not exist{nearest(path.lower(), NAMED)}: give a folder, or one of {known}")


def _name(where: str) -> str:
    *folders, last = storage.fixed_part(where).split("/")
    stem = re.sub(r"\.(parquet|tar)$", "", last)
    if stem != last and split_of_file(last) != NONE and folders:
        stem = f"{folders[-1]}-{stem}"  # "train" says nothing
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-") or "data"
