"""Images that are unlike all others, by the distance to their k-th neighbour, and pictures wrong by themselves.

Shapes: N images, k neighbours.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl.pipeline.base.files import replacing, write_json
from rayssl.pipeline.curation.quality import Quality
from rayssl.pipeline.curation.sheets import MOST_IN_LINE, Line, save_sheet
from rayssl.pipeline.curation.subject import Ints, Subject
from rayssl.pipeline.search.graph import Graph

SHOWN_LINES = 4  # of the least usual images in the contact sheet

Reals = NDArray[np.float64]


def outlier_distance(graph: Graph) -> Reals:
    """(N,) how far away the k-th nearest other image is, 0 … 2: the Euclidean distance of unit vectors.

    Ramaswamy et al., "Efficient Algorithms for Mining Outliers from Large Data Sets" (SIGMOD 2000, section 2). It finds
    more planted images than the local outlier factor does (docs/curation.md). Up to k images that are like each other
    and like no others are found, too.
    """
    return np.asarray(np.sqrt((2 - 2 * graph.cosines[:, -1].astype(np.float64)).clip(min=0)))


def find_outliers(subject: Subject, quality: Quality, out: Path) -> dict[str, Any]:
    """Write outliers.parquet (least usual first), outliers.png and outliers.json into `out`; returns the figures.

    The subject is to be seen by the last stage: whitening, which searched vectors often have, hides what is unusual.
    The contact sheet has the least usual images, then a line for each thing that is wrong with pictures.
    """
    scores = outlier_distance(subject.graph)
    order = np.argsort(-scores, kind="stable")
    flags = quality.flags()
    figures = {
        "images": len(subject),
        "score": "distance to the k-th nearest image",
        "k": subject.graph.k,
        "flagged": {name: int(found.sum()) for name, found in flags.items()},
        "first": [_told(subject, row, scores, flags) for row in order[:20].tolist()],
    }
    save_outliers(subject, scores, quality, flags, order, out / "outliers.parquet")
    save_sheet(subject, _lines(scores, order, quality, flags), out / "outliers.png")
    write_json(out / "outliers.json", figures)
    return figures


def flags_of(flags: dict[str, NDArray[np.bool_]], row: int) -> list[str]:
    """What is wrong with one picture."""
    return [name for name, found in flags.items() if found[row]]


def save_outliers(
    subject: Subject,
    scores: Reals,
    quality: Quality,
    flags: dict[str, NDArray[np.bool_]],
    order: Ints,
    path: Path,
) -> None:
    """A row an image, the least usual first."""
    rows = order.tolist()
    columns: dict[str, Any] = {
        "rank": np.arange(1, len(rows) + 1),
        "id": subject.ids[order],
        "path": pa.array([subject.paths[row] for row in rows], pa.string()),
        "split": pa.array(subject.splits[order].tolist(), pa.string()),
        "label": pa.array([subject.label(row) for row in rows], pa.string()),
        "distance": scores[order],
        "sharpness": quality.sharpness[order],
        "contrast": quality.contrast[order],
        "height": quality.heights[order],
        "width": quality.widths[order],
        "flags": pa.array([flags_of(flags, row) for row in rows], pa.list_(pa.string())),
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _told(subject: Subject, row: int, scores: Reals, flags: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
    return {
        "id": int(subject.ids[row]),
        "path": subject.paths[row],
        "label": subject.label(row),
        "distance": float(scores[row]),
        "flags": flags_of(flags, row),
    }


def _lines(scores: Reals, order: Ints, quality: Quality, flags: dict[str, NDArray[np.bool_]]) -> list[Line]:
    lines = []
    for number in range(SHOWN_LINES):
        rows = order[number * MOST_IN_LINE : (number + 1) * MOST_IN_LINE]
        if len(rows):
            title = "distance to the k-th nearest image, the largest first" if number == 0 else ""
            lines.append(Line(title, rows, [f"{scores[row]:.2f}" for row in rows]))
    for name, found in flags.items():
        rows = np.flatnonzero(found)
        if name == "blurred":
            rows = rows[np.argsort(quality.sharpness[rows], kind="stable")]
        if len(rows):
            captions = [f"{quality.widths[row]} x {quality.heights[row]}" for row in rows]
            lines.append(Line(f"{name}: {len(rows):,} images", rows, captions))
    return lines
