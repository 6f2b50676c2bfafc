"""How much of an approximate index a search looks at: the least that finds enough, by queries that are not in it.

Shapes: N vectors, Q queries, D numbers.
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.search.index import trained_index

QUERIES, FEWEST = 1_000, 10_000  # queries, of so many vectors at least
K = 10
_MORE = 64  # neighbours beyond, among which queries may be that are not in the index
_ROWS = 1 << 16  # that are added at a time
_EPSILON = 1e-6  # similarities this close are a tie
_ALIKE = 0.001  # recalls that differ by no more are not worth more effort

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def build_measured(vectors: Floats, ids: Ints, factory: str, target: float, seed: int = 0) -> tuple[faiss.Index, float]:
    """An index over all vectors, and its recall of the ten nearest (0 … 1), measured before its queries were added.

    An IVF index visits as few lists as reach the `target`; where none do, as few as come within 0.001 of the most.
    Raises UserError like `build_index`.
    """
    index, points = trained_index(vectors, ids, factory)
    held = np.zeros(len(points), dtype=bool)
    held[np.random.default_rng(seed).permutation(len(points))[:QUERIES]] = True
    for start in range(0, len(points), _ROWS):
        rows = slice(start, start + _ROWS)
        index.add_with_ids(points[rows][~held[rows]], ids[rows][~held[rows]])
    recall = _choose_effort(index, _Asked.of(points, ids, held), target)
    index.add_with_ids(points[held], ids[held])
    return index, recall


class _Asked:
    """Queries, and how similar the k-th of their exact neighbours is."""

    def __init__(self, points: Floats, order: Ints, ids: Ints, queries: Floats, least: Floats) -> None:
        self.points, self.order, self.ids, self.queries, self.least = points, order, ids, queries, least

    @classmethod
    def of(cls, points: Floats, ids: Ints, held: NDArray[np.bool_]) -> "_Asked":
        queries = points[held]
        scores, rows = faiss.knn(queries, points, K + _MORE, metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.where(held[rows], -np.inf, scores)
        best = -np.sort(-scores, axis=1)[:, :K]
        least = np.where(np.isfinite(best), best, np.inf).min(axis=1)
        order = np.argsort(ids)
        return cls(points, order, ids[order], queries, least)

    def recall(self, index: faiss.Index) -> float:
        """Share of the ten nearest that the index finds; ties are no misses."""
        _, found = index.search(self.queries, K)
        rows = self.order[np.searchsorted(self.ids, np.maximum(found, self.ids[0]))]
        similarity = np.einsum("qd,qkd->qk", self.queries, self.points[rows])
        hits = (similarity >= self.least[:, None] - _EPSILON) & (found >= 0)
        return float(hits.sum(axis=1).mean() / K)


def _choose_effort(index: faiss.Index, asked: _Asked, target: float) -> float:
    core: Any = faiss.try_extract_index_ivf(index)
    if core is None:
        return asked.recall(index)
    tried: list[tuple[int, float]] = []
    probes = 1
    while True:
        core.nprobe = probes
        tried.append((probes, asked.recall(index)))
        if tried[-1][1] >= target or probes == core.nlist:
            break
        probes = min(core.nlist, 2 * probes)
    most = max(recall for _, recall in tried)
    core.nprobe, recall = next(one for one in tried if one[1] >= min(target, most - _ALIKE))
    return recall
