"""What Ray, the loader, the start and the reading of images cost beside the computation.

    python benchmarks/overhead.py --data.path CIFAR10 --steps 150 --rounds 3

Measures, taking turns where there are two sides:
  ray        images/s of `rayssl pretrain` under Ray over those of the same loop in a plain process (at least 0.97), and
             the share of time that waits for data (at most 0.05), with both loaders
  start      seconds of `rayssl --help` (under 0.5), and of `rayssl query` beyond a bare `import torch` (at most 3)
  embedding  images/s of embedding over those of the bare forward pass on images that are loaded (at least 0.9)

Ends with 1 where a bound is not met. Leave it the machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayssl.pipeline.base.device import choose_device, resolve_precision, to_float
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import Config, load, override
from rayssl.pipeline.features.extract import BATCH, embed_images
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.build import new_encoder
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.run.software import describe_software
from rayssl.pipeline.stages.index import run_index
from rayssl.pipeline.stages.start import prepare
from rayssl.pipeline.stages.story import run_worker_stages

RECIPE = "simclr-cifar10"
BOUNDS = {"ray": 0.97, "data wait": 0.05, "help": 0.5, "query": 3.0, "embedding": 0.9}


def main() -> int:
    """Parse, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="data", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1, help="turns of Ray and plain process")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)  # what the plain process is started with
    parser.add_argument("--loader", default="resident", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    options = parser.parse_args()
    if options.bare:
        return train_bare(options)
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        training = {loader: compare_ray(options, loader, Path(folder)) for loader in ("resident", "stream")}
        start = measure_start(Path(folder) / "resident-ray-0")
        embedding = measure_embedding(Path(folder) / "resident-ray-0")
    met = judge(training, start, embedding)
    facts = {"benchmark": "overhead", "command": " ".join(["python", "benchmarks/overhead.py", *sys.argv[1:]])}
    write_json(options.out, {**facts, **describe_software(), "bounds": BOUNDS, "training": training, "start": start,
                             "embedding": embedding, "met": met})  # fmt: skip
    print(*(f"{name:<22} {'met' if good else 'NOT met'}" for name, good in met.items()), sep="\n")
    return 0 if all(met.values()) else 1


def judge(training: dict[str, Any], start: dict[str, float], embedding: dict[str, float]) -> dict[str, bool]:
    """Every bound and whether it is met."""
    met = {f"ray, {loader}": found["ratio"] >= BOUNDS["ray"] for loader, found in training.items()}
    met |= {f"data wait, {loader}": found["data_wait"] <= BOUNDS["data wait"] for loader, found in training.items()}
    met["help"] = start["help"] < BOUNDS["help"]
    met["query"] = start["query"] - start["import torch"] <= BOUNDS["query"]
    met["embedding"] = embedding["ratio"] >= BOUNDS["embedding"]
    return met


def flags(options: argparse.Namespace, loader: str) -> list[str]:
    """The flags of both sides."""
    own = ["--train.steps", str(options.steps), "--data.loader", loader, "--wandb", "disabled"]
    own += ["--train.small-views", "0"]  # one speed from the first step to the last
    return ["--data.path", options.data, "--augment.backend", "albumentations", *own]


def compare_ray(options: argparse.Namespace, loader: str, folder: Path) -> dict[str, Any]:
    """Images/s under Ray and in a plain process, in turns."""
    speeds: dict[str, list[float]] = {"ray": [], "bare": []}
    waits = []
    for number in range(options.rounds):
        run = folder / f"{loader}-ray-{number}"
        call([sys.executable, "-m", "rayssl.jobs.main", "pretrain", RECIPE, "--out", str(run), *flags(options, loader)])
        speeds["ray"].append(speed(run))
        waits.append(data_wait(run))
        run = folder / f"{loader}-bare-{number}"
        own = ["--data.path", options.data, "--steps", str(options.steps), "--loader", loader, "--bare", str(run)]
        call([sys.executable, __file__, *own])
        speeds["bare"].append(speed(run))
    middle = {side: statistics.median(values) for side, values in speeds.items()}
    print(f"{loader}: {middle}, data wait {max(waits):.3f}", file=sys.stderr, flush=True)
    return {"images_per_s": speeds, "ratio": middle["ray"] / middle["bare"], "data_wait": max(waits)}


def train_bare(options: argparse.Namespace) -> int:
    """The same loop without Ray, with as many threads as Ray gives its worker."""
    torch.set_num_threads(os.cpu_count() or 1)
    words = flags(options, options.loader)
    changes = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2])}
    config: Config = override(build_recipe(RECIPE), changes)
    prepare(config, options.bare, command="", warn=print, progress=lambda *_: None)
    run_worker_stages(options.bare, ["pretrain"], Silent())
    return 0


def call(command: list[str]) -> None:
    """Run a command quietly, with threads that wait asleep as the console command has them."""
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})


def second_half(run: Path, name: str) -> list[float]:
    """A measurement's values in the second half of pre-training."""
    rows = [row for row in MetricsLog(run).rows() if row["stage"] == "pretrain"]
    return [row[name] for row in rows[len(rows) // 2 :] if name in row]


def speed(run: Path) -> float:
    """Images a second, the median over the second half."""
    return statistics.median(second_half(run, "perf/images_per_s"))


def data_wait(run: Path) -> float:
    """Share of time that waits for data, the mean over the second half."""
    return statistics.mean(second_half(run, "perf/data_wait"))


def measure_start(run: Path) -> dict[str, float]:
    """Medians of seconds, of five starts each."""
    embed = [sys.executable, "-m", "rayssl.jobs.main", "embed", str(run)]
    call(embed)
    run_index(run)
    image = run / "query.png"
    save_one_image(run, image)
    rayssl = [sys.executable, "-m", "rayssl.jobs.main"]
    commands = {
        "help": [*rayssl, "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "query": [*rayssl, "query", str(run), str(image)],
    }
    return {name: statistics.median(seconds(lambda c=c: silent(c)) for _ in range(5)) for name, c in commands.items()}


def save_one_image(run: Path, path: Path) -> None:
    """One of the run's test images as a file."""
    from PIL import Image

    test = open_data(load(run / "config.json")).test
    assert test is not None
    Image.fromarray(test[0]).save(path)


def silent(command: list[str]) -> None:
    """Run a command and show nothing."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure_embedding(run: Path) -> dict[str, float]:
    """Embedding from the data set against the forward pass over images that lie there as bytes, in turns."""
    config = load(run / "config.json")
    torch.set_num_threads(os.cpu_count() or 1)
    images, device = open_data(config).train, choose_device()
    precision = resolve_precision("auto", device)
    images = images.select(np.arange(min(len(images), 80 * BATCH)))
    encoder = new_encoder(config).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    pixels = torch.from_numpy(images.square(np.arange(len(images)), encoder.image_size))

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for part in pixels.split(BATCH):
                encoder(to_float(part, device, precision)).float().cpu()

    def embed() -> None:
        embed_images(encoder, images, device=device, precision=precision)

    times = {"forward": [], "embedding": []}  # type: dict[str, list[float]]
    for _ in range(4):
        times["forward"].append(seconds(forward))
        times["embedding"].append(seconds(embed))
    quickest = {name: min(values[1:]) for name, values in times.items()}
    return {**{name: len(images) / value for name, value in quickest.items()},
            "ratio": quickest["forward"] / quickest["embedding"]}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
