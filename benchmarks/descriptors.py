"""What the classical descriptors cost, and what nearest neighbours by them find.

    OMP_NUM_THREADS=1 python benchmarks/descriptors.py --data.path CIFAR10 --folder DIR LABELS.csv --folder …

Describes every image of a data set in one thread, as a run does; reading and resizing are told apart. Then, for each
folder, kNN (k = 20, T = 0.07) of its test images among the others, by raw pixels and both descriptors. Seconds are
those of the processor, so that others disturb them little; "wall seconds" are the clock's.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from runs import facts

from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.vectors import knn_classify
from rayssl.pipeline.data import Images, open_dataset
from rayssl.pipeline.evaluation.measure import raw_pixel_embeddings
from rayssl.pipeline.evaluation.metrics import interval_of_proportion
from rayssl.pipeline.features.frozen import BLOCK
from rayssl.pipeline.models.descriptors import DESCRIPTORS, describe

K, TEMPERATURE = 20, 0.07
PIXELS_AT = 96  # raw pixels are shrunk from these

Floats = NDArray[np.float32]


def main() -> int:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="data", required=True)
    parser.add_argument("--folder", nargs=2, action="append", default=[], metavar=("DIR", "CSV"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "descriptors.json")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    result = {
        **facts("descriptors", options.data),
        "opencv": cv2.__version__,
        "seconds": {name: cost(options.data, name) for name in DESCRIPTORS},
        "knn": {Path(folder).name: neighbours(folder, labels) for folder, labels in options.folder},
    }
    for word in {place for pair in options.folder for place in pair}:
        result["command"] = result["command"].replace(word, Path(word).name)
    write_json(options.out, result)
    print(json.dumps({key: result[key] for key in ("seconds", "knn")}, indent=1))
    return 0


def cost(path: str, name: str) -> dict[str, Any]:
    """Seconds to describe all images, and how many those are."""
    size = DESCRIPTORS[name].size
    dataset = open_dataset(path, image_size=size)
    images = dataset.train.join(dataset.val, dataset.test)
    began, reading, describing = time.perf_counter(), 0.0, 0.0
    for rows in blocks(len(images)):
        start = time.process_time()
        squares = images.square(rows, size)
        read = time.process_time()
        describe(name, squares)
        reading, describing = reading + read - start, describing + time.process_time() - read
    wall = time.perf_counter() - began
    seconds = {"reading": reading, "describing": describing, "wall seconds": wall}
    return {"images": len(images), **{key: round(value, 1) for key, value in seconds.items()}}


def neighbours(folder: str, labels: str) -> dict[str, Any]:
    """kNN of the test images, in per cent, with its 95 % interval."""
    found = {"raw-pixels": knn(folder, labels, PIXELS_AT, pixels)}
    for name, descriptor in DESCRIPTORS.items():
        found[name] = knn(folder, labels, descriptor.size, lambda images, name=name: described(images, name))
    return found


def knn(folder: str, labels: str, size: int, vectors: Callable[[Images], Floats]) -> dict[str, Any]:
    """Test images among those of train and val."""
    dataset = open_dataset(folder, image_size=size, labels=labels)
    assert dataset.test is not None
    known, asked = dataset.train.join(dataset.val), dataset.test
    (rows, classes), (test_rows, expected) = known.labelled(), asked.labelled()
    n_classes = len(dataset.class_names or ())
    predicted = knn_classify(vectors(known)[rows], classes, vectors(asked)[test_rows], K, TEMPERATURE, n_classes)
    hits = int((predicted == expected).sum())
    low, high = interval_of_proportion(hits, len(expected))
    percent = [round(100 * share, 1) for share in (hits / len(expected), low, high)]
    return {"top1": percent[0], "interval": percent[1:], "images": len(rows), "test images": len(expected)}


def pixels(images: Images) -> Floats:
    """Raw pixels as every report has them."""
    return raw_pixel_embeddings(images, "", image_size=PIXELS_AT, channels=images.channels).vectors


def described(images: Images, name: str) -> Floats:
    """(N, D) by a descriptor."""
    size = DESCRIPTORS[name].size
    return np.concatenate([describe(name, images.square(rows, size)) for rows in blocks(len(images))])


def blocks(n: int) -> list[NDArray[np.int64]]:
    """Positions 0 … n, some at a time."""
    return [np.arange(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


if __name__ == "__main__":
    sys.exit(main())
