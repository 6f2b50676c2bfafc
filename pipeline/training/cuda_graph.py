"""A training step recorded once as a CUDA graph: views, forward and backward pass and optimiser in one launch.

Step by step, Python asks a GPU for about a thousand small pieces of work, and where the network is small the GPU is
done sooner than Python has asked. Only a step that is always the same can be recorded: a method whose only draws are
its views, images that the device holds, one worker.

Shapes: B images, V views.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from rayssl.pipeline.augment.batched_backend import pack, unpack
from rayssl.pipeline.augment.fixed_backend import apply_arrays, arrays_of
from rayssl.pipeline.base import collectives
from rayssl.pipeline.methods.base import Batch, Method, MethodOutput, OwnStep
from rayssl.pipeline.training.batches import Drawn, RawBatch
from rayssl.pipeline.training.optimizers import set_learning_rate

RECORDED_OPTIMIZERS = ("sgd", "muon")
WARM_STEPS = 3  # without a graph first: libraries choose and compile their kernels, buffers are made


def can_be_recorded(method: type[Method[Any]], optimizer: str, resident: Tensor | None) -> bool:
    """Whether the step is always the same for the device, whatever the batch."""
    held = resident is not None and resident.is_cuda
    same = method.deterministic and not issubclass(method, OwnStep) and optimizer in RECORDED_OPTIMIZERS
    return held and same and collectives.world_size() == 1


def has_compiler() -> bool:
    """Whether torch finds here what it compiles for a GPU with."""
    compilers = (os.environ.get("CC"), "gcc", "cc", "clang")
    return find_spec("triton") is not None and any(shutil.which(name) for name in compilers if name)


class RecordedStep:
    """Does a step of a batch that is drawn, at a learning rate.

    `compute` does it eagerly, with the rate that is in the optimiser's groups. The first few steps are done so, then
    one is captured, and replayed from there on; views of another size are captured again. On a CPU nothing is captured.
    `resident` (N, H, W, C): all images.
    """

    def __init__(
        self, compute: Callable[[Batch], MethodOutput], optimizer: Optimizer, resident: Tensor, seed: int, planned: int
    ) -> None:
        self.compute, self.optimizer, self.resident = compute, optimizer, resident
        self.seed, self.planned = seed, planned
        self.rate = torch.zeros((), device=resident.device)
        self.inputs = Inputs(resident.device)
        self.sides: tuple[int, ...] = ()
        self.warmed = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.output: MethodOutput | None = None

    def __call__(self, raw: RawBatch, rate: float) -> MethodOutput:
        """What the step gave; its `features` are overwritten by the next one."""
        drawn = raw.views
        assert isinstance(drawn, Drawn)
        if drawn.sides != self.sides:
            self.sides, self.warmed, self.graph, self.output = drawn.sides, 0, None, None
        self.inputs.send(self._arrays(raw, drawn))
        self.rate.fill_(rate)
        output = self._without_graph(drawn) if self._is_warming() else self._repeat(drawn)
        return MethodOutput(output.loss.clone(), output.features, {k: v.clone() for k, v in output.logs.items()})

    def _is_warming(self) -> bool:
        self.warmed += 1
        return self.warmed <= WARM_STEPS or not self.resident.is_cuda

    def _repeat(self, drawn: Drawn) -> MethodOutput:
        if self.graph is None:
            self._record(drawn)
        assert self.graph is not None
        assert self.output is not None
        self.graph.replay()
        return self.output

    def _arrays(self, raw: RawBatch, drawn: Drawn) -> list[NDArray[Any]]:
        """Rows and ids of the images, then what every group of views with one spec needs, view after view."""
        shapes = np.broadcast_to(np.array(self.resident.shape[1:3]), (len(raw.ids), 2))
        found: list[NDArray[Any]] = [drawn.indices.numpy(), raw.ids.numpy()]
        for views in _alike(drawn):
            spec = drawn.specs[views[0]]
            each = [arrays_of(spec, drawn.tables[view], shapes, drawn.sides[view]) for view in views]
            found += [np.concatenate(parts) for parts in zip(*each, strict=True)]
        return found

    def _work(self, drawn: Drawn) -> MethodOutput:
        """The whole step, from what was sent."""
        rows, ids, *rest = self.inputs.tensors
        parts = iter(rest)
        views: list[Tensor] = []
        for alike in _alike(drawn):
            images = self.resident[rows.repeat(len(alike))]
            views += apply_arrays(drawn.specs[alike[0]], parts, images, drawn.sides[alike[0]]).chunk(len(alike))
        with self._rate_on_device():
            output = self.compute(Batch(views, ids, None, self.seed, 0, 0, self.planned))
        return MethodOutput(output.loss.detach(), output.features, output.logs)

    def _without_graph(self, drawn: Drawn) -> MethodOutput:
        if not self.resident.is_cuda:
            return self._work(drawn)
        # As torch asks for before a recording: buffers that are made here must not belong to the usual stream.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = self._work(drawn)
        torch.cuda.current_stream().wait_stream(stream)
        return output

    def _record(self, drawn: Drawn) -> None:
        self.optimizer.zero_grad(set_to_none=True)  # so that the recorded gradients are written and not added to
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # the loader's thread goes on
            self.output = self._work(drawn)

    @contextmanager
    def _rate_on_device(self) -> Iterator[None]:
        """A number would be recorded as it is."""
        before = [group["lr"] for group in self.optimizer.param_groups]
        set_learning_rate(self.optimizer, self.rate)
        try:
            yield
        finally:
            for group, rate in zip(self.optimizer.param_groups, before, strict=True):
                group["lr"] = rate


class Inputs:
    """What changes from step to step, always in the same memory of the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory = torch.empty(0, dtype=torch.int32, device=device)
        self.tensors: list[Tensor] = []

    def send(self, arrays: list[NDArray[Any]]) -> None:
        """Replace it, without waiting for the device; the types and shapes of the arrays should be those of before."""
        order = sorted(range(len(arrays)), key=lambda number: arrays[number].dtype != np.int64)  # as `pack` wants them
        ordered = [arrays[number] for number in order]
        packed = pack(ordered)
        if packed.shape != self.memory.shape:
            self.memory = torch.empty_like(packed, device=self.device)
            found = dict(zip(order, unpack(self.memory, ordered), strict=True))
            self.tensors = [found[number] for number in range(len(arrays))]
        self.memory.copy_(packed.pin_memory() if self.device.type == "cuda" else packed, non_blocking=True)


def _alike(drawn: Drawn) -> list[list[int]]:
    """The numbers of neighbouring views that have the same spec."""
    numbers = range(len(drawn.specs))
    return [list(group) for _, group in groupby(numbers, key=lambda number: drawn.specs[number].to_dict())]
