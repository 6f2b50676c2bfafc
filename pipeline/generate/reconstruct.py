"""Reconstructions of evaluation images: pictures, an error for each image, and likelihoods where the model has them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl.pipeline.base.files import replacing, write_json
from rayssl.pipeline.data import Images
from rayssl.pipeline.evaluation.measure import Record
from rayssl.pipeline.generate.decoder import Progress, Trained
from rayssl.pipeline.methods.base import BoundsLikelihood, HasLikelihood, Key, Method, Reconstructs
from rayssl.pipeline.models.identity import encoder_hash

SHOWN = 12
MEAN_OF = 1_000  # training images that the mean image is the mean of
DRAWS = 64  # of z, for the importance-weighted bound

Figures = dict[str, NDArray[np.float64]]  # a metric's value for every image, (N,)


def reconstruct(trained: Trained, out: Path, draws: int, progress: Progress) -> list[Record]:
    """Write reconstructions.png, errors.parquet and summary.json into `out`; records of means over evaluation images.

    A PixelCNN has likelihoods alone: it has no code to restore an image from.
    """
    images = trained.held_out
    figures = measure(trained, images, draws, progress)
    if reconstructs(trained):
        save_pictures(trained, images, out / "reconstructions.png")
    save_figures(images, figures, out / "errors.parquet")
    records = [summarise(trained, name, values, draws) for name, values in figures.items()]
    write_json(out / "summary.json", {record["metric"]: record["value"] for record in records})
    return records


def reconstructs(trained: Trained) -> bool:
    """Whether an image comes back from its code: not from a PixelCNN, which has none."""
    return isinstance(trained.method, Reconstructs)


def measure(trained: Trained, images: Images, draws: int, progress: Progress) -> Figures:
    """Squared errors of the reconstruction of the images as they are and corrupted, and likelihoods."""
    parts: dict[str, list[Tensor]] = {}
    mean = mean_image(trained) if reconstructs(trained) else None
    done = 0
    for batch in trained.batches(images):
        with torch.inference_mode(), trained.computing():
            found: dict[str, Tensor] = {}
            if mean is not None and isinstance(trained.method, Reconstructs):
                found |= errors_of(trained.method, batch.x, batch.ids, batch.labels, trained.seed, mean)
            found |= likelihood_of(trained.method, batch.x, batch.ids, batch.labels, trained.seed, draws)
        for name, value in found.items():
            parts.setdefault(name, []).append(value.double().cpu())
        done += len(batch.x)
        progress(done, len(images))
    return {name: torch.cat(values).numpy() for name, values in parts.items()}


def errors_of(
    method: Reconstructs, x: Tensor, ids: Tensor, labels: Tensor | None, seed: int, mean: Tensor
) -> dict[str, Tensor]:
    """Mean squared errors (B,) against the clean image, pixels in [0, 1]."""
    clean = method.target(x, [seed, 0, ids, 0])
    found = {"reconstruct/mse": squared_error(method.reconstruct(clean, labels), clean)}
    if method.corrupts:
        corrupted = method.corrupt(clean, ids, seed, 0)
        found["reconstruct/denoised-mse"] = squared_error(method.reconstruct(corrupted, labels), clean)
        found["reconstruct/corrupted-mse"] = squared_error(corrupted, clean)
    return {**found, "reconstruct/mean-image-mse": squared_error(mean, clean)}


def likelihood_of(
    method: Method[Any], x: Tensor, ids: Tensor, labels: Tensor | None, seed: int, draws: int
) -> dict[str, Tensor]:
    """(B,) −log p(x) where it is exact, as of a PixelCNN; else −ELBO and the importance-weighted bound, if any."""
    key: Key = [seed, 0, ids, 0]
    if isinstance(method, HasLikelihood):
        nats = method.nats(x, key)
        return {"likelihood/nats": nats, "likelihood/bits-per-dim": nats / (math.log(2) * x[0].numel())}
    if draws == 0 or not isinstance(method, BoundsLikelihood) or not method.has_likelihood:
        return {}
    elbo, bound = method.log_likelihood(method.target(x, key), labels, draws, key)
    return {"likelihood/negative-elbo": -elbo, f"likelihood/iwae-{draws}": -bound}


def squared_error(found: Tensor, clean: Tensor) -> Tensor:
    """Mean over an image's values: (B, C, H, W) → (B,)."""
    return (found.float() - clean).square().flatten(1).mean(dim=1)


def mean_image(trained: Trained) -> Tensor:
    """(C, H, W): what a model that knows nothing of the image would say."""
    rows = np.arange(min(len(trained.dataset.train), MEAN_OF))
    sums = [batch.x.sum(dim=0) for batch in trained.batches(trained.dataset.train, rows)]
    return torch.stack(sums).sum(dim=0) / len(rows)


def summarise(trained: Trained, name: str, values: NDArray[np.float64], draws: int) -> Record:
    """The mean over images with its 95 % interval, and how it was measured."""
    half = 1.96 * float(values.std()) / max(len(values), 1) ** 0.5
    mean = float(values.mean())
    where = f"{len(values)} evaluation images; interval over images"
    protocol = "mean squared error against the clean image, pixels in [0, 1]"
    if name.startswith("likelihood/"):
        protocol = how_likely(trained, name, draws)
    return {
        "metric": name,
        "value": mean,
        "protocol": f"{protocol}, {where}",
        "data": trained.dataset.name,
        "split": trained.held_out_split,
        "checkpoint": encoder_hash(trained.run)[:12],
        "seed": trained.seed,
        "n": len(values),
        "interval": [mean - half, mean + half],
    }


def how_likely(trained: Trained, name: str, draws: int) -> str:
    """Unit, binarisation, and whether it is exact."""
    method = trained.method
    assert isinstance(method, HasLikelihood | BoundsLikelihood)
    unit = "bits a value" if name.endswith("bits-per-dim") else "nats an image"
    drawn = "" if isinstance(method, HasLikelihood) else f", {draws} draws of z"
    return f"{unit}, {method.likelihood_protocol}{drawn}"


def save_figures(images: Images, figures: Figures, path: Path) -> None:
    """One row an image: id, path, and every figure."""
    columns = {"id": pa.array(images.ids), "path": pa.array(images.paths)}
    with replacing(path) as temporary:
        pq.write_table(pa.table({**columns, **{name: pa.array(values) for name, values in figures.items()}}), temporary)


def save_pictures(trained: Trained, images: Images, path: Path) -> None:
    """A row of clean images, of what was made of them where they are corrupted, and of what came back."""
    from rayssl.pipeline.report.galleries import save_contact_sheet

    batch = trained.clean(images, np.arange(min(len(images), SHOWN)))
    method = trained.method
    assert isinstance(method, Reconstructs)
    with torch.inference_mode(), trained.computing():
        clean = method.target(batch.x, [trained.seed, 0, batch.ids, 0])
        corrupted = method.corrupt(clean, batch.ids, trained.seed, 0)
        rows = [clean, corrupted, method.reconstruct(corrupted, batch.labels)]
    shown = rows if method.corrupts else rows[::2]
    save_contact_sheet([to_pixels(row) for row in shown], path)


def to_pixels(x: Tensor) -> NDArray[np.uint8]:
    """(B, C, H, W) in [0, 1] to (B, H, W, C)."""
    pixels: NDArray[np.uint8] = (x.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels
