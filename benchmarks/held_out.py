"""What a recipe and its settings are worth by images held out of train, where choices are made.

    python benchmarks/held_out.py --data.path CIFAR10 --encoder.name resnet-tiny --train.steps 1046 --train.threads 1

Pre-trains in this process, without Ray, and prints kNN (cosine, k = 20, T = 0.07) of the held-out images by the other
training images, also of whitened features. Further --a.b options go to the run.
"""

import argparse
import sys
from pathlib import Path

import torch
from backend_accuracy import features, rate
from runs import train

from jobs.cli import take_config_paths
from pipeline.whitening import fit_whitening


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
    plain, whitened = rate(dataset, "val", known, asked), rate(dataset, "val", whiten(known), whiten(asked))
    print(f"kNN of {len(dataset.val)} held-out images {plain:.4f}, whitened {whitened:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
