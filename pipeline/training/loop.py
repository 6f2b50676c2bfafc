"""The training loop: plain PyTorch, the same in one process, under torchrun and on Ray.

Pre-training and fine-tuning both run it: a classifier is one more Method.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.methods.base import MethodOutput
from rayssl.pipeline.training.batches import RawBatch
from rayssl.pipeline.training.optimizers import set_learning_rate
from rayssl.pipeline.training.step import Step

POLL_STEPS = 10  # several workers agree on stops, checkpoints and logging so often
POLL_SECONDS = 0.5  # one worker needs to agree with nobody


class NotFinite(UserError):  # noqa: N818
    """A loss or a weight is no number any more, at a step."""

    def __init__(self, text: str, step: int) -> None:
        super().__init__(text)
        self.step = step


@dataclass(frozen=True)
class Hooks:
    """What the loop tells the outside, and asks it. `should_stop` and `look` are called on every worker."""

    log: Callable[[list[dict[str, Any]]], None] = lambda rows: None  # rows for metrics.jsonl
    progress: Callable[[dict[str, Any]], None] = lambda row: None  # one row for a person
    checkpoint: Callable[[int], None] = lambda step: None  # save the state after so many steps
    checkpoint_due: Callable[[int], bool] = lambda step: False
    should_stop: Callable[[], bool] = lambda: False
    # After so many steps: whether to look at what was learned, by their number alone; then, whether to end there.
    look_due: Callable[[int], bool] = lambda step: False
    look: Callable[[int], bool] = lambda step: False


@dataclass(frozen=True)
class Loop:
    """Steps of a plan, one after the other."""

    step: Step
    stage: str  # by which rows of the log are told apart
    steps_per_epoch: int
    learning_rate: Callable[[int], float]  # at a step
    hooks: Hooks

    def run(self, batches: Iterator[RawBatch], start: int, stop: int) -> int:
        """Steps start … stop − 1; returns the number of steps done (less than `stop` when asked to stop).

        Raises NotFinite where the loss is not. Every worker must call it with the same arguments.
        """
        method, hooks = self.step.method, self.hooks
        method.train()
        if start == 0 and stop > 0:  # before workers are joined, which hold the first weights fast
            first = next(batches)
            self.step.initialize(first)
            batches = itertools.chain([first], batches)
        take_step = self.step.begin()
        meter = Meter(self.stage, stop, self.steps_per_epoch)
        for step in range(start, stop):
            with meter.waiting():
                raw = next(batches)
            rate = self.learning_rate(step)
            set_learning_rate(self.step.optimizer, rate)
            output = take_step(raw, rate)
            method.after_step(step, self.step.planned)
            meter.add(step, raw.epoch, rate, output, len(raw.ids) * collectives.world_size())
            if hooks.look_due(step + 1):
                meter.flush(hooks)
                if hooks.look(step + 1) and step + 1 < stop:
                    hooks.checkpoint(step + 1)
                    return step + 1
                meter.restart()
            if not meter.time_to_poll(step):
                continue
            meter.flush(hooks)
            stopping = collectives.any_rank(hooks.should_stop())
            if (stopping or collectives.any_rank(hooks.checkpoint_due(step + 1))) and step + 1 < stop:
                hooks.checkpoint(step + 1)
            if stopping and step + 1 < stop:
                return step + 1
        if start < stop:
            meter.flush(hooks)
            hooks.checkpoint(stop)
        return stop


@dataclass
class Meter:
    """Collects what the loop logs, without waiting for the device in between."""

    stage: str
    stop: int
    steps_per_epoch: int
    pending: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    logs: list[dict[str, Tensor]] = field(default_factory=list)
    features: Tensor | None = None
    images: int = 0
    waited: float = 0.0
    last_flush: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here counts as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def add(self, step: int, epoch: int, rate: float, output: MethodOutput, images: int) -> None:
        """One finished step."""
        self.pending.append({"stage": self.stage, "step": step, "epoch": epoch, "train/lr": rate})
        self.losses.append(output.loss.detach())
        self.logs.append(output.logs)
        self.features = output.features
        self.images += images

    def time_to_poll(self, step: int) -> bool:
        """Whether to log and to look outside after this step; all workers answer alike."""
        if collectives.world_size() > 1:
            return (step + 1) % POLL_STEPS == 0 or step + 1 == self.stop
        return time.perf_counter() - self.last_flush >= POLL_SECONDS or step + 1 == self.stop

    def flush(self, hooks: Hooks) -> None:
        """Log the steps since the last time; raises UserError at the first loss that is not finite."""
        if not self.pending:
            return
        losses = collectives.mean_over_ranks(torch.stack(self.losses)).tolist()
        names = sorted(self.logs[0])
        logs = collectives.mean_over_ranks(
            torch.stack([torch.stack([log[name].to(self.losses[0]) for name in names]) for log in self.logs])
        ).tolist() if names else [[]] * len(losses)  # fmt: skip
        for row, loss, values in zip(self.pending, losses, logs):
            row["train/loss"] = loss
            row.update(zip(names, values))
        self._check(hooks)
        self.pending[-1].update(self._measurements())
        hooks.log(self.pending)
        hooks.progress({**self.pending[-1], "stop": self.stop, "steps_per_epoch": self.steps_per_epoch})
        self.pending, self.losses, self.logs = [], [], []
        self.restart()

    def restart(self) -> None:
        """Begin to measure the speed again."""
        self.images, self.waited, self.last_flush = 0, 0.0, time.perf_counter()

    def _check(self, hooks: Hooks) -> None:
        for number, row in enumerate(self.pending):
            if not math.isfinite(row["train/loss"]):
                hooks.log(self.pending[:number])
                rate = row["train/lr"]
                lower = (
                    "lower --finetune.learning-rate"
                    if self.stage.startswith("finetune")
                    else "lower --train.learning-rate, add --train.warmup-epochs, or limit the gradient with "
                    "--train.clip-grad 1"
                )
                raise NotFinite(
                    f"{self.stage}: the loss is {row['train/loss']} at step {row['step']} (epoch {row['epoch']}): most "
                    f"likely the learning rate ({rate:.3g} there) is too high: {lower}",
                    row["step"],
                )

    def _measurements(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self.last_flush
        measured = {"perf/images_per_s": self.images / elapsed, "perf/data_wait": self.waited / elapsed}
        if self.features is not None and len(self.features) > 1:
            measured["health/std"] = collapse_indicator(self.features)
        return measured


def collapse_indicator(features: Tensor) -> float:
    """Mean standard deviation of the normalised features times √D: about 1 when healthy, 0 when collapsed.

    Chen and He, "Exploring simple Siamese representation learning", CVPR 2021, §4.1.
    """
    normalised = nn.functional.normalize(features.float(), dim=1)
    return float(normalised.std(dim=0).mean() * math.sqrt(features.shape[1]))
