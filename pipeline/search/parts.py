"""The one function from an image to the vector that is searched: one part or two, each seen, projected and scaled.

Shapes: N images, D_p raw numbers of a part, d numbers in a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.search.projection import Projection

PIXELS = "pixels"
JOIN = "+"  # between the names of two parts

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What an image is seen by before anything is fitted: a descriptor, its pixels, or a stage of a network."""

    source: str  # "hog", "pixels", "simclr", "untrained", "timm-efficientnet_lite0"
    what: str | None = None  # of a network: "last" or "STAGE:POOL"

    @property
    def name(self) -> str:
        """As people give it: NAME[:STAGE[:POOL]]."""
        return self.source if self.what is None else f"{self.source}:{self.what}"


@dataclass(frozen=True)
class Part:
    """What is seen, and the map to `d` numbers of unit length."""

    seen: Seen
    whitened: bool
    projection: Projection

    @property
    def label(self) -> str:
        """E.g. "simclr:layer3:2x2 whitened"."""
        return f"{self.seen.name}{' whitened' * self.whitened}"


@dataclass(frozen=True)
class Vectors:
    """One part, or two of equal weight behind one more projection."""

    parts: tuple[Part, ...]
    joint: Projection | None = None

    @property
    def label(self) -> str:
        """The parts' labels, joined."""
        return JOIN.join(part.label for part in self.parts)

    @property
    def sources(self) -> tuple[str, ...]:
        """The parts' sources."""
        return tuple(part.seen.source for part in self.parts)

    def __call__(self, raw: Sequence[Floats]) -> Floats:
        """(N, D_p) of each part to (N, d), rows of unit length."""
        vectors = [part.projection(values) for part, values in zip(self.parts, raw, strict=True)]
        if self.joint is None:
            return vectors[0]
        return self.joint(np.concatenate(vectors, axis=1))
