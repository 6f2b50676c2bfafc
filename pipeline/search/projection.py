"""From what a network or a descriptor gives to the vectors that are compared: PCA, whitened or not, and unit length.

Shapes: N vectors of D numbers, d kept.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.features.whitening import SHRINKAGE, covariance

EXACT = 512  # so many numbers at most have their whole covariance decomposed
SAMPLE = 6_000  # vectors that a wider map is fitted to, drawn evenly
SPARE, ROUNDS = 32, 3  # of the randomised decomposition

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Projection:
    """Unit length, minus `mean` (D,), times `matrix` (D, d), unit length again. None of both: unit length alone."""

    mean: Floats | None
    matrix: Floats | None

    def __call__(self, vectors: Floats) -> Floats:
        """(N, D) to (N, d), rows of unit length."""
        points = normalise(vectors)
        if self.mean is None or self.matrix is None:
            return points
        return normalise(np.matmul(points - self.mean, self.matrix))

    def width(self, dim: int) -> int:
        """d, for vectors of `dim` numbers."""
        return dim if self.matrix is None else int(self.matrix.shape[1])


@dataclass(frozen=True)
class Directions:
    """The principal directions (D, d) of N vectors of unit length, with their mean (D,) and variances (d,).

    `average` is the mean variance over all D directions.
    """

    mean: Floats
    directions: NDArray[np.float64]
    variances: NDArray[np.float64]
    average: float

    def plain(self) -> Projection:
        """PCA: the directions as they vary."""
        return Projection(self.mean, self.directions.astype(np.float32))

    def whitened(self, shrinkage: float = SHRINKAGE) -> Projection:
        """Every direction varies about alike: variance λ becomes λ / (λ + shrinkage · mean λ), as in
        `rayssl.pipeline.features.whitening`, of which this is a rotation where no direction is left out."""
        scales = 1 / np.sqrt(self.variances + shrinkage * self.average + np.finfo(np.float32).tiny)
        return Projection(self.mean, (self.directions * scales).astype(np.float32))


def find_directions(vectors: Floats, dim: int, seed: int = 0) -> Directions:
    """The at most `dim` principal directions of `vectors` (N, D), scaled to unit length first.

    Exact up to 512 numbers; above by a randomised decomposition (Halko, Martinsson and Tropp, "Finding structure
    with randomness", SIAM Review 2011, algorithm 4.4) of an even sample, a function of the vectors and the seed.
    """
    points = normalise(vectors)
    if len(points) > SAMPLE and points.shape[1] > EXACT:
        points = points[np.linspace(0, len(points) - 1, SAMPLE).astype(int)]
    mean = points.mean(axis=0, dtype=np.float64)
    kept = min(dim, points.shape[1], max(len(points) - 1, 1))
    if points.shape[1] <= EXACT:
        directions, variances, total = _exactly(points, mean, kept)
    else:
        directions, variances, total = _randomised(points, mean, kept, seed)
    average = total / points.shape[1]
    return Directions(mean.astype(np.float32), directions, variances, average)


def fit_projection(vectors: Floats, dim: int, whiten: bool, seed: int = 0) -> Projection:
    """The map for `vectors` (N, D) to at most `dim` numbers; plain ones that are narrow enough stay as they are."""
    if not whiten and vectors.shape[1] <= dim:
        return Projection(None, None)
    found = find_directions(vectors, dim, seed)
    return found.whitened() if whiten else found.plain()


def _exactly(
    points: Floats, mean: NDArray[np.float64], kept: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    import torch

    found_covariance = covariance(points, mean)
    try:
        variances, directions = torch.linalg.eigh(torch.from_numpy(found_covariance))
    except RuntimeError:  # its divide and conquer does not end for some nearly singular ones
        if not np.isfinite(found_covariance).all():
            raise UserError("features that are not finite cannot be searched: train with a lower rate") from None
        _, values, rows = np.linalg.svd(found_covariance, hermitian=True)
        variances, directions = torch.from_numpy(values[::-1].copy()), torch.from_numpy(rows[::-1].T.copy())
    found = variances.clamp(min=0)
    return directions[:, -kept:].flip(1).numpy(), found[-kept:].flip(0).numpy(), float(found.sum())


def _randomised(
    points: Floats, mean: NDArray[np.float64], kept: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    # By torch, whose threads are those that training was given: numpy's would be as many as there are cores.
    import torch

    centred = torch.from_numpy(points - mean.astype(np.float32))
    total = float(centred.square().sum(dtype=torch.float64) / len(points))
    width = min(kept + SPARE, *centred.shape)
    start = np.random.default_rng(seed).standard_normal((centred.shape[1], width), dtype=np.float32)
    basis = torch.linalg.qr(centred @ torch.from_numpy(start))[0]
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(centred @ torch.linalg.qr(centred.T @ basis)[0])[0]
    _, values, right = torch.linalg.svd(basis.T @ centred, full_matrices=False)
    variances = values[:kept].double().square() / len(points)
    return right[:kept].T.double().numpy(), variances.numpy(), total
