"""`scattered-digits`: scikit-learn's handwritten digits at a random place and size on a larger canvas, among clutter.

After the cluttered translated MNIST of Mnih et al. 2014, "Recurrent Models of Visual Attention", section 4.1, which
puts fragments of other digits around one that has been moved. Size and contrast are random here, too. Nothing is
downloaded: the 1,797 digits come with scikit-learn.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 24  # of the canvas, pixels
SIZES = (10, 16)  # of a digit's square, pixels
INK = (0.55, 1.0)  # brightness of the digit's brightest pixel
FRAGMENTS = 5
FRAGMENT_SIDE = 5  # pixels
FRAGMENT_INK = (0.35, 0.85)
RENDERS = 3  # of a training digit
TEST, VALIDATION = 0.2, 0.1  # fractions of the digits
SEED = 2014

Pixels = NDArray[np.float64]


def scatter() -> dict[str, Iterable[tuple[Image.Image, int]]]:
    """Split (`train`, `validation`, `test`) → (24 × 24 grey image, digit): the same on every machine and every time.

    A training digit is drawn three times, any other once. All drawings of a digit are in one split, and the clutter is
    cut from training digits everywhere.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    ends = np.cumsum([round(TEST * len(order)), round(VALIDATION * len(order))])
    test, validation, train = np.split(order, ends)
    clutter: Pixels = digits.images[np.sort(train)] / 16
    splits = {"train": (np.sort(train), RENDERS), "validation": (np.sort(validation), 1), "test": (np.sort(test), 1)}

    def drawn(number: int, render: int) -> tuple[Image.Image, int]:
        draw = np.random.default_rng([SEED, number, render])
        return _draw(digits.images[number] / 16, clutter, draw), int(digits.target[number])

    return {
        split: [drawn(number, render) for number in numbers for render in range(renders)]
        for split, (numbers, renders) in splits.items()
    }


def _draw(digit: Pixels, clutter: Pixels, draw: np.random.Generator) -> Image.Image:
    """One digit (8 × 8, 0 … 1) on a canvas among fragments of others (N × 8 × 8)."""
    canvas = np.zeros((SIDE, SIDE))
    for fragment in _fragments(clutter, draw):
        _put(canvas, fragment * draw.uniform(*FRAGMENT_INK), draw)
    size = int(draw.integers(SIZES[0], SIZES[1], endpoint=True))
    _put(canvas, _resized(digit, size) * draw.uniform(*INK), draw)
    return Image.fromarray(np.rint(canvas * 255).astype(np.uint8))


def _fragments(clutter: Pixels, draw: np.random.Generator) -> Iterator[Pixels]:
    """Squares cut out of other digits at the size that a digit may have."""
    for number in draw.integers(len(clutter), size=FRAGMENTS):
        size = int(draw.integers(SIZES[0], SIZES[1], endpoint=True))
        top, left = draw.integers(size - FRAGMENT_SIDE, size=2, endpoint=True)
        yield _resized(clutter[number], size)[top : top + FRAGMENT_SIDE, left : left + FRAGMENT_SIDE]


def _put(canvas: Pixels, ink: Pixels, draw: np.random.Generator) -> None:
    """Lay `ink` on a random place of the canvas: the brighter of both is seen."""
    height, width = ink.shape
    top, left = draw.integers(SIDE - height, endpoint=True), draw.integers(SIDE - width, endpoint=True)
    place = canvas[top : top + height, left : left + width]
    np.maximum(place, ink, out=place)


def _resized(image: Pixels, size: int) -> Pixels:
    """(size, size) by bilinear interpolation, of values within 0 … 1."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR), float)
