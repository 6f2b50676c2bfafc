"""How far the two augmentation backends are apart, and how fast each makes views.

    python benchmarks/augment_backends.py --data CIFAR10

Differences are those of 256 images at their own size, every operation applied to every image, in units of 1 / 255.
Speed is that of SimCLR's view in one process, the fastest of several batches, images and drawn parameters being there.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from rayssl.pipeline.augment import albumentations_backend, batched_backend
from rayssl.pipeline.augment.defaults import finetune_view, rotnet_views, simclr_views
from rayssl.pipeline.augment.spec import OPERATIONS, ColorJitter, Rotation, Spec, Table, Translation
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.run.software import describe_software

BATCH = 256
REPEATS = 20
NEUTRAL = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def main() -> None:
    """Parse, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="colour images of one size, as `rayssl run` takes them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the batched backend on a CPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "augment_backends.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train = open_dataset(options.data).train
    images = np.stack([train[i] for i in range(BATCH)])
    device = torch.device(options.device)
    result = {
        "benchmark": "augment_backends",
        "command": f"python benchmarks/augment_backends.py --data {Path(options.data).name} --device {device.type}",
        **describe_software(),
        "opencv": cv2.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": options.threads,
        "batch": BATCH,
        "size": images.shape[1],
        "differences": {name: difference(spec, images, device) for name, spec in specs(images.shape[1]).items()},
        "views_per_second": speeds(images, device),
    }
    write_json(options.out, result)
    print(json.dumps(result, indent=1))


def specs(size: int) -> dict[str, Spec]:
    """Every operation, the parts of colour jitter, and whole views."""
    traits: dict[str, Any] = {"channels": 3, "mirror": True}
    strengths = ColorJitter()
    return {
        **{name: Spec((operation(p=1.0),)) for name, operation in OPERATIONS.items()},
        **{
            f"color_jitter: {name}": Spec((ColorJitter(**{**NEUTRAL, name: getattr(strengths, name)}, p=1.0),))
            for name in NEUTRAL
        },
        "rotation, translation": Spec((Rotation(p=1.0), Translation(p=1.0))),
        "SimCLR, tiny": simclr_views(image_size=8, **traits)[0],
        "SimCLR, small": simclr_views(image_size=32, **traits)[0],
        "SimCLR, large": simclr_views(image_size=96, **traits)[0],
        "RotNet": rotnet_views(image_size=size, **traits)[0],
        "finetune": finetune_view(image_size=size, **traits),
    }


def draw(spec: Spec) -> Table:
    """Parameters of one batch."""
    return spec.draw(seed=0, epoch=0, ids=np.arange(1, BATCH + 1), view=0)


def difference(spec: Spec, images: Any, device: torch.device) -> dict[str, float]:
    """Largest and mean absolute difference in units of 1 / 255."""
    table, size = draw(spec), images.shape[1]
    one_by_one = albumentations_backend.apply_table(spec, table, list(images), size)
    batched = batched_backend.apply_table(spec, table, torch.from_numpy(images).to(device), size)
    found = np.abs(batched.permute(0, 2, 3, 1).cpu().numpy() * 255 - one_by_one)
    return {"max": round(float(found.max()), 2), "mean": round(float(found.mean()), 3)}


def speeds(images: Any, device: torch.device) -> dict[str, int]:
    """Views per second of either backend."""
    size = images.shape[1]
    spec = simclr_views(image_size=size, channels=3, mirror=True)[0]
    table, one_by_one, on_device = draw(spec), list(images), torch.from_numpy(images).to(device)

    def batched() -> None:
        batched_backend.apply_table(spec, table, on_device, size)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return {
        "albumentations": round(
            BATCH / fastest(lambda: albumentations_backend.apply_table(spec, table, one_by_one, size))
        ),
        "batched": round(BATCH / fastest(batched)),
    }


def fastest(function: Callable[[], Any]) -> float:
    """Seconds of the fastest call, after one to warm up."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
