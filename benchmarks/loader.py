"""Views a second and core: torchvision's ImageFolder and DataLoader, our stream, and our cache of decoded images.

    python benchmarks/loader.py --images 128 --rounds 5

Makes folders of JPEGs of two sizes from scikit-learn's two photographs (crops, resized, with some noise, quality 90),
then lets each loader in turn make one 224-pixel view of every image, by a random resized crop and a flip. Each has a
process of its own with one thread. Time is that of the CPU, so that others disturb it little; files are in memory.

torchvision ends with normalised floats; ours hands over bytes, which become floats on the device. So both are measured
the other way as well: torchvision's "as bytes", and ours "as floats" on the CPU. "decoding alone" is the least that a
stream can take.

Ends with 1 where the bounds below are not met.
"""

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from rayssl.pipeline.augment.spec import HorizontalFlip, RandomResizedCrop, Spec
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.data import decode, open_dataset
from rayssl.pipeline.data.decode import load_size_of
from rayssl.pipeline.run.software import describe_software
from rayssl.pipeline.training.batches import Order, Views
from rayssl.pipeline.training.step import to_batch

SIZES = ((500, 375), (2000, 1500))  # width, height
QUALITY = 90
NOISE = 3.0  # levels, standard deviation: a resized photograph is smoother than one of that size
SIDE = 224
BATCH = 32
SCALE = (0.08, 1.0)  # torchvision's default
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BOUNDS = {"stream": 2.0, "resident": 2.0}  # times torchvision's; of images of 500 × 375 decoding alone reaches 2.4

Epoch = Callable[[], int]  # a pass over all images; returns how many views it made


def main() -> int:
    """Parse, measure both sizes, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="of each size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loader.json")
    options = parser.parse_args()
    if options.images < BATCH or options.rounds < 1:
        parser.error(f"at least {BATCH} images and 1 round are needed")
    with tempfile.TemporaryDirectory(prefix="loader-") as folder, ExitStack() as stack:
        os.environ["RAYSSL_CACHE"] = f"{folder}/cache"
        spawn = multiprocessing.get_context("spawn")
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, spawn, one_thread)) for name in LOADERS}
        results = [measure(Path(folder), size, options.images, options.rounds, pools) for size in SIZES]
    met = all(result["ratios"][name] >= bound for result in results for name, bound in BOUNDS.items())
    write_json(
        options.out,
        {
            "benchmark": "loader",
            "command": " ".join(["python", "benchmarks/loader.py", *sys.argv[1:]]),
            **describe_software(),
            "decoders": {"opencv": cv2.__version__, "pillow": PIL.__version__},
            "view": {"side": SIDE, "scale": SCALE, "flip": 0.5, "batch": BATCH},
            "bounds": BOUNDS,
            "sizes": results,
            "within_bounds": met,
        },
    )
    for result in results:
        print(json.dumps({key: value for key, value in result.items() if key != "rounds"}))
    return 0 if met else 1


def one_thread() -> None:
    """Nothing in this process uses a second core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def measure(
    folder: Path, size: tuple[int, int], images: int, rounds: int, pools: dict[str, ProcessPoolExecutor]
) -> dict[str, Any]:
    """Images a CPU second of every loader, the median over rounds in which they take turns."""
    data = folder / f"{size[0]}x{size[1]}"
    mean_bytes = make_images(data, size, images)
    wall, cpu = time.perf_counter(), time.process_time()
    open_dataset(str(data), image_size=SIDE, val_fraction=0, loader="resident")
    build = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    rates: dict[str, list[float]] = {name: [] for name in pools}
    for number in range(rounds + 1):
        print(f"[{time.strftime('%T')}] {data.name}: round {number} of {rounds}", file=sys.stderr, flush=True)
        for name, pool in pools.items():
            rate = pool.submit(images_per_second, name, str(data)).result()
            if number > 0:  # the first one warms up
                rates[name].append(rate)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "width": size[0],
        "height": size[1],
        "images": images,
        "bytes_an_image": round(mean_bytes),
        "build_of_the_cache": {name: round(seconds, 3) for name, seconds in build.items()},
        "images_per_cpu_second": {name: round(rate, 1) for name, rate in medians.items()},
        "ratios": {name: round(rate / medians["torchvision"], 2) for name, rate in medians.items()},
        "rounds": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
    }


def images_per_second(name: str, data: str) -> float:
    """One epoch, in a loader's own process."""
    epoch = prepared(name, data)
    started = time.process_time()
    views = epoch()
    return views / (time.process_time() - started)


@functools.lru_cache
def prepared(name: str, data: str) -> Epoch:
    """A loader that has opened its images."""
    return LOADERS[name](Path(data))


def make_images(folder: Path, size: tuple[int, int], n: int) -> float:
    """JPEGs below train/ in two classes, and one of each below test/; returns their mean size in bytes."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    random = np.random.default_rng(0)
    for i in range(n + 2):
        path = folder / ("train" if i < n else "test") / "ab"[i % 2] / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(crop(photos[i % 2], random)).resize(size, Image.Resampling.LANCZOS)
        noisy = np.asarray(photo) + random.normal(0, NOISE, (size[1], size[0], 1))
        Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return statistics.mean(path.stat().st_size for path in (folder / "train").rglob("*.jpg"))


def crop(photo: Any, random: np.random.Generator) -> Any:
    """A part of a photograph, 0.7 to 1 of its sides, in the ratio 4 : 3."""
    height = int(photo.shape[0] * random.uniform(0.7, 1.0))
    width = height * 4 // 3
    top, left = random.integers(photo.shape[0] - height + 1), random.integers(photo.shape[1] - width + 1)
    return photo[top : top + height, left : left + width]


def torchvision_epoch(folder: Path, *, floats: bool) -> Epoch:
    """ImageFolder and DataLoader as most people write them, without processes of their own."""
    steps = [transforms.RandomResizedCrop(SIDE, scale=SCALE), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if floats else [transforms.PILToTensor()]
    images = torchvision.datasets.ImageFolder(str(folder / "train"), transforms.Compose(steps))
    loader: DataLoader[Any] = DataLoader(images, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=0)
    return lambda: sum(len(batch) for batch, _ in loader)


def our_epoch(folder: Path, loader: str, *, floats: bool) -> Epoch:
    """The loader that training uses, in this thread."""
    images = open_dataset(str(folder), image_size=SIDE, val_fraction=0, loader=loader).train
    spec = Spec((RandomResizedCrop(scale=SCALE), HorizontalFlip(p=0.5)))
    views = Views(images, Order(len(images), BATCH, seed=0), [spec], SIDE, seed=0, rank=0, world=1)

    def epoch() -> int:
        made = 0
        for step in range(views.order.steps_per_epoch):
            batch = views[step]
            made += len(batch.ids)
            if floats:
                normalise(to_batch(batch, torch.device("cpu"), "fp32", seed=0).views[0])
        return made

    return epoch


def normalise(view: torch.Tensor) -> None:
    """What an encoder does first."""
    view.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def decoding_alone(folder: Path) -> Epoch:
    """Every image to the pixels that are kept."""
    encoded = [path.read_bytes() for path in sorted((folder / "train").rglob("*.jpg"))]
    return lambda: sum(decode(data, 3, load_size_of(SIDE)).ndim // 3 for data in encoded)


LOADERS: dict[str, Callable[[Path], Epoch]] = {
    "torchvision": functools.partial(torchvision_epoch, floats=True),
    "stream": functools.partial(our_epoch, loader="stream", floats=False),
    "resident": functools.partial(our_epoch, loader="resident", floats=False),
    "torchvision as bytes": functools.partial(torchvision_epoch, floats=False),
    "stream as floats": functools.partial(our_epoch, loader="stream", floats=True),
    "resident as floats": functools.partial(our_epoch, loader="resident", floats=True),
    "decoding alone": decoding_alone,
}


if __name__ == "__main__":
    sys.exit(main())
