"""Where the time of a training step goes, and how near it is to what the machine can do. One worker, no Ray.

Times are milliseconds a step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayssl.pipeline.base.device import autocast
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import move
from rayssl.pipeline.methods.base import Batch, Method, MethodOutput, OwnStep
from rayssl.pipeline.models.flops import count_operations
from rayssl.pipeline.run.build import (
    batches_of,
    compile_or_capture,
    new_method,
    new_optimizer,
    required_method,
    step_of,
    views_of,
)
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.training.batches import RawBatch
from rayssl.pipeline.training.cuda_graph import WARM_STEPS
from rayssl.pipeline.training.step import Step

WARM_UP = WARM_STEPS + 2  # steps before anything is measured: first ones choose kernels, take memory and are recorded
TRACED = 3  # steps in the trace
OPERATORS = 10  # that are listed
PARTS = ("data", "augmentation", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Floor:
    """The least time that a step can take: its operations and bytes over rates that were measured on this machine."""

    flops: float  # of forward and backward pass
    bytes: float  # saved for the backward pass (by a network not compiled), weights, gradients and optimiser state
    flops_per_s: float  # of a large matrix product in the run's precision
    bytes_per_s: float  # of a large copy

    @property
    def ms(self) -> float:
        """Operations and bytes overlap at best: the larger of both."""
        return 1e3 * max(self.flops / self.flops_per_s, self.bytes / self.bytes_per_s)


@dataclass(frozen=True)
class Profile:
    """What was measured of `steps` steps of `batch_size` images."""

    batch_size: int
    steps: int
    step_ms: float  # of the plain pass
    compiled: bool  # the network
    recorded: bool  # the step of the plain pass is one CUDA graph
    waiting: float  # share of it that waited for the loader
    parts: dict[str, float]  # of the pass that stops between parts: PARTS and "rest"
    encoder_ms: float  # within "forward"; 0 where a method calls the encoder's stages instead
    loader_ms: float  # to make a batch, beside the step
    floor: Floor
    operators: list[tuple[str, float]]  # the most expensive ones and their own time

    @property
    def images_per_s(self) -> float:
        return 1e3 * self.batch_size / self.step_ms


def profile_run(work: Work, steps: int, trace: Path) -> Profile:
    """Measure a run that is opened and has its backend and precision chosen; writes the trace. Nothing is trained."""
    with closing(Bench(work)) as bench:
        floor = find_floor(bench)  # first: no operation of a compiled network is seen
        recorded = compile_or_capture(bench.method, work.config, work)
        bench.warm_up()
        parts, encoder = instrumented_pass(bench, steps)
        if recorded:
            bench.record()
            bench.warm_up()
        waited, seconds = plain_pass(bench, steps)
        return Profile(
            batch_size=work.config.train.batch_size,
            steps=steps,
            step_ms=1e3 * seconds / steps,
            compiled=work.config.train.compile == "yes",
            recorded=recorded,
            waiting=waited / seconds,
            parts=parts,
            encoder_ms=encoder,
            loader_ms=time_loader(work),
            floor=floor,
            operators=trace_steps(bench, trace),
        )


@dataclass
class Bench:
    """A training step, whole and in its parts."""

    work: Work
    method: Method[Any] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    batches: Iterator[RawBatch] = field(init=False)
    take_step: Callable[[RawBatch, float], MethodOutput] = field(init=False)
    step_parts: Step = field(init=False)

    def __post_init__(self) -> None:
        config = self.work.config
        self.method = new_method(config, self.work)
        if isinstance(self.method, OwnStep):
            name = required_method(config)
            raise UserError(f"{name} makes its own step of several parts: only methods with one loss can be profiled")
        self.method.train()
        self.optimizer = new_optimizer(self.method, config.train)
        self.batches = batches_of(self.work, self.work.dataset.train, config, 0, 1 << 40)
        self.take_step = self._new_step(captured=False)

    def record(self) -> None:
        """Whole steps are repeated as one CUDA graph from here on."""
        self.take_step = self._new_step(captured=True)

    def _new_step(self, *, captured: bool) -> Callable[[RawBatch, float], MethodOutput]:
        self.step_parts = step_of(self.work, self.work.config, self.method, self.optimizer, captured=captured)
        return self.step_parts.begin()

    def warm_up(self) -> None:
        """Steps that are not measured."""
        for _ in range(WARM_UP):
            self.step()

    def batch(self, raw: RawBatch) -> Batch:
        """The batch on the device, its views made."""
        return self.step_parts.batch(raw)

    def forward(self, batch: Batch) -> Tensor:
        """The loss."""
        with autocast(self.work.device, self.work.precision):
            loss: Tensor = self.method(batch).loss
        return loss

    def update(self) -> None:
        """The optimiser's step."""
        if (largest := self.work.config.train.clip_grad) is not None:
            nn.utils.clip_grad_norm_(self.method.parameters(), largest)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> float:
        """A whole step as training does it; returns the seconds that it waited for data."""
        began = time.perf_counter()
        raw = next(self.batches)
        waited = time.perf_counter() - began
        self.take_step(raw, self.optimizer.param_groups[0]["lr"])
        return waited

    def close(self) -> None:
        """No more batches are made."""
        self.batches = iter(())

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.work.device.type == "cuda":
            torch.cuda.synchronize()


def plain_pass(bench: Bench, steps: int) -> tuple[float, float]:
    """Seconds that `steps` steps waited for data, and took in all, as in training: nothing waits in between."""
    bench.wait()
    began = time.perf_counter()
    waited = sum(bench.step() for _ in range(steps))
    bench.wait()
    return waited, time.perf_counter() - began


def instrumented_pass(bench: Bench, steps: int) -> tuple[dict[str, float], float]:
    """Milliseconds a step of every part and of the encoder, the device waited for between them."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, call: Callable[..., Any], *given: Any) -> Any:
        began = time.perf_counter()
        value = call(*given)
        bench.wait()
        spent[part] += time.perf_counter() - began
        return value

    bench.optimizer.zero_grad(set_to_none=True)
    bench.wait()
    with encoder_clock(bench) as inside:
        began = time.perf_counter()
        for _ in range(steps):
            raw = timed("data", next, bench.batches)
            batch = timed("augmentation", bench.batch, raw)
            loss = timed("forward", bench.forward, batch)
            timed("backward", loss.backward)
            timed("optimizer", bench.update)
        whole = time.perf_counter() - began
    spent["rest"] = whole - sum(spent.values())
    return {part: 1e3 * seconds / steps for part, seconds in spent.items()}, 1e3 * sum(inside) / steps


@contextmanager
def encoder_clock(bench: Bench) -> Iterator[list[float]]:
    """Seconds of every call of the encoder."""
    times: list[float] = []
    began = 0.0

    def before(*_: Any) -> None:
        nonlocal began
        bench.wait()
        began = time.perf_counter()

    def after(*_: Any) -> None:
        bench.wait()
        times.append(time.perf_counter() - began)

    encoders = bench.method.encoders()
    hooks: list[Any] = [encoder.register_forward_pre_hook(before) for encoder in encoders]
    hooks += [encoder.register_forward_hook(after) for encoder in encoders]
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()


def time_loader(work: Work, batches: int = 3) -> float:
    """Milliseconds in which one thread makes a batch."""
    views = views_of(work, work.dataset.train, work.config)
    times = []
    for step in range(batches):
        began = time.perf_counter()
        views[step]
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def find_floor(bench: Bench) -> Floor:
    """Count a step's operations and bytes, and measure what the machine attains."""
    batch = bench.batch(next(bench.batches))
    with count_operations() as counter:
        bench.forward(batch).backward()  # type: ignore[no-untyped-call]
    saved = saved_bytes(lambda: bench.forward(batch))
    bench.update()
    weights = sum(p.numel() * p.element_size() for p in bench.method.parameters())
    state = sum(
        value.numel() * value.element_size()
        for values in bench.optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    )
    device, precision = bench.work.device, bench.work.precision
    return Floor(
        flops=float(counter.get_total_flops()),
        # Written and read: what is saved, and gradients. Weights are read by both passes and the update, and written.
        bytes=float(2 * saved + 2 * weights + 4 * weights + 2 * state),
        flops_per_s=matmul_rate(device, precision),
        bytes_per_s=copy_rate(device),
    )


def saved_bytes(call: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of `call`, every storage once."""
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # alive until the end, so that no address comes twice

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(x)
        return x.detach()  # an operation that held its own output would never be freed

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            call()
    finally:
        kept.clear()  # which the operations hold through `keep`
    return sum(sizes.values())


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(precision, torch.float32)
    a = torch.rand(side, side, device=device).to(dtype)
    return 2.0 * side**3 / quickest(lambda: a @ a, device)


def copy_rate(device: torch.device) -> float:
    """Bytes/s of a large copy, reading and writing counted."""
    source = torch.empty(1 << (30 if device.type == "cuda" else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() / quickest(lambda: target.copy_(source), device)


def quickest(call: Callable[[], object], device: torch.device, times: int = 4) -> float:
    """Seconds of the quickest of some calls; the first one warms up."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def trace_steps(bench: Bench, path: Path) -> list[tuple[str, float]]:
    """Write a trace of some steps for a trace viewer; returns the most expensive operators and their milliseconds."""
    from torch.profiler import ProfilerActivity, profile

    cuda = bench.work.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        for _ in range(TRACED):
            bench.step()
        bench.wait()
    unfinished = path.with_name(f".{path.name}.unfinished.json")
    recorded.export_chrome_trace(str(unfinished))
    move(unfinished, path)
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = sorted(recorded.key_averages(), key=lambda row: -float(getattr(row, own)))
    return [(row.key, float(getattr(row, own)) / 1e3 / TRACED) for row in rows[:OPERATORS]]
