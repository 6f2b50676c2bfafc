"""What a copy of CIFAR-10 costs against its original pixels, by a network that learns from labels.

    pip install --no-deps airbench==0.1.8
    python benchmarks/data_cost.py --data.path CIFAR10 --out benchmarks/results/data_cost.json

Trains airbench94, whose accuracy on the original pixels is published: 94.01 % in the mean of a thousand runs, which
scatter by 0.14 (K. Jordan, 94 % on CIFAR-10 in 3.29 seconds on a single GPU, 2024). Everything of it stays but the
device: on a CPU its weights are kept in fp32 and layers computed in bf16, where on a GPU all is fp16.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peers import read_images
from runs import facts
from torch import nn

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.files import write_json

PUBLISHED = 0.9401


class Clock:
    """Stands in for a GPU's event, of which airbench needs the time between two."""

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self) -> None:
        """Note the time."""
        self.at = time.perf_counter()

    def elapsed_time(self, other: "Clock") -> float:
        """Milliseconds from here to there."""
        return (other.at - self.at) * 1000


def main() -> int:
    """Train, rate, write."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=9.9)
    options = parser.parse_args(rest)
    data, out = Path(changes["data.path"]).resolve(), options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        save_for_airbench(data)
        accuracy = accuracies(options.epochs)
    result = {**facts("data_cost", changes["data.path"]), "epochs": options.epochs, "published": PUBLISHED, **accuracy}
    write_json(out, result)
    print(f"{accuracy['test']:.4f} of the test images, {accuracy['mirrored and moved']:.4f} with views averaged")
    return 0


def save_for_airbench(data: Path) -> None:
    """Both splits where it looks for them, under the working folder."""
    Path("cifar10").mkdir()
    for split in ("train", "test"):
        images, labels = read_images(data / f"{split}.parquet")
        saved = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels).long(), "classes": []}
        torch.save(saved, f"cifar10/{split}.pt")


def accuracies(epochs: float) -> dict[str, float]:
    """Shares of the test images that are named rightly: plain, and as published, over six views."""
    bring_to_cpu()
    import airbench  # after what it uses was changed

    torch.manual_seed(0)
    test = airbench.CifarLoader("cifar10", train=False)
    net = airbench.train94(epochs=epochs, make_net=lambda: in_bf16(airbench.make_net94()))
    return {"test": airbench.evaluate(net, test), "mirrored and moved": airbench.evaluate(net, test, tta_level=2)}


def in_bf16(net: nn.Module) -> nn.Module:
    """Its layers computed in bf16, what comes out in fp32."""
    forward = net.forward

    def computed(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(images).float()

    net.forward = computed  # type: ignore[method-assign]
    return net


def bring_to_cpu() -> None:
    """Let what asks for a GPU or fp16 stay on the CPU and in fp32."""
    load = torch.load
    torch.load = lambda path, map_location: load(path)  # type: ignore[assignment]
    torch.cuda.Event = Clock  # type: ignore[misc, assignment]
    torch.cuda.synchronize = lambda: None  # type: ignore[assignment]
    nn.Module.cuda = nn.Module.half = lambda self: self  # type: ignore[assignment, method-assign]
    torch.Tensor.half = torch.Tensor.float  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
