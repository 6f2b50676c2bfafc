"""What is served: runs that are opened once, and opened again where their index has changed."""

import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.terminal import say
from rayssl.pipeline.run.folder import data_name, winner_of
from rayssl.pipeline.search.items import load_items
from rayssl.pipeline.search.query import OpenIndex, open_index
from rayssl.pipeline.search.store import FOLDER, has_search
from rayssl.pipeline.search.stored import Stored
from rayssl.pipeline.service.pictures import Pictures

SPLIT = "split"
KNOWN = ("train", "val", "test", "added")  # splits
LOOK_EVERY = 1.0  # seconds between two looks at whether an index has changed

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class View:
    """A run's index as it was when it was opened, with what an answer tells beyond it. N images."""

    opened: OpenIndex
    splits: NDArray[np.str_]  # (N,), in the order of the items
    stored: Stored
    pictures: Pictures
    version: str  # changes with the index

    def matching(self, splits: Sequence[str], labels: Sequence[str]) -> Mask | None:
        """(N,) of images in one of these splits, and with one of these labels; None: all images match."""
        if not splits and not labels:
            return None
        fits = np.ones(len(self.splits), dtype=bool)
        if splits:
            fits &= np.isin(self.splits, splits)
        if labels:
            fits &= np.isin(self.opened.items.labels, [row for row, name in self.labels if name in labels])
        return fits

    @cached_property
    def labels(self) -> list[tuple[int, str]]:
        """(number, name) of every label that an image has."""
        names = self.opened.items.class_names
        numbers = np.unique(self.opened.items.labels[self.opened.items.labels >= 0]).tolist()
        return [(number, str(number) if names is None else names[number]) for number in numbers]

    @cached_property
    def label_counts(self) -> list[int]:
        """How many images have each of `labels`."""
        known = self.opened.items.labels[self.opened.items.labels >= 0]
        counts: list[int] = np.unique(known, return_counts=True)[1].tolist()
        return counts

    @cached_property
    def split_counts(self) -> dict[str, int]:
        """How many images are in each split, in the order that people know."""
        counted = Counter(self.splits.tolist())
        known = [split for split in KNOWN if split in counted]
        return {split: counted[split] for split in [*known, *sorted(counted.keys() - KNOWN)]}


class Served:
    """One run that is served under a name."""

    def __init__(self, name: str, run: Path, data: str | None) -> None:
        self.name = name
        self._run, self._data = winner_of(run), data
        self._stamp = self._looked()
        self.view = view_of(open_index(self._run, data))

    def refresh(self) -> None:
        """Open the index again where it has changed; where that fails, what was there before is served on."""
        stamp = self._looked()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            view = view_of(open_index(self._run, self._data))
            _ = view.opened.encode  # loaded before it is asked
        except UserError as error:
            say(f"{self.name}: its index has changed and cannot be opened: {error}", file=sys.stderr)
            return
        self.view = view

    def _looked(self) -> tuple[object, ...]:
        """What changes with the index."""
        name = self._data or data_name(self._run)
        folder = self._run / "index" / name
        stamps = []
        for path in (folder / "CURRENT", folder / "manifest.json", self._run / "search.json"):
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                stamps.append((0, 0, 0))
        return tuple(stamps)


class Runs:
    """All that is served, by name, in the order of the command."""

    def __init__(self, served: Sequence[Served]) -> None:
        self.by_name = {one.name: one for one in served}
        self._stopped = threading.Event()

    def __getitem__(self, name: str) -> View:
        """The run as it is now; KeyError for a name that is not served."""
        return self.by_name[name].view

    def watch(self) -> None:
        """Look after changes until `stop` is called."""
        while not self._stopped.wait(LOOK_EVERY):
            for one in self.by_name.values():
                one.refresh()

    def stop(self) -> None:
        """End `watch`."""
        self._stopped.set()


def open_runs(places: Sequence[Path], data: str | None = None) -> Runs:
    """The runs in these folders, which are runs, races or folders of runs; each is named after its folder.

    Raises UserError where one is none of these, or its index cannot be opened.
    """
    runs = list(dict.fromkeys(run.absolute() for place in places for run in runs_in(place)))
    names = Counter(run.name for run in runs)
    named = [(run.name if names[run.name] == 1 else f"{run.parent.name}-{run.name}", run) for run in runs]
    if len(dict(named)) < len(named):
        raise UserError("several of the runs have the same name, and so have their folders: rename one of them")
    return Runs([Served(name, run, data) for name, run in named])


def runs_in(place: Path) -> list[Path]:
    """A run or race itself, or the runs in a folder; raises UserError where there are none."""
    if not place.is_dir():
        raise UserError(f"run folder {place} does not exist: give the --out folder of a run")
    if any((place / name).exists() for name in ("manifest.json", "config.json", "race.json")):
        return [place]
    if found := found_in(place):
        return found
    raise UserError(f"{place} holds no run: give the folder that a run wrote to, or a folder of such folders")


def found_in(folder: Path) -> list[Path]:
    """The runs and races directly below a folder."""
    return sorted({path.parent for name in ("manifest.json", "race.json") for path in listed(folder, f"*/{name}")})


def offered(folder: Path) -> list[Path]:
    """Runs, races and folders of compared runs directly below a folder, as far as they are told by names."""
    return sorted({*found_in(folder), *(path.parent for path in listed(folder, "*/comparison.json"))})


def view_of(opened: OpenIndex) -> View:
    """An index with the splits and pictures of its images."""
    made = f"{opened.hash}{opened.items.data_fingerprint}".encode() + np.sort(opened.items.ids).tobytes()
    return View(opened, _splits_of(opened), Stored(opened), Pictures(opened), hashlib.sha256(made).hexdigest()[:12])


def _splits_of(opened: OpenIndex) -> NDArray[np.str_]:
    """(N,) in the order of the items."""
    if SPLIT in opened.items.table.column_names:
        return np.array(opened.items.table[SPLIT].to_pylist())
    part = FOLDER if has_search(opened.run) else ""  # the index of an older version does not tell them
    known = load_items(opened.run / "embeddings" / opened.name / part, opened.run, whole=True)
    return np.array(known.table[SPLIT].to_pylist())[known.rows(opened.items.ids)]
