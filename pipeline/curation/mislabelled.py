"""Images whose label disagrees with those of their neighbours.

Shapes: N images, k neighbours, C classes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import replacing, write_json
from rayssl.pipeline.base.vectors import chunks
from rayssl.pipeline.curation.sheets import MOST_IN_LINE, MOST_LINES, Line, save_sheet
from rayssl.pipeline.curation.subject import Ints, Subject
from rayssl.pipeline.search.graph import Graph

# Both by benchmarks/mislabelled.py on the groceries; the other sets of that benchmark had no part in it.
TEMPERATURE = 0.15  # of the votes: softer than that of the evaluation, because a neighbour may be the mislabelled one
DOUBTED = 0.3  # of the votes by which another class has to be ahead

Reals = NDArray[np.float64]


def vote(graph: Graph, labels: Ints, n_classes: int, temperature: float = TEMPERATURE) -> Reals:
    """(N, C) shares of the votes of the neighbours of each image; zeros where none of them has a label, which is −1.

    Each votes for its class with weight exp(cosine / T) (Wu et al., CVPR 2018, section 3.4). What an image itself is
    called plays no part: the shares are out of sample.
    """
    found = np.zeros((len(labels), n_classes))
    for rows in chunks(len(labels), 4 * graph.k):
        similar = graph.cosines[rows].astype(np.float64)
        named = labels[graph.neighbors[rows]]
        weights = np.where(named >= 0, np.exp((similar - similar[:, :1]) / temperature), 0)
        np.add.at(found, (np.arange(rows.start, rows.stop)[:, None], named.clip(min=0)), weights)
    total = found.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(found, total, out=np.zeros_like(found), where=total > 0))


def suspects(shares: Reals, labels: Ints) -> tuple[NDArray[np.bool_], Reals, Ints]:
    """Of shares of votes (N, C) and labels (N,) ≥ 0: which labels are doubted, how much, and what was voted for.

    The doubt, in −1 … 1, is by how much of the votes the best other class is ahead of the given one.
    """
    rows = np.arange(len(labels))
    others = shares.copy()
    others[rows, labels] = -1
    doubt = others.max(axis=1) - shares[rows, labels]
    return doubt > DOUBTED, doubt, np.asarray(others.argmax(axis=1))


def find_mislabelled(subject: Subject, out: Path) -> dict[str, Any]:
    """Write mislabelled.parquet (most doubtful first), mislabelled.png and mislabelled.json; returns the figures.

    Raises UserError where fewer than two classes have images.
    """
    known = np.flatnonzero(subject.labels >= 0)
    if len(np.unique(subject.labels[known])) < 2:
        raise UserError(
            f"{subject.name} has no labels of two classes: `rayssl mislabelled` compares labels; name a CSV with "
            "--data.labels when the run is started"
        )
    shares = vote(subject.graph, subject.labels, int(subject.labels.max()) + 1)[known]
    doubted, doubt, voted = suspects(shares, subject.labels[known])
    order = np.argsort(-doubt, kind="stable")
    rows = [
        {
            "id": int(subject.ids[row]), "path": subject.paths[row], "split": str(subject.splits[row]),
            "label": subject.label(row), "suggested": subject.class_name(int(voted[place])),
            "doubt": float(doubt[place]), "share": float(shares[place, voted[place]]),
            "doubted": bool(doubted[place]),
        }
        for place, row in zip(order.tolist(), known[order].tolist())
    ]  # fmt: skip
    figures = {
        "images": len(subject),
        "labelled": len(known),
        "doubted": int(doubted.sum()),
        "k": subject.graph.k,
        "temperature": TEMPERATURE,
        "first": [row for row in rows[:20] if row["doubted"]],
    }
    kinds = {"id": pa.int64(), "doubt": pa.float64(), "share": pa.float64(), "doubted": pa.bool_()}
    columns = {name: pa.array([row[name] for row in rows], kinds.get(name, pa.string())) for name in rows[0]}
    with replacing(out / "mislabelled.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)
    save_sheet(subject, _lines(subject, known[order], rows), out / "mislabelled.png")
    write_json(out / "mislabelled.json", figures)
    return figures


def _lines(subject: Subject, order: Ints, rows: list[dict[str, Any]]) -> list[Line]:
    """A line a doubted image: it, and then its neighbours, which say why."""
    lines = []
    for row, told in zip(order[:MOST_LINES].tolist(), rows):
        if told["doubted"]:
            neighbors = subject.graph.neighbors[row][: MOST_IN_LINE - 1]
            title = f"{told['label']}, rather {told['suggested']}? doubt {told['doubt']:.2f}: {told['path']}"
            captions = [str(told["label"]), *(subject.label(one) or "no label" for one in neighbors.tolist())]
            lines.append(Line(title, np.concatenate([[row], neighbors]), captions))
    return lines
