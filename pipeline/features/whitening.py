"""Whitening: features in which no direction outweighs the others, by a linear map that needs no labels.

Shapes: N vectors of D dimensions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHRINKAGE = 0.1  # in units of the mean variance; chosen on validation images of CIFAR-10 (docs/speed.md)

RELATIVE_LEAST = 1e-10  # of the largest variance: what is less is a rounding error
ROWS = 16_384  # that are held in double precision at a time


@dataclass(frozen=True)
class Whitening:
    """Subtract `mean` (D,), then multiply by `matrix` (D, D)."""

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D) to (N, D)."""
        whitened: NDArray[np.float32] = np.matmul(vectors - self.mean, self.matrix)
        return whitened


def fit_whitening(vectors: NDArray[np.float32], shrinkage: float = SHRINKAGE) -> Whitening:
    """The symmetric map that brings the covariance of `vectors` (N, D) close to the identity.

    The variance λ of a principal direction becomes λ / (λ + shrinkage · mean λ): directions that hardly vary are not
    blown up. Without shrinkage this is ZCA (Bell and Sejnowski, 1997), here of features, where it makes neighbours by
    cosine better (Jégou and Chum, "Negative evidences and co-occurences in image retrieval", ECCV 2012, §3.2).
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    few = len(vectors) < vectors.shape[1]
    variances, directions = _few_directions(vectors, mean) if few else np.linalg.eigh(covariance(vectors, mean))
    variances = variances.clip(min=0)
    least = shrinkage * variances.sum() / vectors.shape[1] + np.finfo(np.float32).tiny
    scales, rest = 1 / np.sqrt(variances + least), 1 / np.sqrt(least)
    if few:  # every other direction has variance 0
        matrix = (directions * (scales - rest)) @ directions.T
        matrix[np.diag_indices_from(matrix)] += rest
    else:
        matrix = (directions * scales) @ directions.T
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32))


def _few_directions(
    vectors: NDArray[np.float32], mean: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances (R,) and directions (D, R) in which N < D vectors differ, by the smaller matrix (N, N)."""
    centred = vectors - mean
    variances, combinations = np.linalg.eigh(centred @ centred.T / len(vectors))
    found = variances > RELATIVE_LEAST * variances[-1]
    variances = variances[found]
    return variances, centred.T @ (combinations[:, found] / np.sqrt(len(vectors) * variances))


def covariance(vectors: NDArray[np.float32], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, D) of vectors (N, D) around `mean` (D,), in double precision."""
    total = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), ROWS):
        centred = vectors[start : start + ROWS] - mean
        total += centred.T @ centred
    return total / len(vectors)
