"""Batches for training: which images a step sees, and their views, made in background processes or a thread.

Views are either finished here (albumentations backend), or drawn here and applied on the device (batched backend).

The global batch of a step is a function of (seed, step) alone; each worker takes its slice of it. Loader processes
only change who does the work.
"""

import functools
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rayssl.pipeline.augment import Spec, View, apply_batch, side_of
from rayssl.pipeline.augment.spec import Table
from rayssl.pipeline.base.randomness import permutation
from rayssl.pipeline.data.dataset import Images

PREFETCH = 3  # batches ready ahead of the step
LAST_BATCH_S = 30  # that a thread may take to end with the batch it is at


@dataclass(frozen=True)
class Order:
    """The order of samples: every epoch a new permutation of n images; the incomplete last batch is left out."""

    n: int
    batch_size: int  # of all workers together
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return self.n // self.batch_size

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, that a step (from 0) belongs to."""
        return step // self.steps_per_epoch

    def indices(self, step: int, rank: int, world: int) -> NDArray[np.int64]:
        """(batch_size / world,) positions of this worker's images at a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        local = self.batch_size // world
        start = position * self.batch_size + rank * local
        return _epoch_order(self.n, self.seed, epoch)[start : start + local]


@functools.lru_cache(maxsize=2)
def _epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return permutation(n, seed, "order", epoch)


@dataclass(frozen=True)
class Drawn:
    """Views that the device has to make: what was drawn for every view, and the images or where they are.

    `images` (B, H, W, C) uint8, padded to a common size where `sizes` (B, 2) tells the true ones; None: they are the
    rows `indices` (B,) of a tensor that the device holds.
    """

    specs: tuple[Spec, ...]
    tables: tuple[Table, ...]
    sides: tuple[int, ...]  # of each view, in pixels
    indices: Tensor
    images: Tensor | None
    sizes: NDArray[np.int64] | None


@dataclass(frozen=True)
class RawBatch:
    """What leaves the loader, still on the CPU: uint8 views (B, S, S, C), or what the device makes them from."""

    views: list[Tensor] | Drawn
    ids: Tensor
    labels: Tensor | None
    epoch: int
    step: int


class Views(Dataset[RawBatch]):
    """Item `step` is this worker's batch of that step.

    `backend` "albumentations" makes the views here, "batched" leaves that to the device, which holds all images
    already where `on_device`. Views have `size` pixels a side, times their scale, and half of it before the step
    `small_until`.
    """

    def __init__(
        self,
        images: Images,
        order: Order,
        views: Sequence[View],
        size: int,
        seed: int,
        rank: int,
        world: int,
        *,
        backend: str = "albumentations",
        on_device: bool = False,
        small_until: int = 0,
    ) -> None:
        self.images, self.order, self.views, self.size, self.seed = images, order, views, size, seed
        self.rank, self.world = rank, world
        self.backend, self.on_device, self.small_until = backend, on_device, small_until

    def __getitem__(self, step: int) -> RawBatch:
        indices = self.order.indices(step, self.rank, self.world)
        epoch = self.order.epoch_of(step)
        make = self._drawn if self.backend == "batched" else self._finished
        size = self.size // 2 if step < self.small_until else self.size
        labels = None if self.images.labels is None else torch.from_numpy(self.images.labels[indices])
        return RawBatch(make(indices, epoch, size), torch.from_numpy(self.images.ids[indices]), labels, epoch, step)

    def _finished(self, indices: NDArray[np.int64], epoch: int, size: int) -> list[Tensor]:
        images, ids = [self.images[int(i)] for i in indices], self.images.ids[indices]
        views = (
            apply_batch(view, images, size=side_of(view, size), seed=self.seed, epoch=epoch, ids=ids, view=number)
            for number, view in enumerate(self.views)
        )
        return [torch.from_numpy(view) for view in views]

    def _drawn(self, indices: NDArray[np.int64], epoch: int, size: int) -> Drawn:
        specs = [view.restricted(self.images.channels) for view in self.views if isinstance(view, Spec)]
        tables = [
            spec.draw(seed=self.seed, epoch=epoch, ids=self.images.ids[indices], view=number)
            for number, spec in enumerate(specs)
        ]
        images, sizes = (None, None) if self.on_device else self.images.padded(indices)
        pixels = None if images is None else torch.from_numpy(images)
        sides = tuple(spec.side(size) for spec in specs)
        return Drawn(tuple(specs), tuple(tables), sides, torch.from_numpy(indices), pixels, sizes)


def load_batches(dataset: Views, start: int, stop: int, processes: int) -> Iterator[RawBatch]:
    """The batches of steps start … stop − 1, in order, prepared ahead of time."""
    if processes == 0:
        return _in_thread(dataset, start, stop)
    loader: DataLoader[RawBatch] = DataLoader(
        dataset,
        sampler=range(start, stop),
        batch_size=None,
        num_workers=processes,
        prefetch_factor=PREFETCH,
        multiprocessing_context="spawn",
        worker_init_fn=_quiet_worker,
    )
    return iter(loader)


def _quiet_worker(_: int) -> None:
    # One thread each: the processes are the parallelism. A Ctrl-C is for the parent, which stops them in order.
    import signal

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_thread(dataset: Views, start: int, stop: int) -> Iterator[RawBatch]:
    ready: queue.Queue[Any] = queue.Queue(maxsize=PREFETCH)
    closed = threading.Event()

    def put(item: Any) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(start, stop):
                if closed.is_set():
                    return
                put(dataset[step])
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, daemon=True, name="loader")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join(timeout=LAST_BATCH_S)  # one still computing when the interpreter ends aborts the process
