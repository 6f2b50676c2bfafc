"""Which image a path in a table means."""

import functools
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import formats
from rayssl.pipeline.data.reading import Note

_PLAIN = re.compile(r"/?[^/\\.:][^/\\:]*(/[^/\\.:][^/\\:]*)*")  # nothing in it that could be written otherwise
_SHOWN = 200  # characters of a path in a message


@dataclass(frozen=True)
class Match:
    """What the rows of a table mean."""

    positions: list[int | None]  # per row, that of its image
    notes: tuple[Note, ...] = ()


class _Names:
    """Images by the names they may be called by: one name may be of several."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self._by_path = _positions(map(_form, keys))

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[int]]:
        by_stem: dict[str, list[int]] = {}
        for name, positions in self._by_path.items():
            by_stem.setdefault(_stem(name), []).extend(positions)
        return by_stem

    def find(self, path: str) -> list[int]:
        """Images with this path, or with this path and a suffix."""
        found = self._by_path.get(path, [])
        return found or ([] if _has_suffix(path) else self._by_stem.get(path, []))


_Hits = list[list[int]]  # per path, the images that it may mean
_Reading = Callable[[str, list[str], _Names], tuple[_Hits, tuple[Note, ...]]]


def match_paths(table: str, paths: Sequence[str], keys: Sequence[str], root: str, base: str = "") -> Match:
    """The image of every path of a table, by the images' keys, which are relative to `root`.

    Slashes may be backslashes, "./" before a path and the folder of the data do not count, nor which Unicode form
    letters with accents have. A path without suffix means the one image that has it with one. Where few paths are those
    of images, and more are if they are taken to be relative to `base`, the folder of the table below the root, or
    without the folders that all of them begin with, or for the ends of the images' paths, they are taken so.
    Raises UserError where a path may mean two images, or none means one.
    """
    exact = {key: i for i, key in enumerate(keys)}
    if all(path in exact for path in paths):
        return Match([exact[path] for path in paths])
    names = _Names(keys)
    relative = _relative(paths, root)
    found = [[exact[path]] if path in exact else names.find(short) for path, short in zip(paths, relative)]
    notes: tuple[Note, ...] = ()
    for reading in (_in_folder(base), _without_shared_folders, _by_ends):
        if 2 * sum(map(bool, found)) >= len(found):
            break
        others, about = reading(table, relative, names)
        unsure = any(found) and any(len(hits) > 1 for hits in others)
        if sum(map(bool, others)) > sum(map(bool, found)) and not unsure:
            found, notes = others, about
    if not any(found):
        raise UserError(
            f"{table} names none of the {len(keys)} images: its paths look like '{_short(paths[0])}', "
            f"the images' like '{_told(keys[0])}'"
        )
    return Match([_only(table, path, hits, keys) for path, hits in zip(paths, found)], notes)


def _relative(paths: Sequence[str], root: str) -> list[str]:
    """Paths below the folder of the data, as its images are called."""
    starts = tuple(f"{_form(start).rstrip('/')}/" for start in dict.fromkeys((root, posixpath.realpath(root))))
    forms = map(_form, paths)
    return [_without(form, starts) if form.startswith(starts) else form for form in forms]


def _without(form: str, starts: tuple[str, ...]) -> str:
    return form[max(len(start) for start in starts if form.startswith(start)) :]


def _form(path: str) -> str:
    path = path.strip() if path.isascii() else unicodedata.normalize("NFC", path.strip())
    if _PLAIN.fullmatch(path):
        return path
    path = path.replace("\\", "/").removeprefix("file://")
    scheme = re.match(r"[a-z0-9+.-]+://", path)
    start = scheme[0] if scheme else ""
    return start + posixpath.normpath(path.removeprefix(start)) if path else ""


def _in_folder(base: str) -> _Reading:
    def reading(table: str, paths: list[str], names: _Names) -> tuple[_Hits, tuple[Note, ...]]:
        return [names.find(_form(f"{base}/{path}")) if base else [] for path in paths], ()

    return reading


def _without_shared_folders(table: str, paths: list[str], names: _Names) -> tuple[_Hits, tuple[Note, ...]]:
    """The images of the paths without the folders that all begin with, as few of them as makes them those of images."""
    folders = [path.split("/")[:-1] for path in paths]
    shared = next((i for i, part in enumerate(zip(*folders)) if len(set(part)) > 1), min(map(len, folders)))
    for count in range(1, shared + 1):
        found = [names.find(path.split("/", count)[count]) for path in paths]
        if any(found):
            start = _short("/".join(folders[0][:count]))
            return found, _guess(f"{table}: its paths are those of the images with '{start}/' before them")
    return [], ()


def _by_ends(table: str, paths: list[str], names: _Names) -> tuple[_Hits, tuple[Note, ...]]:
    owners, ends = zip(*[(i, end) for i, key in enumerate(names.keys) for end in _ends(key)])
    by_end = _Names(ends)
    found = [[owners[place] for place in by_end.find(path)] for path in paths]
    example = next((path for path, hits in zip(paths, found) if hits), "")
    return found, _guess(f"{table}: its paths are the ends of those of the images, e.g. '{_short(example)}'")


def _guess(text: str) -> tuple[Note, ...]:
    return (Note(text, guess=True, flag="--data.labels"),)


def _positions(names: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(name, []).append(i)
    return found


def _ends(key: str) -> Iterable[str]:
    parts = key.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _only(table: str, path: str, hits: list[int], keys: Sequence[str]) -> int | None:
    if len(hits) > 1:
        raise UserError(
            f"{table}: '{_short(path)}' may be {_told(keys[hits[0]])} or {_told(keys[hits[1]])}: write the whole path"
        )
    return hits[0] if hits else None


def _told(key: str) -> str:
    """A path that looks like no other: letters with accents that are two characters are spelt out."""
    return key if unicodedata.is_normalized("NFC", key) else ascii(key)[1:-1]


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0] if _has_suffix(path) else path


def _has_suffix(path: str) -> bool:
    return posixpath.splitext(path)[1].lower() in formats.SUFFIXES


def _short(path: str) -> str:
    return path if len(path) <= _SHOWN else f"{path[:_SHOWN]}…"
