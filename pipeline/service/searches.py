"""From a query vector to the images that are told of.

Shapes: d numbers in a vector.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.service.opened import Mask, View

# Weights of Rocchio's relevance feedback (Manning, Raghavan, Schütze: Introduction to Information Retrieval, 9.1.1).
LIKE, UNLIKE = 0.75, 0.15

Floats = NDArray[np.float32]


def like_these(view: View, like: Sequence[int], unlike: Sequence[int]) -> Floats:
    """(d,): towards the mean of some indexed images and away from that of others.

    Raises UserError for ids that are not indexed, and where nothing is left to search for.
    """
    if not like:
        raise UserError("like: name at least one image that the results are to be like")
    vector = LIKE * _mean(view, like)
    if unlike:
        vector -= UNLIKE * _mean(view, unlike)
    if not np.linalg.norm(vector) > 0:
        raise UserError("the images cancel each other out: choose others")
    return vector


def checked(view: View, vector: Sequence[float]) -> Floats:
    """(d,); raises UserError for another length, and for zeros or what is too large to be compared."""
    values = np.asarray(vector, dtype=np.float64)
    if values.shape != (view.opened.dim,):
        raise UserError(f"vector: it has {len(values)} numbers; vectors of this run have {view.opened.dim}")
    largest = np.abs(values).max()
    if not 0 < largest < np.inf:
        raise UserError("vector: all of it is zero, or not finite")
    scaled: Floats = (values / largest).astype(np.float32)
    return scaled


def nearest(view: View, vector: Floats, k: int, leave_out: Sequence[int] = (), among: Mask | None = None) -> list[Any]:
    """At most k images, best first, as [{"rank", "id", "path", "label", "split", "score"}]; ids are text."""
    items = view.opened.items
    only = None if among is None else items.ids[among]
    asked = min(k + len(leave_out), len(view.opened))
    scores, ids = view.opened.index.search(normalise(vector[None]), asked, only)
    keep = (ids[0] >= 0) & ~np.isin(ids[0], list(leave_out))
    kept = ids[0][keep][:k]
    found = zip(kept.tolist(), items.rows(kept).tolist(), scores[0][keep][:k].clip(-1, 1).tolist(), strict=True)
    return [{"rank": rank, **told(view, one, row), "score": score} for rank, (one, row, score) in enumerate(found, 1)]


def listed(view: View, start: int, k: int, among: Mask | None = None) -> list[Any]:
    """At most k images in the order of their ids, after the first `start`."""
    ids = view.opened.items.ids
    rows = np.arange(len(ids)) if among is None else np.flatnonzero(among)
    chosen = rows[np.argsort(ids[rows], kind="stable")][start : start + k]
    return [told(view, one, row) for one, row in zip(ids[chosen].tolist(), chosen.tolist(), strict=True)]


def told(view: View, one: int, row: int) -> dict[str, Any]:
    """What is told of an indexed image."""
    return {"id": str(one), **view.opened.items.told(row), "split": str(view.splits[row])}


def _mean(view: View, ids: Sequence[int]) -> Floats:
    found: Floats = view.stored(np.array(ids, dtype=np.int64)).mean(axis=0)
    return found
