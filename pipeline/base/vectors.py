"""Vectors as numpy arrays: unit length, nearest neighbours, clusters."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError

Floats = NDArray[np.float32]


Ints = NDArray[np.int64]
_CELLS = 1 << 23  # similarities held at a time: 32 MiB as float32


def normalise(vectors: Floats) -> Floats:
    """(N, D) scaled to unit length, row by row; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def knn_classify(train: Floats, train_labels: Ints, test: Floats, k: int, temperature: float, n_classes: int) -> Ints:
    """Labels (N_test,) by a vote of the k training vectors nearest by cosine, each with weight exp(s / T).

    The weighting of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR
    2018, section 3.4), with T = 0.07 as in DINO (Caron et al., ICCV 2021). A tie goes to the lowest
    label. Raises UserError for a k that is not within 1 … N_train.
    """
    import faiss

    if not 1 <= k <= len(train):
        raise UserError(f"k is {k}: with {len(train)} training vectors it must be within 1 … {len(train)}")
    queries, references = normalise(test), normalise(train)
    predictions = np.empty(len(test), dtype=np.int64)
    for rows in chunks(len(test), max(k, n_classes)):
        similarities, neighbours = faiss.knn(queries[rows], references, k, metric=faiss.METRIC_INNER_PRODUCT)
        predictions[rows] = _vote(similarities, train_labels[neighbours], temperature, n_classes)
    return predictions


def _vote(similarities: Floats, labels: Ints, temperature: float, n_classes: int) -> Ints:
    """(B, k) neighbours → (B,) labels. Relative to the nearest neighbour, so that no exponential overflows."""
    weights = np.exp((similarities - similarities[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(labels), n_classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
    return np.asarray(votes.argmax(axis=1), dtype=np.int64)


def kmeans(vectors: Floats, k: int, seed: int, restarts: int = 10) -> Ints:
    """Cluster numbers (N,) in 0 … k − 1 by k-means on the L2-normalised vectors; the best of `restarts` starts.

    A function of vectors and seed alone. Raises UserError for a k that is not within 1 … N.
    """
    import faiss

    n, dim = vectors.shape
    if not 1 <= k <= n:
        raise UserError(f"the number of clusters is {k}: with {n} vectors it must be within 1 … {n}")
    points = normalise(vectors)
    search = faiss.Kmeans(
        dim,
        k,
        niter=100,
        nredo=restarts,
        seed=seed % 2**31,
        min_points_per_centroid=1,  # no warning on small sets
        max_points_per_centroid=n,  # all points: no subsample
    )
    search.train(points)
    _, assignment = search.index.search(points, 1)
    return np.asarray(assignment[:, 0], dtype=np.int64)


def chunks(n: int, width: int) -> Iterator[slice]:
    """Slices of 0 … n whose rows of `width` cells fit the bound."""
    step = max(1, _CELLS // max(width, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
