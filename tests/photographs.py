"""Real photographs in small pieces, and what is done to them to plant copies."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KINDS = ("jpeg", "resize", "crop", "flip")


def pieces() -> dict[str, list[Image.Image]]:
    """Pieces of scikit-learn's two photographs, by the photograph, below the sky of one of them."""
    from sklearn.datasets import load_sample_image

    found = {}
    for name in ("china", "flower"):
        whole = load_sample_image(f"{name}.jpg")
        corners = [(y, x) for y in (139, 235, 331) for x in range(0, 640 - 96, 96)]
        found[name] = [Image.fromarray(whole[y : y + 96, x : x + 96]) for y, x in corners]
    return found


def copied(picture: Image.Image, kind: str, path: Path) -> None:
    """Save a copy as people make them: JPEG of quality 30, 60 % of the size, 90 % of each side, mirrored."""
    width, height = picture.size
    if kind == "jpeg":
        picture.save(path.with_suffix(".jpg"), quality=30)
        return
    changed = {
        "resize": lambda: picture.resize((round(0.6 * width), round(0.6 * height)), Image.Resampling.LANCZOS),
        "crop": lambda: picture.crop((2, 7, 2 + round(0.9 * width), 7 + round(0.9 * height))),
        "flip": lambda: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }[kind]()
    changed.save(path.with_suffix(".png"))


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
