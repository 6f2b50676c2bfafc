"""What the competitors' scripts share: their task, the images, the encoder, and how many steps a time budget holds.

It runs inside the competitors' environments, so it needs nothing of this project but `models.backbones`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.datasets import VisionDataset

from rayssl.pipeline.models.backbones import build_backbone, choose_stem

IMAGE_SIZE = 32
LOG_SECONDS = 0.5  # as often as our own loop writes
WARM_STEPS = 5  # before the speed is measured: threads start, and what compiles does so
TRAIN_IMAGES, TRAIN_LABELS = "train.npy", "train-labels.npy"


@dataclass(frozen=True)
class Task:
    """What a script is told on its command line."""

    images: Path  # folder with TRAIN_IMAGES (N, 32, 32, 3) uint8 and TRAIN_LABELS (N,)
    out: Path
    encoder: str
    batch_size: int
    seconds: float  # of training; 0: only measure the speed
    warmup_seconds: float
    seed: int
    settings: dict[str, Any]


def read_task() -> Task:
    """The command line."""
    parser = argparse.ArgumentParser()
    for name, kind in (
        ("images", Path), ("out", Path), ("encoder", str), ("batch-size", int), ("seconds", float),
        ("warmup-seconds", float), ("seed", int), ("settings", json.loads),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, required=True)
    return Task(**vars(parser.parse_args()))


class Watch(Protocol):
    """Is told of every step."""

    def step(self) -> bool:
        """Another step is done: whether to go on."""


@dataclass
class Speed:
    """Finds out how many steps a second there are, from a run that is thrown away."""

    seconds: float
    marks: list[float] = field(default_factory=list)

    def step(self) -> bool:
        """Go on until so many seconds have passed after the first steps."""
        self.marks.append(time.perf_counter())
        measured = self.marks[WARM_STEPS:]
        return len(measured) < 3 or measured[-1] - measured[0] < self.seconds

    def steps_per_second(self) -> float:
        """Over the later two thirds: at first there are batches that were made ahead."""
        late = self.marks[WARM_STEPS:]
        late = late[min(len(late) // 3, len(late) - 2) :]
        return (len(late) - 1) / (late[-1] - late[0])


class Log:
    """Stops after so many steps; writes a line a step to metrics.jsonl, which the stopwatch outside reads."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.steps, self.done, self.written = steps, 0, 0
        self.path, self.last = folder / "metrics.jsonl", time.perf_counter()

    def step(self) -> bool:
        """Count the step."""
        self.done += 1
        if self.done == self.steps or time.perf_counter() - self.last >= LOG_SECONDS:
            self.write()
        return self.done < self.steps

    def write(self) -> None:
        """The lines since the last time, in the form of our own log."""
        if self.done == self.steps and torch.cuda.is_available():
            torch.cuda.synchronize()
        rows = range(self.written, self.done)
        with self.path.open("a") as file:
            file.write("".join(json.dumps({"stage": "pretrain", "step": step}) + "\n" for step in rows))
        self.written, self.last = self.done, time.perf_counter()


@dataclass
class Waiting:
    """Time that the training loop waits for its batches."""

    seconds: float = 0.0
    began: float | None = None

    def start(self) -> None:
        """Training begins; another epoch is no new beginning."""
        self.began = self.began or time.perf_counter()

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of one epoch; the start of the loader counts as waiting too."""
        self.start()
        asked = time.perf_counter()
        iterator = iter(loader)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def share(self, end: float) -> float:
        """Of the time from the beginning of training to its end."""
        assert self.began is not None
        return self.seconds / (end - self.began)


Fit = Callable[[Task, Watch, Waiting, int], nn.Module]


def run(fit: Fit, package: str, mean: Iterable[float], std: Iterable[float], companions: Iterable[str] = ()) -> None:
    """Measure the speed, turn the budget into steps, train, and write backbone and facts.

    `fit(task, watch, waiting, steps)` trains until the watch says stop, with a schedule for so many steps, and returns
    the backbone. `mean` and `std` are what the images, in [0, 1], were normalised by.
    """
    task = read_task()
    speed = Speed(task.warmup_seconds)
    fit(task, speed, Waiting(), 10**6)  # a schedule that does not end
    rate = speed.steps_per_second()
    facts: dict[str, Any] = {
        "steps_per_second_before": rate,
        "settings": task.settings,
        "mean": list(mean),
        "std": list(std),
        "versions": {name: metadata.version(name) for name in (package, "torch", "torchvision", *companions)},
        "threads": torch.get_num_threads(),
    }
    if task.seconds:
        steps, waiting = max(1, round(task.seconds * rate)), Waiting()
        log = Log(task.out, steps)
        backbone = fit(task, log, waiting, steps)
        facts |= {"steps": steps, "data_wait": waiting.share(log.last)}
        state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
        save_file(state, task.out / "encoder.safetensors")
    (task.out / "result.json").write_text(json.dumps(facts))


def new_backbone(task: Task) -> nn.Module:
    """The common encoder, initialised by the task's seed."""
    torch.manual_seed(task.seed)
    return build_backbone(task.encoder, 3, IMAGE_SIZE, choose_stem(task.encoder, IMAGE_SIZE))


def feature_dim(backbone: nn.Module) -> int:
    """D of the features (B, D); no statistic moves."""
    with torch.no_grad():
        backbone.eval()
        dim = int(backbone(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)).shape[1])
        backbone.train()
    return dim


class Cifar10(torchvision.datasets.CIFAR10):
    """torchvision's own CIFAR10, which the guides read, with images that are given: (PIL image, label) by position."""

    def __init__(self, folder: Path, transform: Callable[[Any], Any] | None = None) -> None:
        VisionDataset.__init__(self, str(folder), transform=transform)
        self.data = np.load(folder / TRAIN_IMAGES)
        self.targets = np.load(folder / TRAIN_LABELS).tolist()


def choose_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
