"""Whether up is up in some images: whether a linear classifier can tell by how many quarters an image was turned.

Shapes: N images of S × S pixels and C channels, D numbers of a descriptor.
"""

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.data import Images
from rayssl.pipeline.models.descriptors import DESCRIPTORS, describe

DESCRIPTOR = "hog"
SEEN, ASKED = 500, 250  # images that the classifier learns from, and that it is asked about
FEWEST = 10  # of either, below which nothing is told
# Groceries 0.55, digits by hand 0.88; blood cells, which have no up, 0.48 by the light they were taken in.
TOLD_FROM = 0.5  # share of turns that are told, of chance 0.25, from which up is up
PENALTY = 10.0  # of the squared weights


def told_turns(train: Images, val: Images, seed: int) -> float | None:
    """The share of turns of validation images that are told; None where there are too few images."""
    if min(len(train), len(val)) < FEWEST:
        return None
    seen, turns = turned(train, SEEN, seed)
    asked, truth = turned(val, ASKED, seed)
    return float((predict(seen, turns, asked) == truth).mean())


def turned(images: Images, most: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(4 N, D) descriptors of some images in all four turns, and the turns."""
    rows = permutation(len(images), seed)[:most]
    squares = images.square(rows, DESCRIPTORS[DESCRIPTOR].size)
    views = [describe(DESCRIPTOR, np.ascontiguousarray(np.rot90(squares, turn, axes=(1, 2)))) for turn in range(4)]
    return np.concatenate(views).astype(np.float64), np.repeat(np.arange(4), len(rows))


def predict(seen: NDArray[np.float64], turns: NDArray[np.int64], asked: NDArray[np.float64]) -> NDArray[np.int64]:
    """The turns that ridge regression onto the four turns of the images seen tells of those asked about."""
    mean = seen.mean(axis=0)
    inputs, targets = seen - mean, np.eye(4)[turns] - 0.25
    kernel = inputs @ inputs.T + PENALTY * np.eye(len(inputs))
    weights = inputs.T @ np.linalg.solve(kernel, targets)
    found: NDArray[np.int64] = ((asked - mean) @ weights).argmax(axis=1)
    return found
