"""Images that are there more than once: exact copies by their pixels, near copies by looking at the nearest neighbours.

The vectors say which pictures may be copies of which; `matching` says whether they are. By the cosine alone, copies
cannot be told from other photographs of the same thing (docs/curation.md has the measurement).

Shapes: N images, k neighbours, P pairs.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl.pipeline.base.files import replacing, write_json
from rayssl.pipeline.curation.matching import Matcher
from rayssl.pipeline.curation.quality import sharpness_of
from rayssl.pipeline.curation.sheets import Line, pairs_curve, save_sheet
from rayssl.pipeline.curation.subject import Ints, Subject
from rayssl.pipeline.search.graph import Graph

AUTO = "auto"
CANDIDATES = 3  # nearest neighbours of an image that may be its copies: of 540 planted ones among groceries 99.8 %
VALLEY = (0.85, 0.98)  # similarities between which the automatic threshold is looked for
STEP, WINDOW = 0.005, 0.015
_SPLITS = ("train", "val", "test")
CURVE = (0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.85, 0.8)

Floats = NDArray[np.float32]
Reals = NDArray[np.float64]
Similarity = Callable[[Ints], Reals]


@dataclass(frozen=True)
class Group:
    """Images that show the same; every one is at least as similar as the threshold to the first, or has its pixels."""

    rows: Ints  # the centre first
    similarities: Reals  # to the centre
    exact: NDArray[np.bool_]  # the same pixels as another of the group


def candidates_of(graph: Graph) -> Ints:
    """(P, 2) pairs of images of which one is among the three nearest of the other, each once."""
    nearest = graph.neighbors[:, :CANDIDATES]
    first = np.repeat(np.arange(len(nearest)), nearest.shape[1])
    pairs = np.sort(np.stack([first, nearest.ravel()], axis=1), axis=1)
    return np.asarray(np.unique(pairs, axis=0))


def auto_threshold(similarities: Reals) -> float:
    """Where fewest pairs lie: copies are above, pictures that are alike by chance below.

    The middle of the emptiest places of the histogram of pairs (P,) between 0.85 and 0.98, where the curve of how many
    pairs reach a threshold is flattest.
    """
    places = np.arange(VALLEY[0], VALLEY[1] + STEP / 2, STEP)
    counts = np.array([(np.abs(similarities - place) <= WINDOW).sum() for place in places])
    emptiest = np.flatnonzero(counts == counts.min())
    return round(float(places[emptiest[len(emptiest) // 2]]), 4)


def curve_of(n: int, pairs: Ints, similarities: Reals, chosen: float) -> list[tuple[float, int, int]]:
    """(threshold, pairs, groups) among n images, the highest threshold first; the chosen one is among them."""
    rows = []
    for threshold in sorted({*CURVE, chosen}, reverse=True):
        near = pairs[similarities >= threshold]
        numbers = _parts(n, near)
        rows.append((threshold, len(near), int((np.bincount(numbers) > 1).sum())))
    return rows


def find_groups(pairs: Ints, similarities: Reals, hashes: Ints, threshold: float, similar: Similarity) -> list[Group]:
    """Groups of images whose pixel hashes (N,) are equal or whose similarity reaches the threshold; largest first.

    A chain of images, each like the next, does not make one group: in what hangs together by `pairs` the image with the
    most copies becomes a centre, those that reach the threshold with it are its group, and so on with the rest.
    `similar` tells it of pairs that were not among `pairs`. A hash of 0 is that of no image.
    """
    edges = np.concatenate([pairs[similarities >= threshold], _same_pixels(hashes)])
    numbers = _parts(len(hashes), edges)
    degree = np.bincount(edges.ravel(), minlength=len(hashes))
    order = np.lexsort([-degree, numbers])
    parts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    groups = [group for part in parts if len(part) > 1 for group in _stars(part, hashes, threshold, similar)]
    return sorted(groups, key=lambda group: -len(group.rows))


def _stars(part: Ints, hashes: Ints, threshold: float, similar: Similarity) -> list[Group]:
    """Groups of images that hang together, the one with the most copies first."""
    groups = []
    while len(part) > 1:
        similarities = np.ones(len(part))
        similarities[1:] = similar(np.stack([np.full(len(part) - 1, part[0]), part[1:]], axis=1))
        same = (hashes[part] == hashes[part[0]]) & (hashes[part] != 0)
        similarities[same] = 1.0
        mine = similarities >= threshold
        if mine.sum() > 1:
            rows = part[mine]
            _, which, counts = np.unique(hashes[rows], return_inverse=True, return_counts=True)
            groups.append(Group(rows, similarities[mine], (counts[which] > 1) & (hashes[rows] != 0)))
        part = part[~mine]
    return groups


def _same_pixels(hashes: Ints) -> Ints:
    """(P, 2): every image with the first one of the same hash."""
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    rows = np.arange(len(hashes))
    repeats = (first[which] != rows) & (hashes != 0)
    return np.asarray(np.stack([first[which], rows], axis=1)[repeats], dtype=np.int64)


def _parts(n: int, pairs: Ints) -> Ints:
    """(N,) the number of what an image hangs together with."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(edges, directed=False)[1], dtype=np.int64)


def leaks_of(groups: Sequence[Group], splits: NDArray[np.str_]) -> dict[str, int]:
    """How many pairs of a group are of two splits, such as {"train/test": 3}; only those that there are."""
    found = dict.fromkeys(("train/test", "val/test", "train/val"), 0)
    for group in groups:
        for name in found:
            one, other = name.split("/")
            found[name] += int((splits[group.rows] == one).sum()) * int((splits[group.rows] == other).sum())
    return {name: count for name, count in found.items() if count}


@dataclass(frozen=True)
class Copy:
    """An image of a group as it is told."""

    group: int
    row: int
    similarity: float
    exact: bool
    height: int
    width: int
    sharpness: float
    keep: bool
    leak: bool  # its group is of several splits

    @property
    def action(self) -> str:
        return "keep" if self.keep else "drop"


def find_duplicates(
    subject: Subject, threshold: float | None, out: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write duplicates.parquet, keep-drop.csv, duplicates.png and duplicates.json into `out`; returns the figures.

    `threshold` None: `auto_threshold`. Of every group the largest picture, and of equally large ones the sharpest, is
    to keep; nothing is removed. Groups of several splits come first.
    """
    hashes = subject.images.hashes if subject.images.hashes is not None else np.zeros(len(subject), np.int64)
    similar, pairs = Matcher(subject.images, progress), candidates_of(subject.graph)
    pairs = pairs[(hashes[pairs[:, 0]] != hashes[pairs[:, 1]]) | (hashes[pairs[:, 0]] == 0)]  # the others are exact
    similarities = similar(pairs)
    chosen = auto_threshold(similarities) if threshold is None else threshold
    groups = find_groups(pairs, similarities, hashes, chosen, similar)
    groups.sort(key=lambda group: _leak_order(group, subject))
    copies = [_copies(number, group, subject) for number, group in enumerate(groups, start=1)]
    every = [one for group in copies for one in group]
    curve = curve_of(len(subject), pairs, similarities, chosen)
    figures = {
        "images": len(subject),
        "threshold": chosen,
        "threshold_by": AUTO if threshold is None else "given",
        "recall": subject.graph.recall,
        "groups": len(groups),
        "copies": len(every),
        "exact": sum(one.exact for one in every),
        "drop": sum(not one.keep for one in every),
        "leaks": leaks_of(groups, subject.splits),
        "leaked_test": sum(_leaked(group, subject) for group in groups),
        "curve": [{"threshold": t, "pairs": p, "groups": g} for t, p, g in curve],
    }
    save_copies(every, subject, out / "duplicates.parquet")
    save_list(every, subject, out / "keep-drop.csv")
    save_sheet(subject, [_line(group, subject) for group in copies], out / "duplicates.png", pairs_curve(curve, chosen))
    write_json(out / "duplicates.json", figures)
    return figures


def _leak_order(group: Group, subject: Subject) -> int:
    """Groups with test images and others first, then other leaks, then the rest."""
    if _leaked(group, subject):
        return 0
    return 1 if _is_leak(group, subject) else 2


def _is_leak(group: Group, subject: Subject) -> bool:
    return len(set(subject.splits[group.rows])) > 1


def _leaked(group: Group, subject: Subject) -> int:
    """How many test images of a group are also among the images that were learned from, or chosen by."""
    splits = subject.splits[group.rows]
    return int((splits == "test").sum()) if (splits != "test").any() else 0


def _copies(number: int, group: Group, subject: Subject) -> list[Copy]:
    """Those of a group, the best first."""
    sizes = [subject.images.stored_size(row) or (0, 0) for row in group.rows.tolist()]
    sharpness = [sharpness_of(subject.images[row]) for row in group.rows.tolist()]
    ranked = sorted(range(len(sizes)), key=lambda i: (-sizes[i][0] * sizes[i][1], -sharpness[i]))
    leak = _is_leak(group, subject)
    return [
        Copy(number, int(group.rows[i]), float(group.similarities[i]), bool(group.exact[i]), *sizes[i], sharpness[i],
             keep=place == 0, leak=leak)
        for place, i in enumerate(ranked)
    ]  # fmt: skip


def _line(group: Sequence[Copy], subject: Subject) -> Line:
    splits = " and ".join(sorted({str(subject.splits[one.row]) for one in group}, key=_SPLITS.index))
    title = f"group {group[0].group}: {len(group)} images, {splits}" + (" (leak)" if group[0].leak else "")
    captions = [f"{'exact' if one.exact else f'{one.similarity:.4f}'} {one.action}" for one in group]
    return Line(title, np.array([one.row for one in group]), captions)


def save_copies(copies: Sequence[Copy], subject: Subject, path: Path) -> None:
    """A row an image that has a copy."""
    columns: dict[str, Any] = {
        "group": pa.array([one.group for one in copies], pa.int64()),
        "id": pa.array([int(subject.ids[one.row]) for one in copies], pa.int64()),
        "path": pa.array([subject.paths[one.row] for one in copies], pa.string()),
        "split": pa.array([str(subject.splits[one.row]) for one in copies], pa.string()),
        "label": pa.array([subject.label(one.row) for one in copies], pa.string()),
        "action": pa.array([one.action for one in copies], pa.string()),
        "leak": pa.array([one.leak for one in copies], pa.bool_()),
        "exact": pa.array([one.exact for one in copies], pa.bool_()),
        "similarity": pa.array([one.similarity for one in copies], pa.float64()),
        "height": pa.array([one.height for one in copies], pa.int64()),
        "width": pa.array([one.width for one in copies], pa.int64()),
        "sharpness": pa.array([one.sharpness for one in copies], pa.float64()),
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def save_list(copies: Sequence[Copy], subject: Subject, path: Path) -> None:
    """path,action,group as a CSV; nothing reads it to carry it out."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as f:
        writer = csv.writer(f)
        writer.writerow(["path", "action", "group", "split"])
        writer.writerows([subject.paths[o.row], o.action, o.group, str(subject.splits[o.row])] for o in copies)
