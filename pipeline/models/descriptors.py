"""Classical descriptors: vectors of images without a network, numpy alone. Honest baselines, and parts of a search.

Shapes: B images of S × S pixels and C channels, D numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Descriptor:
    """How images are described: read at `size` pixels a side, `dim` numbers; `version` changes with the numbers."""

    size: int
    dim: int
    version: int
    compute: Callable[[Bytes], Floats]  # (B, S, S, C) → (B, D)


def color_histogram(images: Bytes) -> Floats:
    raise NotImplementedError


def hog(images: Bytes) -> Floats:
    raise NotImplementedError


DESCRIPTORS = {
    "color-histogram": Descriptor(96, 432, 1, color_histogram),
    "hog": Descriptor(64, 1764, 1, hog),
}


def describe(name: str, images: Bytes) -> Floats:
    """(B, D) numbers of images (B, S, S, C) by the descriptor `name`."""
    return DESCRIPTORS[name].compute(images)
