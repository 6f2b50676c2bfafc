"""Whether two pictures show the same, pixel beside pixel: also where one was compressed, resized, cropped or mirrored.

A network calls two photographs of one shelf alike. Of candidates that it proposes this looks at the pictures
themselves, at three sizes: most pairs end at the smallest.

Shapes: N images, P pairs.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.data import Images

COARSE, MIDDLE, FINE = 8, 32, 64  # pixels a side of the grey thumbnails; the middle ones, 1 KiB an image, are kept
# Correlations below which two pictures are told apart at a size. Of 540 planted copies among 5,421 photographs of
# groceries the lowest, of a crop, were 0.65 and 0.80 (benchmarks/duplicates.py says how they were made).
COARSE_LEAST, MIDDLE_LEAST = 0.6, 0.7
CROPS = (1.0, 0.95, 0.9, 0.85, 0.8)  # sides of what may have been cut out of the other, as a share
FLAT = 2.0  # grey levels: a picture with a smaller standard deviation correlates with nothing
_BLOCK = 1 << 16  # pairs: 32 MiB of coarse thumbnails
_THREADS = 4

Thumbnails = NDArray[np.uint8]
Pairs = NDArray[np.int64]
Reals = NDArray[np.float64]


class Matcher:
    """Compares pictures of a data set; each is read once, and again where a pair has to be looked at closely."""

    def __init__(self, images: Images, progress: Callable[[int, int], None]) -> None:
        self.images = images
        self.middle = np.empty((len(images), MIDDLE, MIDDLE), dtype=np.uint8)
        for row in range(len(images)):
            self.middle[row] = thumbnail(images[row], MIDDLE)
            progress(row + 1, len(images))

    def __call__(self, pairs: Pairs) -> Reals:
        """(P,) similarity of the pictures of each pair (P, 2), 0 … 1; 0 for those that are quickly told apart."""
        found = np.zeros(len(pairs))
        coarse = [self._coarse(pairs[start : start + _BLOCK]) for start in range(0, len(pairs), _BLOCK)]
        near = np.flatnonzero(np.concatenate([found[:0], *coarse]) >= COARSE_LEAST)
        with ThreadPoolExecutor(_THREADS) as pool:
            found[near] = list(pool.map(self._closely, pairs[near].tolist()))
        return found

    def _coarse(self, pairs: Pairs) -> Reals:
        """(P,) larger correlation of the smallest thumbnails as they are and mirrored."""
        one, other = (_standard(self.middle[pairs[:, side]]) for side in (0, 1))
        straight = np.einsum("phw,phw->p", one, other)
        mirrored = np.einsum("phw,phw->p", one, other[:, :, ::-1])
        return np.asarray(np.maximum(straight, mirrored), dtype=np.float64)

    def _closely(self, pair: list[int]) -> float:
        one, other = pair
        if correlation(self.middle[one], self.middle[other]) < MIDDLE_LEAST:
            return 0.0
        return max(0.0, correlation(thumbnail(self.images[one], FINE), thumbnail(self.images[other], FINE)))


def thumbnail(image: NDArray[np.uint8], side: int) -> Thumbnails:
    """(side, side) grey picture of all of an image (H, W, C)."""
    import cv2

    grey = image.mean(axis=2, dtype=np.float32)
    small: NDArray[Any] = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(small.round(), dtype=np.uint8)


def correlation(one: Thumbnails, other: Thumbnails) -> float:
    """Largest correlation, −1 … 1, of two grey pictures (S, S), over crops of either at any place, and mirrored.

    That of grey levels without their mean and contrast (Lewis, "Fast Normalized Cross-Correlation", 1995); a flat
    picture has none, 0.
    """
    import cv2

    side, best = len(one), -1.0
    if min(one.std(), other.std()) < FLAT:
        return 0.0
    for turned in (other, np.ascontiguousarray(other[:, ::-1])):
        for share in CROPS:
            part = round(share * side)
            for whole, piece in ((one, turned), (turned, one))[: 1 if part == side else 2]:
                shrunk = cv2.resize(piece, (part, part), interpolation=cv2.INTER_AREA) if part < side else piece
                best = max(best, float(cv2.matchTemplate(whole, shrunk, cv2.TM_CCOEFF_NORMED).max()))
    return min(best, 1.0)


def _standard(middle: Thumbnails) -> NDArray[np.float32]:
    """(P, 8, 8) of mean 0 and length 1 for (P, 32, 32); all 0 for a flat picture."""
    times = MIDDLE // COARSE
    means = middle.reshape(-1, COARSE, times, COARSE, times).mean(axis=(2, 4), dtype=np.float32)
    means -= means.mean(axis=(1, 2), keepdims=True)
    lengths = np.linalg.norm(means, axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(means, lengths, out=np.zeros_like(means), where=lengths > FLAT))
