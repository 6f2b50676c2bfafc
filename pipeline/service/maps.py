"""The maps of what is served: read where they are kept, else made beside the requests, one at a time.

Shapes: M points.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.search.map import Map, make_map, read_map
from rayssl.pipeline.service.messages import MapPoints
from rayssl.pipeline.service.opened import View

MOST_POINTS = 200_000  # that are drawn
DIGITS = 4  # of a place


class Maps:
    """Maps by the view that they are of; what was of an index that has changed is let go."""

    def __init__(self) -> None:
        self._making = ThreadPoolExecutor(1, "map")
        self._known: dict[str, tuple[View, Future[MapPoints]]] = {}
        self._lock = threading.Lock()

    def of(self, name: str, view: View) -> MapPoints | None:
        """The map of a run; None while it is being made."""
        with self._lock:
            known = self._known.get(name)
            if known is None or known[0] is not view:
                known = self._known[name] = (view, self._making.submit(_points_of, view))
        return known[1].result() if known[1].done() else None

    def stop(self) -> None:
        """Begin no other map."""
        self._making.shutdown(wait=False, cancel_futures=True)


def _points_of(view: View) -> MapPoints:
    return points(view, read_map(view.opened) or make_map(view.opened))


def points(view: View, found: Map) -> MapPoints:
    """What is drawn: all images, or so many of them in the order of their ids."""
    order = np.argsort(found.ids)[:MOST_POINTS]
    ids, places = found.ids[order], found.places[order]
    rows = view.opened.items.rows(ids)
    numbers = np.array([number for number, _ in view.labels], dtype=np.int64)
    splits = list(view.split_counts)
    return MapPoints(
        version=view.version,
        ids=list(map(str, ids.tolist())),
        x=_short(places[:, 0]),
        y=_short(places[:, 1]),
        label=_positions(view.opened.items.labels[rows], numbers),
        split=[splits.index(one) for one in view.splits[rows].tolist()],
        labels=[name for _, name in view.labels],
        splits=splits,
    )


def _short(values: NDArray[np.float32]) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]


def _positions(labels: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[int]:
    """(M,) the position of each label among the numbers, −1 for none."""
    if not len(numbers):
        return [-1] * len(labels)
    found = np.searchsorted(numbers, labels).clip(max=len(numbers) - 1)
    positions: list[int] = np.where(labels < 0, -1, found).tolist()
    return positions
