"""Does it matter to the result which augmentation backend made the views? The same recipe through both, several seeds.

    python benchmarks/backend_accuracy.py --data.path CIFAR10 --encoder.name resnet-tiny --seeds 0,1,2 --train.steps 600

kNN of the test images by all training images (cosine, k = 20, T = 0.07). Further --a.b options go to every run.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from runs import facts, train

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.device import choose_device
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.vectors import knn_classify, normalise
from rayssl.pipeline.features.extract import embed_images
from rayssl.pipeline.models.export import load_encoder

BACKENDS = ("albumentations", "batched")
K, TEMPERATURE = 20, 0.07


def main() -> int:
    """Every backend and seed; exit code 1 where the means differ by more than noise."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="simclr-cifar10")
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--runs", type=Path, default=Path("runs/backend-accuracy"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "backend_accuracy.json")
    options = parser.parse_args(rest)
    found: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for seed in options.seeds:
        for backend in BACKENDS:
            run = options.runs / f"{backend}-{seed}"
            prepared = train(options.recipe, run, {**changes, "train.seed": seed, "augment.backend": backend})
            found[backend].append(knn(run, prepared.dataset))
            print(f"{backend} seed {seed}: {found[backend][-1]:.4f}", file=sys.stderr, flush=True)
    means = {backend: statistics.mean(values) for backend, values in found.items()}
    spreads = {backend: statistics.stdev(values) for backend, values in found.items()}
    difference = means["batched"] - means["albumentations"]
    noise = 2 * (sum(spread**2 for spread in spreads.values()) / len(options.seeds)) ** 0.5
    result = {"knn": found, "means": means, "stds": spreads, "difference": difference, "two_standard_errors": noise}
    write_json(options.out, {**facts("backend_accuracy", changes.get("data.path", "")), **result})
    for backend in BACKENDS:
        print(f"{backend:<16} {100 * means[backend]:.2f} ± {100 * spreads[backend]:.2f}")
    print(f"difference       {100 * difference:+.2f}, twice its standard error {100 * noise:.2f}")
    return 0 if abs(difference) <= noise else 1


def knn(run: Path, dataset: object) -> float:
    """Accuracy of the frozen encoder on the test images by all training images."""
    return rate(dataset, "test", *features(run, dataset, "test"))


def features(run: Path, dataset: object, part: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """L2-normalised, of all training images and of a part."""
    encoder, device = load_encoder(run), choose_device()
    encoder.to(device)
    known, asked = (
        normalise(embed_images(encoder, getattr(dataset, name), device=device, precision="fp32"))
        for name in ("train", part)
    )
    return known, asked


def rate(dataset: object, part: str, known: NDArray[np.float32], asked: NDArray[np.float32]) -> float:
    """The share of a part whose class most votes of the training images name."""
    labels, truth = (getattr(dataset, name).labels for name in ("train", part))
    predicted = knn_classify(known, labels, asked, K, TEMPERATURE, len(dataset.class_names or ()))  # type: ignore[attr-defined]
    return float((predicted == truth).mean())


if __name__ == "__main__":
    sys.exit(main())
