"""What a recipe and its settings are worth by images held out of train, where choices are made.

    python benchmarks/held_out.py --data.path CIFAR10 --encoder.name resnet-tiny --train.steps 1046 --train.threads 1

Pre-trains in this process, without Ray, and prints kNN (cosine, k = 20, T = 0.07) of the held-out images by the other
training images, precision over their classes among themselves (map@r) and the accuracy of k-means; all of them also of
whitened features. Further --a.b options go to the run.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from backend_accuracy import features, rate
from numpy.typing import NDArray
from runs import train

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.vectors import kmeans
from rayssl.pipeline.data.dataset import Dataset
from rayssl.pipeline.evaluation.metrics import cluster_agreement, retrieval
from rayssl.pipeline.features.whitening import fit_whitening


def main() -> int:
    """Train, rate, print."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="simclr-cifar10")
    parser.add_argument("--run", type=Path, default=Path("runs/held-out"))
    options = parser.parse_args(rest)
    torch.set_num_threads(int(changes.get("train.threads", torch.get_num_threads())))
    dataset = train(options.recipe, options.run, changes).dataset
    known, asked = features(options.run, dataset, "val")
    whiten = fit_whitening(known)
    plain, whitened = figures(dataset, known, asked), figures(dataset, whiten(known), whiten(asked))
    print(f"of {len(dataset.val)} held-out images")
    for name, value in plain.items():
        print(f"{name:<8} {value:.4f}, whitened {whitened[name]:.4f}")
    return 0


def figures(dataset: Dataset, known: NDArray[np.float32], asked: NDArray[np.float32]) -> dict[str, float]:
    """Shares in 0 … 1; `known` (N, D) are of the training images, `asked` (M, D) of the held-out ones."""
    labels = dataset.val.labels
    assert labels is not None
    clusters = kmeans(asked, len(dataset.class_names or ()), seed=0)
    return {
        "kNN": rate(dataset, "val", known, asked),
        "map@r": retrieval(asked, labels)["map@r"],
        "k-means": cluster_agreement(clusters, labels)["acc"],
    }


if __name__ == "__main__":
    sys.exit(main())
