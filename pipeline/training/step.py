"""An optimiser's step: plain PyTorch, the same in one process, under torchrun and on Ray."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.device import autocast, to_float
from rayssl.pipeline.methods.base import Batch, InitializesFromData, Method, MethodOutput, OwnStep
from rayssl.pipeline.training.batches import Drawn, RawBatch
from rayssl.pipeline.training.optimizers import JointOptimizer


@dataclass(frozen=True)
class Step:
    """What a step is made of: what is trained, by what, where, and in which precision."""

    method: Method[Any]
    optimizer: Optimizer  # of an OwnStep a JointOptimizer
    device: torch.device
    precision: str  # bf16, fp32 or fp64
    seed: int
    planned: int  # steps of the whole plan, whatever part of it a loop runs
    clip_grad: float | None = None  # the largest norm of the gradient
    resident: Tensor | None = None  # (N, H, W, C) all images, where the device holds them
    captured: bool = False  # as a CUDA graph, see `rayssl.pipeline.training.cuda_graph.can_be_recorded`

    def begin(self) -> Callable[[RawBatch, float], MethodOutput]:
        """What does such a step with a batch, at a learning rate."""
        if isinstance(self.method, OwnStep):
            assert isinstance(self.optimizer, JointOptimizer)
            compute = self._own(self.method, self.optimizer)
        else:
            compute = self._usual(wrap_for_workers(self.method))
        if not self.captured:
            return lambda raw, rate: compute(self.batch(raw))
        from rayssl.pipeline.training.cuda_graph import RecordedStep

        assert self.resident is not None
        return RecordedStep(compute, self.optimizer, self.resident, self.seed, self.planned)

    def _usual(self, model: nn.Module) -> Callable[[Batch], MethodOutput]:
        def compute(batch: Batch) -> MethodOutput:
            with autocast(self.device, self.precision):
                output: MethodOutput = model(batch)
            self.optimizer.zero_grad(set_to_none=True)
            output.loss.backward()  # type: ignore[no-untyped-call]
            if self.clip_grad is not None:
                nn.utils.clip_grad_norm_(self.method.parameters(), self.clip_grad)
            self.optimizer.step()
            return output

        return compute

    def _own(self, method: OwnStep[Any], optimizer: JointOptimizer) -> Callable[[Batch], MethodOutput]:
        def update(name: str, loss: Tensor) -> None:
            part = optimizer.parts[name]
            parameters = [parameter for group in part.param_groups for parameter in group["params"]]
            with torch.autocast(self.device.type, enabled=False):
                part.zero_grad(set_to_none=True)
                loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
                average_gradients(parameters)
                if self.clip_grad is not None:
                    nn.utils.clip_grad_norm_(parameters, self.clip_grad)
                part.step()
            torch.clear_autocast_cache()  # of weights as they were

        def compute(batch: Batch) -> MethodOutput:
            with autocast(self.device, self.precision):
                return method.train_step(batch, update)

        return compute

    @torch.no_grad()
    def initialize(self, raw: RawBatch) -> None:
        """Let the method see the first batch of a run before its first step, where it asks for that."""
        if isinstance(self.method, InitializesFromData):
            with autocast(self.device, self.precision):
                self.method.initialize_from(self.batch(raw))

    def batch(self, raw: RawBatch) -> Batch:
        """A loader's batch on the device, its views made."""
        return to_batch(raw, self.device, self.precision, self.seed, self.resident, self.planned)


def wrap_for_workers(method: Method[Any]) -> nn.Module:
    """DistributedDataParallel where there are several workers. Buffers need no broadcast: statistics are global."""
    if collectives.world_size() == 1:
        return method
    # torch 2.15 renamed the argument.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(method, **{name: False})  # type: ignore[arg-type]


def average_gradients(parameters: list[Tensor]) -> None:
    """In place, over all workers, which must have gradients of the same parameters."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if collectives.world_size() == 1 or not gradients:
        return
    means = collectives.mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(means, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, parts, strict=True):
        gradient.copy_(mean.view_as(gradient))


def to_batch(
    raw: RawBatch, device: torch.device, precision: str, seed: int, resident: Tensor | None = None, planned: int = 0
) -> Batch:
    """A loader's batch on the device, in a plan of so many steps; views that are only drawn are made here."""
    labels = None if raw.labels is None else raw.labels.to(device, non_blocking=True)
    if isinstance(raw.views, Drawn):
        views = make_views(raw.views, device, precision, resident)
    else:
        views = [to_float(view, device, precision) for view in raw.views]
    return Batch(views, raw.ids.to(device, non_blocking=True), labels, seed, raw.epoch, raw.step, planned)


@torch.no_grad()
def make_views(drawn: Drawn, device: torch.device, precision: str, resident: Tensor | None) -> list[Tensor]:
    """The views (B, C, S, S) of a batch in [0, 1], each of its own size, by the batched backend."""
    from rayssl.pipeline.augment.batched_backend import apply_table

    indices = drawn.indices.to(device, non_blocking=True)
    if drawn.images is not None:
        images = drawn.images.to(device, non_blocking=True)
    else:
        assert resident is not None
        images = resident[indices]
    dtype = torch.float64 if precision == "fp64" else torch.float32
    return [
        apply_table(spec, table, images, side, sizes=drawn.sizes, dtype=dtype)
        for spec, table, side in zip(drawn.specs, drawn.tables, drawn.sides, strict=True)
    ]
