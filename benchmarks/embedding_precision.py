"""What it costs to embed in fp32 instead of bf16.

    python benchmarks/embedding_precision.py --out benchmarks/results/embedding_precision.json

Both embed the same made-up images in turn, in one process, `--pairs` times after one round that only warms up. Leave it
the machine.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl.pipeline.base.device import choose_device
from rayssl.pipeline.data import Images
from rayssl.pipeline.features.extract import embed_images
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.run.software import describe_software

CASES = (("resnet-tiny", 32, 512), ("resnet18", 32, 256))  # network, pixels a side, images


@dataclass(frozen=True)
class Noise:
    """Images that are made before they are embedded: no time goes into reading."""

    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def square(self, rows: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """(B, size, size, 3)."""
        return self.pixels[rows]


def main() -> None:
    """Embed in turns, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    device = choose_device()
    found = [compare(*case, device, options.pairs) for case in CASES]
    command = f"python benchmarks/embedding_precision.py --out FILE --pairs {options.pairs}"
    facts = {"benchmark": "embedding_precision", "command": command, **describe_software(), "device": device.type}
    options.out.write_text(json.dumps({**facts, "images a second": found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def compare(name: str, side: int, n: int, device: torch.device, pairs: int) -> dict[str, Any]:
    """Images a second in both precisions, and the median ratio of the pairs with its extremes."""
    images = Noise(np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8))
    encoder = build_encoder(name, channels=3, image_size=side).to(device)

    def rate(precision: str) -> float:
        began = time.perf_counter()
        embed_images(encoder, cast(Images, images), device=device, precision=precision)
        return n / (time.perf_counter() - began)

    rounds = [(rate("bf16"), rate("fp32")) for _ in range(pairs + 1)][1:]
    ratios = sorted(fp32 / bf16 for bf16, fp32 in rounds)
    bf16, fp32 = (round(statistics.median(rates)) for rates in zip(*rounds, strict=True))
    return {
        "network": name,
        "pixels a side": side,
        "bf16": bf16,
        "fp32": fp32,
        "fp32 / bf16": [round(value, 2) for value in (ratios[0], statistics.median(ratios), ratios[-1])],
    }


if __name__ == "__main__":
    main()
