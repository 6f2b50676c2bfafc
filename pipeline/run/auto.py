"""What `auto` and a time budget become at a run's start: measured or looked up once, then kept in config.json."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from rayssl.pipeline import config as configuration
from rayssl.pipeline.augment import Spec, view_from_dict
from rayssl.pipeline.base import collectives
from rayssl.pipeline.config import Config
from rayssl.pipeline.methods import load_method
from rayssl.pipeline.methods.base import Method
from rayssl.pipeline.run.build import (
    batches_of,
    compile_or_capture,
    count_steps,
    loader_processes,
    new_method,
    new_optimizer,
    required_method,
    step_of,
    views_of,
)
from rayssl.pipeline.run.context import Stopped, Work
from rayssl.pipeline.training.cuda_graph import can_be_recorded, has_compiler
from rayssl.pipeline.training.loop import Hooks, Loop
from rayssl.pipeline.training.step import to_batch

CALIBRATION_STEPS = 30  # a time budget becomes steps by timing so many, the first third as warm-up
CALIBRATION_LOGS = 8  # of a compiled step: half a second each, the first two as warm-up
COMPILED_FROM, COMPILED_FROM_MINUTES = 2000, 3.0  # steps; a ResNet-18 takes 20 s to compile
ENDLESS = 1 << 40
T = TypeVar("T")


def decide(work: Work) -> Work:
    """The run without `auto` or `fastest`: its precision, what makes its views, and whether its network is compiled.

    Pre-training, profiles and the trials of a race or a search all decide by this function, and nowhere else. Rank 0
    decides for all workers. Nothing is written.
    """
    chosen = collectives.broadcast_object(work.precision)
    work = replace(with_training(work, precision=chosen), precision=chosen)
    if work.config.augment.backend in ("auto", "fastest"):  # the backends' pixels differ by rounding
        backend, reason = broadcast_choice(choose_backend, work)
        work.reporter.message(f"augmentation: {backend} backend ({reason})")
        work = replace(work, config=replace(work.config, augment=replace(work.config.augment, backend=backend)))
    if work.config.train.compile == "auto":  # what is compiled rounds differently
        work = with_training(work, compile="yes" if broadcast_choice(compiling_pays, work) else "no")
    return work


def decide_and_keep(work: Work) -> Work:
    """The run as pre-training starts it: decided, its time budget turned into steps, and written into config.json.

    Written once: a run that is continued, maybe on another machine, finds nothing left to decide.
    """
    before, work = work.config, with_steps(decide(work))
    if work.is_main and work.config != before:
        configuration.save(work.config, work.run / "config.json")
    collectives.barrier()
    return work


def broadcast_choice(choose: Callable[[Work], T], work: Work) -> T:
    """What rank 0 chooses."""
    found = collectives.broadcast_object(choose(work) if work.is_main else None)
    assert found is not None
    return found


def with_training(work: Work, **values: Any) -> Work:
    """The run with other values of its training."""
    return replace(work, config=replace(work.config, train=replace(work.config.train, **values)))


def choose_backend(work: Work) -> tuple[Any, str]:
    """The backend, and why.

    "auto" goes by the device, never by a clock: the same command must give the same run. "fastest" times both.
    """
    views = [view_from_dict(view) for view in work.config.augment.views or ()]
    if not all(isinstance(view, Spec) for view in views):
        return "albumentations", "the views are a pipeline of your own"
    if work.config.augment.backend == "auto":
        usual = "batched" if work.device.type == "cuda" else "albumentations"
        return usual, f"usual on a {'GPU' if usual == 'batched' else 'CPU'}; --augment.backend fastest measures"
    micros = {name: 1e6 * seconds_a_view(work, name) for name in ("albumentations", "batched")}
    told = ", ".join(f"{name} {value:.0f} µs a view" for name, value in micros.items())
    return min(micros, key=lambda name: micros[name]), told


def seconds_a_view(work: Work, backend: str) -> float:
    """Time for a view, from decoded image to floats on the device; loader processes share their part of it.

    On a CPU that is time of the processor, which the step is in want of, whatever else the machine does.
    """
    clock = time.perf_counter if work.device.type == "cuda" else time.process_time
    config = replace(
        work.config,
        augment=replace(work.config.augment, backend=backend),  # type: ignore[arg-type]
        train=replace(work.config.train, batch_size=min(256, len(work.dataset.train))),
    )
    views = views_of(work, work.dataset.train, config)
    times = []
    for _ in range(4):  # the first one warms up
        began = clock()
        raw = views[0]
        loaded = clock()
        to_batch(raw, work.device, work.precision, 0, work.resident())
        if work.device.type == "cuda":
            torch.cuda.synchronize()
        hands = 1 if views.on_device else max(1, loader_processes(config, work.device))
        times.append((loaded - began) / hands + clock() - loaded)
    return min(times[1:]) / (len(raw.ids) * len(views.views))


def with_steps(work: Work) -> Work:
    """The run with its time budget, if it has one, turned into a number of steps: nothing else depends on the clock."""
    train = work.config.train
    if train.minutes is None or train.steps is not None:
        return work
    work.reporter.message(f"measuring the speed to turn {train.minutes:g} min into a number of steps …")
    seconds = collectives.broadcast_object(seconds_a_step(work))
    return with_training(work, steps=max(1, round(train.minutes * 60 / seconds)))


def compiling_pays(work: Work) -> bool:
    """Whether a step that can be recorded is done so often that the wait for the compiler is worth it."""
    _, steps = count_steps(work.config, len(work.dataset.train))
    minutes = work.config.train.minutes
    long = steps >= COMPILED_FROM if minutes is None else minutes >= COMPILED_FROM_MINUTES
    method = load_method(required_method(work.config))
    return long and has_compiler() and can_be_recorded(method, work.config.train.optimizer, work.resident())


def seconds_a_step(work: Work, timed: int = CALIBRATION_STEPS) -> float:
    """The mean over the steps with small views and the others, from so many steps, the first third as warm-up."""
    share = work.config.train.small_views
    full = 1 / measure_speed(work, 0.0, timed)
    return full if share == 0 else share / measure_speed(work, 1.0, timed) + (1 - share) * full


def measure_speed(work: Work, small_views: float, timed: int = CALIBRATION_STEPS) -> float:
    """Optimiser steps a second of a copy that is thrown away, with such a share of small views."""
    steps = timed if work.config.train.compile != "yes" else ENDLESS
    train_config = replace(work.config.train, small_views=small_views, steps=steps)
    config = replace(work.config, train=train_config)
    method = new_method(config, work)
    if config.train.compile == "yes":
        return compiled_speed(method, config, work)
    marks: list[float] = []
    hooks = Hooks(
        checkpoint=lambda step: marks.append(time.perf_counter()),
        should_stop=work.reporter.should_stop,
    )
    batches = batches_of(work, work.dataset.train, config, 0, timed)
    per_epoch, _ = count_steps(config, len(work.dataset.train))
    step = step_of(work, config, method, new_optimizer(method, config.train))
    loop = Loop(step, "measure", per_epoch, lambda step: 1e-6, hooks)
    warm = timed // 3
    for first, last in ((0, warm), (warm, timed)):
        if loop.run(batches, first, last) < last:
            raise Stopped(0, 0)
    return (timed - warm) / (marks[1] - marks[0])


def compiled_speed(method: Method[Any], config: Config, work: Work) -> float:
    """The same of a step that is compiled, and recorded, first."""
    logged: list[tuple[int, float]] = []
    hooks = Hooks(
        log=lambda rows: logged.append((len(rows), time.perf_counter())),
        should_stop=lambda: work.reporter.should_stop() or len(logged) == CALIBRATION_LOGS,
    )
    per_epoch, _ = count_steps(config, len(work.dataset.train))
    captured = compile_or_capture(method, config, work)
    step = step_of(work, config, method, new_optimizer(method, config.train), captured=captured)
    loop = Loop(step, "measure", per_epoch, lambda step: 1e-6, hooks)
    loop.run(batches_of(work, work.dataset.train, config, 0, ENDLESS), 0, ENDLESS)
    if len(logged) < CALIBRATION_LOGS:
        raise Stopped(0, 0)
    (_, began), *timed = logged[1:]
    return sum(steps for steps, _ in timed) / (timed[-1][1] - began)
