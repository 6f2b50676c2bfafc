"""Classical descriptors: vectors of images without a network, numpy alone. Honest baselines, and parts of a search.

Shapes: B images of S × S pixels and C channels, D numbers; P = S · S pixels of an image.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Levels = NDArray[np.int16]

HUES, SATURATIONS, VALUES = 12, 3, 3  # bins of a histogram
COLOURS = HUES * SATURATIONS * VALUES
UP = np.float32(1e-3)  # a fraction of bytes is on an edge of bins or further from it: no rounding decides
GRID = 2  # histograms a side
ORIENTATIONS = 9
CELL = 8  # pixels a side
BLOCK = 2  # cells a side
CLIP = 0.2  # largest share of a block's length that one number may have before it is scaled again
EPSILON = 1e-5
IN_CACHE = 1 << 16  # pixels that are described at a time: what is made of them stays in the processor's cache


@dataclass(frozen=True)
class Descriptor:
    """How images are described: read at `size` pixels a side, `dim` numbers; `version` changes with the numbers."""

    size: int
    dim: int
    version: int
    compute: Callable[[Bytes], Floats]  # (B, S, S, C) → (B, D)


def color_histogram(images: Bytes) -> Floats:
    """(B, 432): how much of each colour is in each quarter of an image, the square root of a share.

    12 hues × 3 saturations × 3 values of HSV (Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978). The shares of a
    quarter sum to one; with their square roots, cosines are Bhattacharyya's coefficients (1943). A single channel is
    grey; of two, the second stands for green and blue; of more than three the first three are red, green and blue.
    """
    side = images.shape[1]
    half = np.minimum(np.arange(side) * GRID // side, GRID - 1)
    quarter = (half[:, None] * GRID + half) * COLOURS  # (S, S) where a quarter's bins begin
    sizes = np.bincount(quarter.ravel(), minlength=GRID * GRID * COLOURS)[::COLOURS]
    found = np.empty((len(images), GRID * GRID * COLOURS), dtype=np.float32)
    for rows in _parts(images):
        bins = _colours(images[rows]) + quarter
        counts = _count(bins.reshape(len(bins), -1), found.shape[1])
        shares = counts.reshape(len(bins), GRID * GRID, COLOURS) / np.maximum(sizes, 1)[:, None]
        found[rows] = np.sqrt(shares).reshape(len(bins), -1)
    return found


def hog(images: Bytes) -> Floats:
    """(B, 1764 at 64 px): histograms of oriented gradients (Dalal and Triggs, CVPR 2005), of the grey image.

    Gradients by central differences, 0 across the border; 9 orientations without sign, each gradient counted in one,
    by its length; the mean over cells of 8 × 8 pixels; blocks of 2 × 2 cells scaled by L2-Hys. Grey is Rec. 601's of
    three channels, the mean of any other number. A side that is no multiple of 8 loses its last pixels.
    """
    cells = images.shape[1] // CELL
    blocks = max(cells - BLOCK + 1, 0)
    found = np.empty((len(images), blocks * blocks * BLOCK * BLOCK * ORIENTATIONS), dtype=np.float32)
    for rows in _parts(images):
        found[rows] = _blocks(_cells(_grey(images[rows]), cells), blocks)
    return found


DESCRIPTORS = {
    "color-histogram": Descriptor(96, 432, 1, color_histogram),
    "hog": Descriptor(64, 1764, 1, hog),
}


def describe(name: str, images: Bytes) -> Floats:
    """(B, D) numbers of images (B, S, S, C) by the descriptor `name`."""
    return DESCRIPTORS[name].compute(images)


def _parts(images: Bytes) -> Iterator[slice]:
    step = max(1, IN_CACHE // max(images.shape[1] * images.shape[2], 1))
    for start in range(0, len(images), step):
        yield slice(start, min(start + step, len(images)))


def _count(bins: NDArray[np.int32], n: int, weights: Floats | None = None) -> NDArray[np.float64]:
    """How often, or with what weight, each of `n` bins is among the numbers (B, P): (B, n)."""
    first = np.arange(len(bins), dtype=np.int32)[:, None] * np.int32(n)
    counts = np.bincount((bins + first).ravel(), None if weights is None else weights.ravel(), len(bins) * n)
    return np.asarray(counts, dtype=np.float64).reshape(len(bins), n)


def _colours(images: Bytes) -> NDArray[np.int32]:
    """(B, S, S) the bin of each pixel: hue first, then saturation, then value."""
    import cv2

    channels = images.shape[3]
    if channels != 3:
        images = images[..., [min(channel, channels - 1) for channel in range(3)]]
    hsv = cv2.cvtColor(images.reshape(-1, images.shape[2], 3).astype(np.float32), cv2.COLOR_RGB2HSV)
    hue, saturation, value = cv2.split(hsv)  # 0 … 360, 0 … 1, 0 … 255
    bins = _bin(hue, 360, HUES)
    bins = bins * np.int32(SATURATIONS) + _bin(saturation, 1, SATURATIONS)
    bins = bins * np.int32(VALUES) + _bin(value, 255, VALUES)
    return bins.reshape(images.shape[:3])


def _bin(values: NDArray[Any], most: float, n: int) -> NDArray[np.int32]:
    """Which of `n` equal parts of 0 … most; the last one has its end."""
    part = (values * np.float32(n / most) + UP).astype(np.int32)
    return np.minimum(part, np.int32(n - 1))


def _grey(images: Bytes) -> Levels:
    """(B, S, S) in 0 … 255."""
    channels = images.shape[3]
    if channels == 3:
        import cv2

        flat = np.ascontiguousarray(images).reshape(-1, images.shape[2], 3)
        return np.asarray(cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY).reshape(images.shape[:3]), dtype=np.int16)
    return np.asarray(images[..., 0] if channels == 1 else np.rint(images.mean(axis=3)), dtype=np.int16)


def _cells(grey: Levels, cells: int) -> NDArray[np.float64]:
    """(B, cells, cells, 9) mean length of the gradients of each orientation."""
    side = cells * CELL
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    right[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    at = (down[:, :side, :side].astype(np.int32) + 255) * 511 + (right[:, :side, :side] + np.int16(255))
    lengths, orientations = _gradients()
    row = np.arange(side, dtype=np.int32) // CELL
    bins = orientations[at] + (row[:, None] * np.int32(cells) + row) * np.int32(ORIENTATIONS)
    n = len(grey)
    sums = _count(bins.reshape(n, -1), cells * cells * ORIENTATIONS, lengths[at])
    return sums.reshape(n, cells, cells, ORIENTATIONS) / CELL**2


@functools.cache
def _gradients() -> tuple[Floats, NDArray[np.int32]]:
    """Length and orientation's bin of every gradient of bytes, at (down + 255) · 511 + right + 255."""
    down, right = np.meshgrid(np.arange(-255.0, 256.0), np.arange(-255.0, 256.0), indexing="ij")
    degrees = np.rad2deg(np.arctan2(down, right)) % 180
    bins = np.minimum(degrees * ORIENTATIONS // 180, ORIENTATIONS - 1)
    return np.hypot(down, right).astype(np.float32).ravel(), bins.astype(np.int32).ravel()


def _blocks(cells: NDArray[np.float64], blocks: int) -> Floats:
    """(B, cells, cells, 9) to (B, D): each block scaled to length one, clipped, scaled again."""
    parts = [cells[:, y : y + blocks, x : x + blocks] for y in range(BLOCK) for x in range(BLOCK)]
    found = np.stack(parts, axis=3).reshape(len(cells), blocks, blocks, -1)
    for most in (CLIP, None):
        found /= np.sqrt((found**2).sum(axis=3, keepdims=True) + EPSILON**2)
        if most is not None:
            np.minimum(found, most, out=found)
    return found.reshape(len(cells), -1).astype(np.float32)
