"""Pictures for the report: image tiles as data: addresses, nearest neighbours, what the augmentations do."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.files import replacing
from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.data.formats import marks

if TYPE_CHECKING:
    from rayssl.pipeline.data import Dataset

QUERIES = 8
NEIGHBOURS = 8
TILE = 96  # largest side of a tile, in pixels
SHEET = 960  # largest side of a contact sheet or a figure, in pixels
LEAST_TILE = 64  # smallest side of an image in a sheet, in pixels
GAP = 2  # pixels between the images of a sheet
PHOTOGRAPH = 64  # from this side on JPEG is smaller than PNG, and its artefacts do not show
LARGEST_FILE = 400_000  # bytes of a figure that is taken as it is


@dataclass(frozen=True)
class Neighbour:
    """A training image near a query; `score` is the cosine similarity."""

    row: int
    score: float


def image_address(image: NDArray[np.uint8], largest: int = TILE, photograph: int = PHOTOGRAPH) -> str:
    """data: address of an image (H, W, C); shrunk to `largest` pixels a side, JPEG from `photograph` pixels on."""
    from PIL import Image

    picture = Image.fromarray(_visible(image))
    if max(picture.size) > largest:
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    kind = "JPEG" if min(picture.size) >= photograph else "PNG"
    return _address(picture, kind)


def file_address(path: Path) -> str:
    """data: address of a PNG file; shrunk where it is large. Raises OSError where it is not an image."""
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as picture:
        picture.load()
    if path.stat().st_size <= LARGEST_FILE:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    smaller = picture.convert("RGB")
    smaller.thumbnail((2 * SHEET, 2 * SHEET), Image.Resampling.LANCZOS)
    return _address(smaller, "JPEG")


def save_contact_sheet(rows: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Write a PNG with one row for each (N, H, W, C) stack of images, whole or not at all.

    Image i of every stack stands in column i, enlarged to at least 64 pixels a side, with white gaps between.
    """
    from PIL import Image

    lines = [np.concatenate([_enlarged(image) for image in stack], axis=1) for stack in rows]
    with replacing(path) as temporary:
        Image.fromarray(_visible(np.concatenate(lines))).save(temporary, format="PNG", optimize=True, **marks("PNG"))


def nearest(queries: NDArray[np.float32], train: NDArray[np.float32], k: int) -> list[list[Neighbour]]:
    """The k training rows of largest cosine with each query (Q, D), exactly, best first; ties by row."""
    scores = _unit(queries) @ _unit(train).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [[Neighbour(int(j), float(scores[i, j])) for j in rows] for i, rows in enumerate(order)]


def choose_queries(n: int, labels: NDArray[np.int64] | None, seed: int, count: int = QUERIES) -> list[int]:
    """Rows of the test split to show: drawn by the seed, of as many classes as possible."""
    order = permutation(n, seed, "report-queries")
    if labels is None:
        return [int(row) for row in order[:count]]
    seen: dict[int, int] = {}
    turns = []
    for row in order:
        turns.append(seen.get(int(labels[row]), 0))
        seen[int(labels[row])] = turns[-1] + 1
    return [int(row) for row in order[np.argsort(turns, kind="stable")][:count]]


def tiles_by_id(dataset: "Dataset", ids: Iterable[int]) -> dict[int, str]:
    """data: addresses of those of the images that the data set has, by sample id."""
    wanted = np.fromiter(ids, dtype=np.int64)
    side = min(dataset.image_size, TILE)
    found: dict[int, str] = {}
    for images in (dataset.train, dataset.val, dataset.test):
        if images is None or len(images) == 0:
            continue
        rows = np.flatnonzero(np.isin(images.ids, wanted))
        if len(rows):
            pixels = images.square(rows, side)
            found.update({int(images.ids[row]): image_address(tile) for row, tile in zip(rows, pixels, strict=True)})
    return found


def augmentation_sheet(dataset: "Dataset", views: Sequence[dict[str, Any]], seed: int) -> NDArray[np.uint8]:
    """Contact sheet (H, W, C) of what the views do: one row an image, the clean image first."""
    from rayssl.pipeline.augment import gallery, view_from_dict

    rows = permutation(len(dataset.train), seed, "report-augmentation")[:4]
    images = [dataset.train[int(row)] for row in rows]
    return gallery(images, [view_from_dict(view) for view in views], size=dataset.image_size, seed=seed, n_draws=8)


def _visible(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey (H, W) or colour (H, W, 3); of other numbers of channels the first ones."""
    if image.ndim == 2:
        return image
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At least LEAST_TILE pixels a side by repeating pixels, with a white gap to the right and below."""
    times = -(-LEAST_TILE // min(image.shape[:2]))
    larger = image.repeat(times, axis=0).repeat(times, axis=1)
    return np.pad(larger, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def _address(picture: Any, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, optimize=True, **({"quality": 82} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12)))
