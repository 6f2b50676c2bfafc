"""Room in the cache: what is kept there, what a process is using, and what goes to make room for something new.

A pack in use is locked (shared) through its pack.json; it goes only when that file can be locked for one alone.
"""

import contextlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import delete, listed, move
from rayssl.pipeline.base.locks import alone, share

LARGEST = 64e9  # bytes of decoded images
SHARE = 0.25  # or this part of the disk, where that is less
IMAGES, FACTS, DOWNLOADED = "images", "facts", "download"  # packs, what is slow to find out, data sets by name


@dataclass(frozen=True)
class Kept:
    """A folder or a file of the cache."""

    kind: str
    place: Path
    data: str  # the data set's path or name; empty where that is not known
    bytes: int
    used: float  # the last time, in seconds since 1970
    in_use: bool = False  # by a process that lives


def limit(root: Path) -> float:
    """Bytes of decoded images that may be kept: RAYSSL_CACHE_GB, else 64 GB or a quarter of the disk.

    Raises UserError where RAYSSL_CACHE_GB is no number.
    """
    text = os.environ.get("RAYSSL_CACHE_GB")
    if not text:
        return min(LARGEST, SHARE * shutil.disk_usage(root).total)
    with contextlib.suppress(ValueError):
        if 0 <= (size := float(text)) < math.inf:
            return size * 1e9
    raise UserError(f"RAYSSL_CACHE_GB is {text!r}: a number of gigabytes is needed, e.g. 20")


def hold(path: Path) -> int:
    """Open a file of the cache so that what it belongs to stays, and note that it was used; os.close ends that.

    Raises FileNotFoundError, also where the file goes in this very moment.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        share(handle)
        if not os.path.samestat(os.fstat(handle), os.stat(path)):
            raise FileNotFoundError(str(path))
        touch(path)
    except BaseException:
        os.close(handle)
        raise
    return handle


def touch(path: Path) -> None:
    """Note that a file was used; without effect where it may not be changed."""
    with contextlib.suppress(OSError):
        os.utime(path)


def list_kept(root: Path) -> list[Kept]:
    """Everything in the cache folder, the last used first; facts, which are many and small, as one."""
    packs = [replace(pack, in_use=_is_held(pack.place)) for pack in _packs(root)]
    facts = _facts(root)
    together = Kept(FACTS, root / "facts", "", sum(f.bytes for f in facts), max((f.used for f in facts), default=0))
    return sorted([*packs, *([together] if facts else []), *_downloads(root)], key=lambda kept: -kept.used)


def make_room(root: Path, needed: float) -> None:
    """Let packs go, those first that were not used for the longest time, until `needed` bytes more fit.

    A pack in use stays, even if it alone is too large.
    """
    _sweep(root)
    packs = sorted(_packs(root), key=lambda kept: kept.used)
    total, allowed = sum(pack.bytes for pack in packs), limit(root)
    for pack in packs:
        if total + needed <= allowed and needed <= shutil.disk_usage(root).free:
            return
        if _remove(pack.place):
            total -= pack.bytes


def clean(root: Path, older_than: float | None) -> list[Kept]:
    """Remove packs and facts that nobody uses and nobody has used for so many days (None: whenever); returns them."""
    _sweep(root)
    until = math.inf if older_than is None else time.time() - older_than * 86400
    old = [kept for kept in [*_packs(root), *_facts(root)] if kept.used <= until]
    return [kept for kept in old if _remove(kept.place)]


def _packs(root: Path) -> list[Kept]:
    return [kept for place in _visible(root / "packs") if place.is_dir() and (kept := _pack(place)) is not None]


def _pack(place: Path) -> Kept | None:
    try:
        used = max(path.stat().st_mtime for path in (place, *listed(place, "pack.json")))
        return Kept(IMAGES, place, _data_of(place / "pack.json"), _size(place), used)
    except FileNotFoundError:  # gone meanwhile
        return None


def _data_of(path: Path) -> str:
    try:
        return str(json.loads(path.read_text())["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _facts(root: Path) -> list[Kept]:
    found = []
    for place in _visible(root / "facts"):
        with contextlib.suppress(FileNotFoundError):
            status = place.stat()
            found.append(Kept(FACTS, place, "", status.st_size, status.st_mtime))
    return found


def _downloads(root: Path) -> list[Kept]:
    places = [place for place in _visible(root / "named") if place.is_dir()]
    return [Kept(DOWNLOADED, p, p.name.rpartition("-")[0], _size(p), p.stat().st_mtime) for p in places]


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, but for what is half made or half removed; nothing where there is no such folder."""
    return [place for place in listed(folder) if not place.name.startswith(".")]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in listed(folder, below=True) if path.is_file())


def _is_held(folder: Path) -> bool:
    with alone(folder / "pack.json") as free:
        return not free


def _remove(place: Path) -> bool:
    """Whether it is gone now: not where a process uses it."""
    if not place.is_dir():
        delete(place)
        return True
    gone = place.with_name(f".{place.name}-{os.getpid()}-{time.time_ns()}")
    with alone(place / "pack.json") as free:
        if free:
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                move(place, gone)  # at once: nobody opens half of it
    delete(gone)
    return free


def _sweep(root: Path) -> None:
    """Remove what processes that were killed had half made or half removed."""
    for place in listed(root / "packs", ".*-*"):
        with alone(place.with_name(f"{place.name[1:].rpartition('-')[0]}.lock")) as free:
            if free:
                delete(place)
