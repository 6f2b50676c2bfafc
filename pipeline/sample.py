"""New images from a model: of a VAE's prior, a row a class of a conditional one, pixel by pixel of a PixelCNN.

Shapes: N samples of C × H × W values.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import randomness_torch
from pipeline.data import Images, to_square
from pipeline.errors import UserError
from pipeline.evaluate import RAW_PIXEL_VALUES
from pipeline.files import replacing, write_json
from pipeline.reconstruct import to_pixels
from pipeline.trained import BATCH, Progress, Trained

ROW = 10  # images in a row of the sheet
NEIGHBOURS_OF = 20_000  # training images that samples are compared with, at most


def sample(trained: Trained, count: int, seed: int, out: Path, progress: Progress) -> dict[str, Any]:
    """Write samples.png, samples.npz (images, classes) and samples.json into `out`; what is in the latter.

    `count`: images in all, or of each class of a conditional model. A function of the seed.
    Raises UserError for a model that cannot sample.
    """
    images, labels = draw(trained, count, seed, progress)
    pixels = to_pixels(images)

    from pipeline.report.galleries import save_contact_sheet

    classes = None if labels is None else labels.cpu().numpy()
    groups = [pixels] if classes is None else [pixels[classes == one] for one in np.unique(classes)]
    save_contact_sheet([row for group in groups for row in rows_of(group, min(ROW, count))], out / "samples.png")
    with replacing(out / "samples.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=pixels, **({} if classes is None else {"labels": classes}))  # type: ignore[arg-type]
    found = {
        "samples": len(pixels),
        "seed": seed,
        "classes": None if labels is None else list(trained.dataset.class_names or ()),
        **novelty(trained, pixels),
    }
    write_json(out / "samples.json", found)
    return found


def draw(trained: Trained, count: int, seed: int, progress: Progress) -> tuple[Tensor, Tensor | None]:
    """(N, C, H, W) in [0, 1], and the class (N,) of each of a conditional model."""
    method: Any = trained.method
    if hasattr(method, "sample"):
        return method.sample(count, seed, progress), None
    if not getattr(method, "has_prior", False):
        raise UserError(
            f"{trained.run} cannot sample: its code has no prior; train with --method.bottleneck variational, "
            "conditional, or a pixelcnn recipe"
        )
    classes = method.conditions
    labels = torch.arange(classes, device=trained.device).repeat_interleave(count) if classes else None
    ids = torch.arange(1, count * max(classes, 1) + 1, device=trained.device)
    with torch.inference_mode(), trained.computing():
        z = randomness_torch.normal([seed, "sample", ids], method.encoder.dim)
        rows = [slice(start, start + BATCH) for start in range(0, len(z), BATCH)]
        images = torch.cat([method.images(z[row], None if labels is None else labels[row]).float() for row in rows])
    progress(len(images), len(images))
    return images, labels


def rows_of(pixels: NDArray[np.uint8], width: int) -> list[NDArray[np.uint8]]:
    """Rows of `width` images; the last one is filled up with white."""
    rows = [pixels[start : start + width] for start in range(0, len(pixels), width)]
    white = np.full((width - len(rows[-1]), *pixels.shape[1:]), 255, np.uint8)
    return [*rows[:-1], np.concatenate([rows[-1], white])]


def novelty(trained: Trained, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Distance of samples to their nearest training image beside that of held-out images: copies would be nearer.

    And how much they differ among each other beside held-out ones. Root mean squared difference, pixels in [0, 1], of
    images shrunk to at most RAW_PIXEL_VALUES values.
    """
    side = min(pixels.shape[1], math.isqrt(RAW_PIXEL_VALUES // pixels.shape[3]))
    train, real = flat(trained.dataset.train, NEIGHBOURS_OF, side), flat(trained.held_out, len(pixels), side)
    small = pixels if side == pixels.shape[1] else np.stack([to_square(image, side) for image in pixels])
    made = in_unit(small)
    return {
        "distance_to_train": float(nearest_distance(made, train).mean()),
        "distance_to_train_of_held_out": float(nearest_distance(real, train).mean()),
        "spread": spread(made),
        "spread_of_held_out": spread(real),
    }


def flat(images: Images, most: int, side: int) -> NDArray[np.float32]:
    """(N, C · side²) in [0, 1] of evenly spaced images."""
    rows = np.linspace(0, len(images) - 1, min(len(images), most)).astype(np.int64)
    return in_unit(images.square(rows, side))


def in_unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, …) bytes to (N, values) in [0, 1]."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)


def nearest_distance(queries: NDArray[np.float32], train: NDArray[np.float32]) -> NDArray[np.float32]:
    """(Q,) root mean squared difference to the nearest row of `train`."""
    import faiss

    index = faiss.IndexFlatL2(train.shape[1])
    index.add(train)
    squares, _ = index.search(queries, 1)
    return np.sqrt(np.maximum(squares[:, 0], 0) / np.float32(train.shape[1])).astype(np.float32)


def spread(rows: NDArray[np.float32]) -> float:
    """Root mean squared difference between two rows drawn at random: √(2 · mean variance)."""
    return float(np.sqrt(2 * rows.var(axis=0).mean()))
