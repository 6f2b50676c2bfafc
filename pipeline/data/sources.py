"""From what the user calls the data to a listing of its images."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.data import folder, formats, parquet, shards, storage
from rayssl.pipeline.data.listing import NONE, Listing, split_of_file
from rayssl.pipeline.data.named import NAMED, list_named
from rayssl.pipeline.data.passed import left_out, looked_at
from rayssl.pipeline.data.reading import WORDS, Note, Reading
from rayssl.pipeline.data.storage import Files

NAME = "name:"  # before the name of a data set where a folder has that name, too

COLUMNS = ("image_column", "label_column")

_LONGEST = 80  # bytes of a data set's name


@dataclass(frozen=True)
class Kind:
    """A kind of source: its files are told by their endings, or by a look at them."""

    noun: str
    suffixes: tuple[str, ...]
    list_files: Callable[[str, Files, Reading], Listing]
    holds: Callable[[str], bool] = lambda path: True  # whether a file of these endings holds images at all
    told: tuple[str, ...] = ()  # fields of Reading that mean something here, of those that do not everywhere


# A new kind of source is one function and one line; a new data set with a name is one function and one line in NAMED.
SOURCES = (
    Kind("image files", formats.SUFFIXES, folder.list_folder, told=("folder",)),
    Kind("parquet files", parquet.SUFFIXES, parquet.list_parquet, parquet.has_images, told=(*COLUMNS, "folder")),
    Kind("tar shards", shards.SUFFIXES, shards.list_shards, told=(*COLUMNS, "key", "folder")),
)
TOLD_OF_NAMES = ()


@dataclass(frozen=True)
class Source:
    """A listing and what it is called."""

    name: str  # safe as a folder's name
    path: str  # absolute, or a URL, or the name of a data set
    listing: Listing


def find_source(path: str, reading: Reading, *, strict: bool = True) -> Source:
    """The images behind a path, a pattern, a URL or a name.

    Raises UserError where there are none, where files of several kinds hold images, and for a word that is both the
    name of a data set and of a folder here.
    """
    if (name := path.removeprefix(NAME)) in NAMED:
        if path == name and os.path.exists(path):
            raise UserError(
                f"--data.path {path}: there is a data set of this name and ./{path} here: give ./{path} or {NAME}{path}"
            )
        if strict:
            check_told(f"the data set '{name}'", reading, TOLD_OF_NAMES)
        return Source(name, path, replace(_as_told(list_named(name), reading), kind="a named data set"))
    where = storage.normalise(path)
    _check_name(path, where)
    root, files = storage.find(where)
    aside = files.aside
    files, own = left_out(root, files)
    found = _holding(root, [(kind, fitting) for kind in SOURCES if len(fitting := fitting_files(root, files, kind))])
    if not found:
        raise UserError(
            f"{where} holds no images ({_counted(files, aside)}): JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC, .npy, "
            ".parquet or .tar are read"
        )
    if len(found) > 1:
        raise _several(where, found)
    kind, fitting = found[0]
    if kind.list_files is folder.list_folder and storage.join(root, fitting[0].path) == where:
        raise UserError(f"{where} is one image: give a folder of images")
    if strict:
        check_told(f"{where} ({kind.noun})", reading, kind.told)
    listing = kind.list_files(root, fitting, reading)
    passed = Counter(suffix_of(file) for file in set(files.paths) - set(fitting.paths))
    listing = replace(
        listing,
        kind=listing.kind or kind.noun,
        notes=(*own, *listing.notes),
        passed_over=(*listing.passed_over, *sorted(passed.items()), *aside),
    )
    return Source(_name(where), where, listing)


def check_told(what: str, reading: Reading, told: Sequence[str]) -> None:
    """Raises UserError for what the user says of how images are read, where nothing would come of it."""
    table = reading.labels not in WORDS
    given = {
        "--data.key": ("key", reading.key, reading.key != "first"),
        "--data.image-column": ("image_column", reading.image_column, reading.image_column is not None),
        "--data.label-column": ("label_column", reading.label_column, reading.label_column is not None and not table),
        "--data.labels": ("folder", reading.labels, reading.labels == "folder"),
        "--data.splits": ("folder", reading.splits, reading.splits == "folder"),
    }
    for flag, (field, value, is_given) in given.items():
        if is_given and field not in told:
            tables = " or give a table by --data.labels FILE" if field == "label_column" else ""
            raise UserError(f"{flag} {value} says nothing about {what}: leave it out{tables}")
    if reading.label_column is not None and reading.labels in ("none", "folder"):
        raise UserError(
            f"--data.label-column {reading.label_column} and --data.labels {reading.labels}: give one of them"
        )


def _as_told(listing: Listing, reading: Reading) -> Listing:
    """A named data set without its labels or splits, where that is asked for."""
    if reading.labels == "none":
        listing = replace(listing, labels=None, class_names=None, notes=(*listing.notes, Note("no labels, as asked")))
    if reading.splits == "none":
        listing = replace(
            listing, splits=[NONE] * len(listing.keys), notes=(*listing.notes, Note("no splits, as asked"))
        )
    return listing


def fitting_files(root: str, files: Files, kind: Kind) -> Files:
    """The files of a kind; of images also those that a look at them tells."""
    if kind.list_files is folder.list_folder:
        return looked_at(root, files, kind.suffixes)
    return files.ending(kind.suffixes)


def _holding(root: str, found: list[tuple[Kind, Files]]) -> list[tuple[Kind, Files]]:
    """Where there are several kinds: those of which a file holds images (an index beside shards does not)."""
    if len(found) < 2:
        return found
    kept = []
    for kind, files in found:
        rows = [i for i, path in enumerate(files.paths) if kind.holds(storage.join(root, path))]
        if rows:
            kept.append((kind, files.take(rows)))
    return kept or found


def suffix_of(path: str) -> str:
    """What a file that is passed over is counted as."""
    name, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and name else "files without a suffix"


def _counted(files: Files, aside: tuple[tuple[str, int], ...]) -> str:
    return ", ".join([f"{len(files)} files", *(f"{n:,} {what}" for what, n in aside)])


def _several(where: str, found: list[tuple[Kind, Files]]) -> UserError:
    told = [f"{len(fitting):,} {kind.noun} (e.g. {fitting.paths[0]})" for kind, fitting in found]
    kind, _ = found[-1]
    return UserError(
        f"{where} holds {' and '.join(told)}: name the ones that are meant by a folder or a pattern, e.g. "
        f"--data.path '{where}/**/*{kind.suffixes[0]}'"
    )


def _check_name(path: str, where: str) -> None:
    """A word that is no path is a misspelt name."""
    if re.fullmatch(r"[\w-]+", path) and not os.path.exists(where):
        known = ", ".join(NAMED)
        raise UserError(f"{path} does not exist{nearest(path.lower(), NAMED)}: give a folder, or one of {known}")


def _name(where: str) -> str:
    """What a data set is called, safe as a folder's name: letters of every script are kept, up to 80 bytes of it."""
    *folders, last = storage.fixed_part(where).split("/")
    stem = re.sub(r"\.(parquet|tar)$", "", last)
    if stem != last and split_of_file(last) != NONE and folders:
        stem = f"{folders[-1]}-{stem}"  # "train" says nothing
    stem = unicodedata.normalize("NFC", stem)
    kept = "".join(one if one in "._-" or unicodedata.category(one)[0] in "LMN" else "\0" for one in stem)
    name = re.sub("\0+", "-", kept).strip(".-") or "data"
    short = name.encode()[:_LONGEST].decode(errors="ignore")
    return short if short == name else f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
