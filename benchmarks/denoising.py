"""Denoising autoencoders against filters and PCA on MNIST test images, for every corruption.

    python benchmarks/denoising.py --data.path MNIST --train.epochs 10 --seeds 0,1,2

The error is the mean squared one against the clean image, pixels in [0, 1]. The width of the Gaussian and the size of
the median filter are the best ones on held-out training images; PCA has 32 components of clean training images.
Further --a.b options go to the config of every run. What is in --runs already is not done again.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from runs import facts, train
from scipy.ndimage import gaussian_filter, median_filter
from sklearn.decomposition import PCA

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.generate.decoder import Trained, open_trained

CORRUPTIONS = ("gaussian", "salt-and-pepper", "masking")
WIDTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)  # of the Gaussian, in pixels
SIZES = (2, 3, 4, 5)  # of the median's window
COMPONENTS = 32

Floats = NDArray[np.float32]


def main() -> int:
    """Every corruption and seed; a table."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--runs", type=Path, default=Path("runs/denoising"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "denoising-mnist.json")
    options = parser.parse_args(rest)
    found: dict[str, list[dict[str, float]]] = {}
    for corruption in CORRUPTIONS:
        for seed in options.seeds:
            run = options.runs / f"{corruption}-{seed}"
            train(f"denoising-{corruption}-mnist", run, {**changes, "train.seed": seed})
            found.setdefault(corruption, []).append(errors(open_trained(run)))
            print(corruption, seed, found[corruption][-1], file=sys.stderr, flush=True)
    summary = {name: {key: mean_and_std([row[key] for row in rows]) for key in rows[0]} for name, rows in found.items()}
    write_json(options.out, {**facts("denoising", changes.get("data.path", "")), "summary": summary, "figures": found})
    names = list(next(iter(summary.values())))
    print("| corruption | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for name, row in summary.items():
        print(f"| {name} | " + " | ".join(f"{row[key]['mean']:.4f} ± {row[key]['std']:.4f}" for key in names) + " |")
    return 0


def errors(trained: Trained) -> dict[str, float]:
    """Of everything that could restore the test images."""
    clean, spoilt, restored = spoil(trained, "test", restore=True)
    val_clean, val_spoilt, _ = spoil(trained, "val", restore=False)
    train_images = trained.dataset.train
    pixels = train_images.square(np.arange(len(train_images)), trained.dataset.image_size)
    pca = PCA(COMPONENTS, random_state=0).fit(pixels.reshape(len(pixels), -1).astype(np.float32) / 255)
    by_pca = pca.inverse_transform(pca.transform(spoilt.reshape(len(spoilt), -1))).reshape(spoilt.shape).clip(0, 1)
    width = min(WIDTHS, key=lambda w: error(smooth(val_spoilt, w), val_clean))
    size = min(SIZES, key=lambda s: error(median(val_spoilt, s), val_clean))
    return {
        "autoencoder": error(restored, clean),
        "Gaussian filter": error(smooth(spoilt, width), clean),
        "median filter": error(median(spoilt, size), clean),
        f"PCA, {COMPONENTS}": error(by_pca, clean),
        "mean image": error(np.broadcast_to(pca.mean_.reshape(1, *clean.shape[1:]), clean.shape), clean),
        "as it is": error(spoilt, clean),
    }


def spoil(trained: Trained, split: str, *, restore: bool) -> tuple[Floats, Floats, Floats]:
    """(N, H, W) clean, corrupted and, if asked for, restored images."""
    images = getattr(trained.dataset, split)
    method: Any = trained.method
    parts: list[list[Floats]] = []
    for batch in trained.batches(images):
        with torch.inference_mode(), trained.computing():
            spoilt = method.corrupt(batch.x, batch.ids, trained.seed, 0)
            restored = method.reconstruct(spoilt) if restore else spoilt
        parts.append([x[:, 0].float().cpu().numpy() for x in (batch.x, spoilt, restored)])
    clean, corrupted, back = (np.concatenate(column) for column in zip(*parts, strict=True))
    return clean, corrupted, back


def smooth(images: Floats, width: float) -> Floats:
    """Gaussian filter of each image."""
    found: Floats = gaussian_filter(images, (0, width, width))
    return found


def median(images: Floats, size: int) -> Floats:
    """Median filter of each image."""
    found: Floats = median_filter(images, (1, size, size))
    return found


def error(found: Any, clean: Floats) -> float:
    """Mean squared."""
    return float(((found - clean) ** 2).mean())


def mean_and_std(values: list[float]) -> dict[str, float]:
    """Over seeds."""
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


if __name__ == "__main__":
    sys.exit(main())
