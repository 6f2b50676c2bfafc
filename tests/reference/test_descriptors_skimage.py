"""Classical descriptors against scikit-image."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from rayssl.pipeline.models.descriptors import color_histogram, hog

Bytes = NDArray[np.uint8]


def photographs(side: int) -> Bytes:
    """(24, side, side, 3): crops of two photographs, and noise."""
    rng = np.random.default_rng(0)
    found = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(4)]
    for photograph in load_sample_images().images:
        for size in rng.integers(side, 400, 10).tolist():
            top, left = rng.integers(0, photograph.shape[0] - size), rng.integers(0, photograph.shape[1] - size)
            crop = Image.fromarray(photograph[top : top + size, left : left + size])
            found.append(np.asarray(crop.resize((side, side))))
    return np.stack(found)


@pytest.mark.parametrize("grey", [False, True])
def test_hog(grey: bool) -> None:
    from skimage.feature import hog as peer

    images = photographs(64)
    levels = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
    expected = [
        peer(image, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2), block_norm="L2-Hys")
        for image in levels
    ]
    np.testing.assert_allclose(hog(levels[..., None] if grey else images), expected, atol=1e-6)


def test_color_histogram() -> None:
    from skimage.color import rgb2hsv

    images = photographs(96)
    np.testing.assert_allclose(color_histogram(images), peer_histograms(rgb2hsv(images)), atol=1e-6)


def peer_histograms(hsv: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, 432) of (B, 96, 96, 3), 0 … 1, by numpy's histograms."""
    # Colours on the edge of two bins, which floats may put on either side of it, are brought into the upper one.
    hsv = np.minimum(hsv + 1e-6, 1)
    found = []
    for image in hsv:
        quarters = [image[y : y + 48, x : x + 48].reshape(-1, 3) for y in (0, 48) for x in (0, 48)]
        counts = [np.histogramdd(quarter, (12, 3, 3), ((0, 1),) * 3)[0].ravel() for quarter in quarters]
        found.append(np.sqrt(np.concatenate(counts) / 48**2))
    return np.stack(found)
