"""What is wrong with a picture by itself: blurred, dark, bright, flat, of an odd size or shape. No encoder is asked.

Shapes: N images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.data import Images

ODD = 3.5  # modified z-score from which a value is an outlier (Iglewicz and Hoaglin, 1993)
SHARPNESS_LEAST = 1.0  # of the variance whose logarithm is compared: a flat picture has 0
TWICE = 2.0  # that a side or a shape has to differ by besides: where nearly all are equal, anything else is an outlier
DARK, BRIGHT = 16.0, 239.0  # grey level, 0 … 255, below or above which nearly all pixels are
NEARLY_ALL = 95.0  # percent
FLAT = 4.0  # standard deviation of the grey levels, 0 … 255

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """Figures of N pictures."""

    sharpness: Reals  # (N,) variance of the Laplacian of the grey picture (Pech-Pacheco et al., ICPR 2000)
    dark: NDArray[np.bool_]
    bright: NDArray[np.bool_]
    contrast: Reals  # (N,) standard deviation of the grey levels, 0 … 255
    heights: NDArray[np.int64]  # (N,) of the stored pictures, in pixels; 0 where that cannot be read
    widths: NDArray[np.int64]

    def flags(self) -> dict[str, NDArray[np.bool_]]:
        """(N,) each. "blurred", "size" and "shape" are by comparison with the others, the rest is not."""
        known = (self.heights > 0) & (self.widths > 0)
        heights, widths = self.heights.clip(min=1), self.widths.clip(min=1)
        flat = self.contrast < FLAT
        sharpness = modified_z(np.log(np.maximum(self.sharpness, SHARPNESS_LEAST)))
        return {
            "blurred": (sharpness < -ODD) & ~flat,
            "dark": self.dark,
            "bright": self.bright,
            "flat": flat,
            "size": known & _odd(np.sqrt(heights * widths)),
            "shape": known & _odd(heights / widths),
        }


def measure_quality(images: Images, progress: Callable[[int, int], None]) -> Quality:
    """Look at every image once, as it is kept: shrunk to about what the network sees."""
    n = len(images)
    figures = np.empty((n, 4))
    sizes = np.empty((n, 2), dtype=np.int64)
    for row in range(n):
        figures[row] = _figures(images[row])
        sizes[row] = images.stored_size(row) or (0, 0)
        progress(row + 1, n)
    dark, bright = figures[:, 1] < DARK, figures[:, 2] > BRIGHT
    return Quality(figures[:, 0], dark, bright, figures[:, 3], sizes[:, 0], sizes[:, 1])


def sharpness_of(image: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of a picture (H, W, C)."""
    import cv2

    return float(cv2.Laplacian(_grey(image), cv2.CV_32F).var())


def modified_z(values: Reals) -> Reals:
    """(N,) 0.6745 · (x − median) / MAD; where more than half are equal, every other one is infinitely far away."""
    off = values - np.median(values)
    spread = float(np.median(np.abs(off)))
    if spread < 1e-9:
        return np.where(np.abs(off) < 1e-9, 0.0, np.copysign(np.inf, off))
    return np.asarray(0.6745 * off / spread)


def _odd(values: Reals) -> NDArray[np.bool_]:
    """(N,) whether a positive value is an outlier, and at least twice or at most half the median."""
    logs = np.log(values)
    return np.asarray((np.abs(modified_z(logs)) > ODD) & (np.abs(logs - np.median(logs)) >= np.log(TWICE)))


def _figures(image: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Sharpness, the grey level below which nearly all are, the one above which, and their standard deviation."""
    grey = _grey(image)
    low, high = np.percentile(grey, [100 - NEARLY_ALL, NEARLY_ALL])
    return sharpness_of(image), float(high), float(low), float(grey.std())


def _grey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(image.mean(axis=2, dtype=np.float32))
