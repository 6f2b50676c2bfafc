"""New images from a model: of a VAE's prior, a row a class of a conditional one, pixel by pixel of a PixelCNN.

Codes may also be drawn from a Gaussian that is fitted to those of the training images (of the class), which fills no
room that they leave empty, and works for an autoencoder without a prior too.

Shapes: N samples of C × H × W values, D latent dimensions, K classes (1 where the model is given none).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl.pipeline.base import randomness_torch
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import replacing, write_json
from rayssl.pipeline.data import Images, to_square
from rayssl.pipeline.evaluation.measure import RAW_PIXEL_VALUES
from rayssl.pipeline.generate.decoder import BATCH, Progress, Trained
from rayssl.pipeline.generate.reconstruct import to_pixels
from rayssl.pipeline.methods.base import HasCodes, Samples

ROW = 10  # images in a row of the sheet
NEIGHBOURS_OF = 20_000  # training images that samples are compared with, at most
FITTED_TO = 20_000  # training images whose codes a Gaussian is fitted to, at most
SOURCES = ("prior", "fitted")  # of codes


def sample(
    trained: Trained, count: int, seed: int, out: Path, progress: Progress, codes: str = "prior"
) -> dict[str, Any]:
    """Write samples.png, samples.npz (images, classes) and samples.json into `out`; what is in the latter.

    `count`: images in all, or of each class of a conditional model. `codes`: one of SOURCES. A function of the seed.
    Raises UserError for a model that cannot sample.
    """
    images, labels = draw(trained, count, seed, progress, codes)
    pixels = to_pixels(images)

    from rayssl.pipeline.report.galleries import save_contact_sheet

    classes = None if labels is None else labels.cpu().numpy()
    groups = [pixels] if classes is None else [pixels[classes == one] for one in np.unique(classes)]
    save_contact_sheet([row for group in groups for row in rows_of(group, min(ROW, count))], out / "samples.png")
    with replacing(out / "samples.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=pixels, **({} if classes is None else {"labels": classes}))  # type: ignore[arg-type]
    found = {
        "samples": len(pixels),
        "seed": seed,
        "codes": codes,
        "classes": None if labels is None else list(trained.dataset.class_names or ()),
        **novelty(trained, pixels),
    }
    write_json(out / "samples.json", found)
    return found


def draw(
    trained: Trained, count: int, seed: int, progress: Progress, codes: str = "prior"
) -> tuple[Tensor, Tensor | None]:
    """(N, C, H, W) in [0, 1], and the class (N,) of each of a conditional model."""
    if isinstance(trained.method, Samples):
        if codes == "fitted":
            raise UserError(f"--codes fitted is for an autoencoder: {trained.run} draws images without a code")
        return trained.method.sample(count, seed, progress), None
    method = check_codes(trained, codes)
    classes = method.conditions
    labels = torch.arange(classes, device=trained.device).repeat_interleave(count) if classes else None
    ids = torch.arange(1, count * max(classes, 1) + 1, device=trained.device)
    with torch.inference_mode(), trained.computing():
        z = randomness_torch.normal([seed, "sample", ids], method.encoder.dim)
        if codes == "fitted":
            z = fit_codes(trained, max(classes, 1), progress).shape(z, labels)
        rows = [slice(start, start + BATCH) for start in range(0, len(z), BATCH)]
        images = torch.cat([method.images(z[row], None if labels is None else labels[row]).float() for row in rows])
    progress(len(images), len(images))
    return images, labels


def check_codes(trained: Trained, codes: str) -> HasCodes:
    """The method; raises UserError where it has nothing to draw codes from."""
    method = trained.method
    if not isinstance(method, HasCodes):
        raise UserError(f"{trained.run} cannot sample: it has no code that could be drawn and decoded")
    if codes == "prior" and not method.has_prior:
        raise UserError(
            f"{trained.run} cannot sample: its code has no prior; use --codes fitted, or train with "
            "--method.bottleneck variational, conditional, or a pixelcnn recipe"
        )
    if codes == "fitted" and not method.encoder.has_code:
        raise UserError(
            f"--codes fitted needs a code of a few numbers and that of {trained.run} is a map: train with "
            "--encoder.latent-dim 32"
        )
    return method


@dataclass(frozen=True)
class FittedCodes:
    """A Gaussian for each class: `mean` (K, D), and `root` (K, D, D) with root · rootᵀ the covariance."""

    mean: Tensor
    root: Tensor

    def shape(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Standard normal numbers (N, D) → codes (N, D) of the classes (N,)."""
        which = torch.zeros(len(noise), dtype=torch.int64, device=noise.device) if labels is None else labels
        return self.mean[which] + (self.root[which] @ noise[..., None])[..., 0]


def fit_codes(trained: Trained, classes: int, progress: Progress) -> FittedCodes:
    """Fit a Gaussian to the codes of the training images of each class, as the decoder is given them.

    Ghosh et al., "From variational to deterministic autoencoders", ICLR 2020, §4 (there also mixtures). The covariance
    is that of the codes' means plus the mean of their own variances. Raises UserError for a class without images.
    """
    method: Any = trained.method
    images = trained.dataset.train
    known = images if classes == 1 else images.select(images.labelled()[0])
    rows = np.linspace(0, len(known) - 1, min(len(known), FITTED_TO)).astype(np.int64)
    parts: list[tuple[Tensor, ...]] = []
    for number, batch in enumerate(trained.batches(known, rows), start=1):
        mean, variance = method.code_distribution(batch.x, batch.labels)
        label = batch.labels if classes > 1 and batch.labels is not None else batch.ids.new_zeros(len(mean))
        parts.append((mean.double(), variance.double(), label))
        progress(min(number * BATCH, len(rows)), len(rows))
    mean, variance, label = (torch.cat(part) for part in zip(*parts, strict=True))
    for number in range(classes):
        if not bool((label == number).any()):
            raise UserError(f"--codes fitted: no training image of {trained.dataset.class_names[number]} to fit to")  # type: ignore[index]
    fitted = [gaussian_of(mean[label == number], variance[label == number]) for number in range(classes)]
    return FittedCodes(*(torch.stack(part).float() for part in zip(*fitted, strict=True)))


def gaussian_of(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and root (D, D) of the covariance of codes with means and variances (N, D)."""
    centre = mean.mean(dim=0)
    covariance = (mean - centre).T @ (mean - centre) / len(mean) + variance.mean(dim=0).diag()
    values, vectors = torch.linalg.eigh(covariance)  # a code that never changes has a root as well
    return centre, vectors * values.clamp(min=0).sqrt()


def rows_of(pixels: NDArray[np.uint8], width: int) -> list[NDArray[np.uint8]]:
    """Rows of `width` images; the last one is filled up with white."""
    rows = [pixels[start : start + width] for start in range(0, len(pixels), width)]
    white = np.full((width - len(rows[-1]), *pixels.shape[1:]), 255, np.uint8)
    return [*rows[:-1], np.concatenate([rows[-1], white])]


def novelty(trained: Trained, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Distance of samples to their nearest training image beside that of evaluation images: copies would be nearer.

    And how much they differ among each other beside evaluation ones. Root mean squared difference, pixels in [0, 1], of
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
