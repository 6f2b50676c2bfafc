"""One trial: a candidate is trained by the same loop as `pretrain`, and measured as it goes."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.device import plain_precision
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.methods.base import Method
from rayssl.pipeline.run.auto import choose_backend
from rayssl.pipeline.run.build import batches_of, count_steps, new_method, new_optimizer, schedule_of, step_of
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.stages.pretrain import check_finite
from rayssl.pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from rayssl.pipeline.training.loop import Hooks, Loop
from rayssl.pipeline.tune.objectives import Material, at_most, measurable, measure


@dataclass(frozen=True)
class Report:
    """What a trial has reached."""

    step: int
    steps: int  # in all
    scores: dict[str, float]  # the search's objective; at the end all that can be measured


@dataclass(frozen=True)
class Course:
    """How a trial goes."""

    objective: str
    reports: int  # how often it is measured
    images: int  # at most so many of train and of the validation split are looked at


def run_trial(config: Config, course: Course, checkpoints: Path | None = None) -> Iterator[Report]:
    """Train `config`, which is resolved, and measure it at equal distances; goes on from `checkpoints`, if any.

    Writes a checkpoint there before every report. Every worker must go through all reports. Raises UserError where the
    loss or a weight is not finite.
    """
    work = Work.begin(Path(), Silent(), config, _opened(_data_key(config)))  # which writes nothing
    work.config = _settled(work)
    per_epoch, steps = count_steps(work.config, len(work.dataset.train))
    method = new_method(work.config, work)
    optimizer = new_optimizer(method, work.config.train)
    start = 0
    if checkpoints is not None:
        start, _ = load_checkpoint(checkpoints, model=method, optimizer=optimizer)
    step = step_of(work, work.config, method, optimizer)
    loop = Loop(step, "trial", per_epoch, schedule_of(work.config.train, steps, per_epoch), Hooks())
    for stop in report_steps(steps, course.reports):
        if stop <= start:
            continue
        loop.run(batches_of(work, work.dataset.train, work.config, start, stop), start, stop)
        check_finite(method, stop)
        start = stop
        if checkpoints is not None and collectives.rank() == 0:
            save_checkpoint(checkpoints, step=stop, model=method, optimizer=optimizer, keep=1, facts=None)
        yield Report(stop, steps, _scores(work, method, course, last=stop == steps))


def report_steps(steps: int, reports: int) -> list[int]:
    """The steps after which a trial is measured: the last one, and others at equal distances."""
    return sorted({max(1, steps * number // reports) for number in range(1, reports + 1)})


def _scores(work: Work, method: Method[Any], course: Course, *, last: bool) -> dict[str, float]:
    data, seed = work.dataset, work.config.train.seed
    classes = len(data.class_names or ())
    material = Material(
        method.kept(),
        at_most(data.train, course.images, seed),
        at_most(data.val, course.images, seed),
        classes,
        seed,
        work.device,
        plain_precision(work.precision),
    )
    # The probe takes long, so it is measured only where it is asked for.
    names = {name for name in measurable(classes, data.val) if name != "probe" and last}
    found = measure(material, sorted({course.objective, *names}))
    method.train()
    for name, value in found.items():
        if not math.isfinite(value):
            raise UserError(f"{name} is {value}: the features are not finite")
    return found


def _settled(work: Work) -> Config:
    """What would be chosen at a run's start, chosen here without a run folder."""
    config = replace(work.config, train=replace(work.config.train, precision=work.precision))  # type: ignore[arg-type]
    if config.augment.backend in ("auto", "fastest"):
        config = replace(config, augment=replace(config.augment, backend=choose_backend(work)[0]))
    return config


@lru_cache(maxsize=1)
def _opened(key: str) -> Dataset:
    """The images: decoded once into the cache that all trials of a machine map, and opened once a process."""
    return open_data(configuration.from_dict(json.loads(key)))


def _data_key(config: Config) -> str:
    """All that the images depend on: the rest of the config is that of a plain run."""
    plain = Config(data=config.data, train=configuration.TrainConfig(seed=config.train.seed))
    return json.dumps(configuration.to_dict(plain), sort_keys=True)
