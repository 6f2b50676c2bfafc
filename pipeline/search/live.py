"""An index that images are added to and removed from without being built again: a base, what came since, what has gone.

Shapes: Q queries, M additions, D numbers.
"""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Found = tuple[Floats, Ints]

NOTHING: Ints = np.zeros(0, dtype=np.int64)
_MORE = 4  # times as much effort where an approximate search has found too few


class LiveIndex:
    """Searched like an index of FAISS: the base without what has `gone`, and additions compared exactly.

    `points` (M, D) are the additions, of unit length; whatever the base does to a vector is done to them.
    """

    def __init__(self, base: faiss.Index, gone: Ints = NOTHING, ids: Ints = NOTHING, points: Floats | None = None):
        self.base, self.gone = base, gone
        self.added = np.sort(ids)
        self.additions: faiss.Index | None = None
        if points is not None and len(points):
            points = as_compared(base, np.ascontiguousarray(points, dtype=np.float32))
            self.additions = faiss.IndexIDMap2(faiss.IndexFlatIP(points.shape[1]))
            self.additions.add_with_ids(points, np.ascontiguousarray(ids))

    @property
    def d(self) -> int:
        """Numbers in a vector."""
        return int(self.base.d)

    @property
    def ntotal(self) -> int:
        """How many vectors are found."""
        more = 0 if self.additions is None else int(self.additions.ntotal)
        return int(self.base.ntotal) - len(self.gone) + more

    @property
    def is_base(self) -> bool:
        """Whether nothing has come or gone."""
        return self.additions is None and not len(self.gone)

    @property
    def keeps_vectors(self) -> bool:
        """Whether it holds vectors as they were given: nothing maps or codes them."""
        base = faiss.downcast_index(self.base)
        return isinstance(base, faiss.IndexIDMap2) and isinstance(faiss.downcast_index(base.index), faiss.IndexFlat)

    def vector(self, one: int) -> Floats:
        """(D,) of an id that is found, where `keeps_vectors`."""
        place = int(np.searchsorted(self.added, one))
        is_added = place < len(self.added) and self.added[place] == one
        index = self.additions if is_added and self.additions is not None else self.base
        return np.asarray(index.reconstruct(one), dtype=np.float32)

    def search(self, points: Floats, k: int, only: Ints | None = None) -> Found:
        """Similarities and ids (Q, k) of the nearest to normalised vectors, best first; id −1 where there are too few.

        `only`: no others than these ids are found.
        """
        if only is None and self.is_base:
            return faiss_search(self.base)(points, k)
        if only is not None and len(self.gone):
            only = np.setdiff1d(only, self.gone)
        found = [search_among(self.base, points, k, only, self.gone)]
        if self.additions is not None:
            found.append(search_among(self.additions, as_compared(self.base, points), k, only, NOTHING))
        return found[0] if len(found) == 1 else _best(found, k)


def _best(found: list[Found], k: int) -> Found:
    """The k best of several answers to the same queries."""
    scores, ids = (np.concatenate(column, axis=1) for column in zip(*found, strict=True))
    scores = np.where(ids < 0, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def as_compared(index: faiss.Index, points: Floats) -> Floats:
    """Vectors as they are compared behind the transforms of an index."""
    while True:
        index = faiss.downcast_index(index)
        if isinstance(index, faiss.IndexPreTransform):
            chain: Any = index.chain
            for place in range(chain.size()):
                points = faiss.downcast_VectorTransform(chain.at(place)).apply(points)
        elif not isinstance(index, faiss.IndexIDMap):
            return points
        index = index.index


def faiss_search(index: faiss.Index) -> Callable[..., Found]:
    """FAISS' search of arrays, also where faiss.contrib.torch_utils has put one of tensors in its place: that takes no
    parameters."""
    found: Callable[..., Found] = getattr(index, "search_numpy", index.search)
    return found


def search_among(index: faiss.Index, points: Floats, k: int, only: Ints | None, gone: Ints) -> Found:
    """The k nearest with an id of `only`, or, where that is None, with none of `gone`; −1 where there are too few.

    Inside FAISS by a selector where the kind of index takes one. An approximate search looks at more the fewer vectors
    are chosen, and at more again as long as it finds too few.
    """
    if only is None and not len(gone):
        return faiss_search(index)(points, k)
    chosen = min(len(only), index.ntotal) if only is not None else index.ntotal - len(gone)
    if not chosen:
        return np.full((len(points), k), -np.inf, np.float32), np.full((len(points), k), -1)
    if not _takes_selectors(index):
        return _sifted(index, points, k, only, gone)
    selector = faiss.IDSelectorBatch(only) if only is not None else faiss.IDSelectorNot(faiss.IDSelectorBatch(gone))
    effort = index.ntotal / chosen
    while True:
        parameters, is_all = _parameters(index, selector, effort)
        scores, ids = faiss_search(index)(points, k, params=parameters)
        if is_all or (ids[:, min(k, chosen) - 1] >= 0).all():
            return scores, ids
        effort *= _MORE


def _core(index: faiss.Index) -> faiss.Index:
    """What is behind maps of ids and transforms."""
    index = faiss.downcast_index(index)
    return _core(index.index) if isinstance(index, faiss.IndexIDMap | faiss.IndexPreTransform) else index


def _takes_selectors(index: faiss.Index) -> bool:
    kinds = (faiss.IndexFlat, faiss.IndexHNSW, faiss.IndexIVF, faiss.IndexScalarQuantizer, faiss.IndexPQ)
    return isinstance(_core(index), kinds)


def _parameters(index: faiss.Index, selector: Any, effort: float) -> tuple[Any, bool]:
    """How to search for what is selected, with so many times the effort, and whether that looks at everything."""
    core: Any = _core(index)
    kinds: Any = faiss  # whose types do not tell what its constructors take
    if isinstance(core, faiss.IndexIVF):
        probes = min(core.nlist, max(1, int(core.nprobe * effort)))
        return kinds.SearchParametersIVF(sel=selector, nprobe=probes), probes == core.nlist
    if isinstance(core, faiss.IndexHNSW):
        width = min(core.ntotal, int(core.hnsw.efSearch * effort))
        return kinds.SearchParametersHNSW(sel=selector, efSearch=width), width == core.ntotal
    return kinds.SearchParameters(sel=selector), True


def _sifted(index: faiss.Index, points: Floats, k: int, only: Ints | None, gone: Ints) -> Found:
    """The same of kinds without selectors: more are asked for until enough of them are chosen."""
    asked = k
    while True:
        asked = min(asked * _MORE, index.ntotal)
        scores, ids = faiss_search(index)(points, asked)
        chosen = (ids >= 0) & (np.isin(ids, only) if only is not None else ~np.isin(ids, gone))
        if asked == index.ntotal or (chosen.sum(axis=1) >= k).all():
            return _best([(scores, np.where(chosen, ids, -1))], k)
