"""Does a conditional autoencoder draw the class it is asked for, with variety, and without copying?

    python benchmarks/class_samples.py --data.path MNIST --train.epochs 20

A convolutional classifier, trained on the same images and on nothing of the model, names the class of every sample.
Variety: the root mean squared difference between two images of a class, of samples beside held-out ones. Copying: the
distance to the nearest training image, of samples beside held-out ones. Both in pixels and in the classifier's
features.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from runs import facts, train
from torch import nn

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.generate.decoder import Trained, open_trained
from rayssl.pipeline.generate.reconstruct import to_pixels
from rayssl.pipeline.generate.sample import SOURCES, draw, nearest_distance, spread
from rayssl.pipeline.models.encoder import build_encoder

COUNT = 500  # samples a class
EPOCHS = 4  # of the classifier

Floats = NDArray[np.float32]


def main() -> int:
    """Train both, draw, compare."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cvae-mnist")
    parser.add_argument("--codes", choices=SOURCES, default="fitted", help="as rayssl sample has it")
    parser.add_argument("--run", type=Path, default=Path("runs/class-samples"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "class-samples-mnist.json")
    options = parser.parse_args(rest)
    train(options.recipe, options.run, changes)
    trained = open_trained(options.run)
    classifier = train_classifier(trained)
    samples, labels = draw(trained, COUNT, 0, lambda done, total: None, options.codes)
    assert labels is not None
    found = compare(trained, classifier, to_pixels(samples), labels.cpu().numpy())
    write_json(options.out, {**facts("class_samples", changes.get("data.path", "")), **found})
    for name, value in found.items():
        print(f"{name:<44} {value:.4f}")
    return 0


def train_classifier(trained: Trained) -> nn.Module:
    """A small convolutional network, supervised."""
    data = trained.dataset
    torch.manual_seed(1)
    encoder = build_encoder("cnn-small", channels=data.channels, image_size=data.image_size)
    net = nn.Sequential(encoder, nn.Linear(encoder.dim, len(data.class_names or ()))).to(trained.device)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = rng.permutation(len(data.train))
        for start in range(0, len(order) - 127, 128):
            batch = trained.clean(data.train, order[start : start + 128])
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch.x), batch.labels).backward()
            optimizer.step()
    return net.eval()


def compare(trained: Trained, classifier: Any, pixels: NDArray[np.uint8], labels: Any) -> dict[str, float]:
    """Samples beside the test images."""
    test = trained.held_out
    real = test.square(np.arange(len(test)), trained.dataset.image_size)
    known = trained.dataset.train.square(np.arange(len(trained.dataset.train)), trained.dataset.image_size)
    assert test.labels is not None
    seen = {name: look(classifier, images) for name, images in (("made", pixels), ("real", real), ("known", known))}
    flat = {name: images.reshape(len(images), -1).astype(np.float32) / 255
            for name, images in (("made", pixels), ("real", real), ("known", known))}  # fmt: skip
    found = {
        "recognised": float((seen["made"][1] == labels).mean()),
        "test images recognised": float((seen["real"][1] == test.labels).mean()),
    }
    for what, rows in (("pixels", flat), ("features", {name: value[0] for name, value in seen.items()})):
        made, truth = (within(rows[name], its) for name, its in (("made", labels), ("real", test.labels)))
        found |= {
            f"variety in {what}, share of the test images'": made / truth,
            f"distance to train in {what}, samples": float(nearest_distance(rows["made"], rows["known"]).mean()),
            f"distance to train in {what}, test images": float(nearest_distance(rows["real"], rows["known"]).mean()),
        }
    return found


def within(rows: Floats, labels: Any) -> float:
    """Root mean squared difference of two images of a class, mean over the classes."""
    return float(np.mean([spread(rows[labels == label]) for label in np.unique(labels)]))


@torch.inference_mode()
def look(classifier: Any, images: NDArray[np.uint8]) -> tuple[Floats, Any]:
    """Features (N, D) and classes (N,)."""
    features = []
    for start in range(0, len(images), 500):
        x = torch.from_numpy(images[start : start + 500]).permute(0, 3, 1, 2).float() / 255
        features.append(classifier[0](x.to(classifier[1].weight.device)))
    found = torch.cat(features)
    return found.cpu().numpy(), classifier[1](found).argmax(dim=1).cpu().numpy()


if __name__ == "__main__":
    sys.exit(main())
