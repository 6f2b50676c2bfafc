"""What a run will take: seconds, and bytes on the disk."""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.progress import format_bytes, format_duration
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.run.build import is_guarded, traits_of
from rayssl.pipeline.run.plan import (
    START_SECONDS,
    Sizes,
    stages_seconds,
    step_seconds,
)
from rayssl.pipeline.run.resolve import machine_of

A_GUESS = "(a guess for an idle machine: the live line knows better)"


def check_disk(config: Config, dataset: Dataset, run: Path) -> tuple[dict[str, Any], float, float]:
    """Facts of the encoder, bytes needed and bytes free; raises UserError where the disk is too small.

    Builds the encoder and the method once, so that what does not go together ends here and not in a worker.
    """
    from rayssl.pipeline.methods import load_method
    from rayssl.pipeline.models.encoder import describe
    from rayssl.pipeline.run.build import new_encoder, restrict

    encoder = new_encoder(config)
    facts = describe(encoder)
    method = configuration.method_name(config)
    if method is not None:
        restrict(encoder, config.train)
        load_method(method)(config.method, encoder, traits_of(config, dataset))
    images = sum(len(split) for split in (dataset.train, dataset.val, dataset.test) if split is not None)
    needed, free = expected_bytes(config, facts, images), shutil.disk_usage(existing_parent(run)).free
    if needed > free:
        raise UserError(f"--out {run} needs about {format_bytes(needed)}: only {format_bytes(free)} are free")
    return facts, needed, free


def sizes_of(config: Config, flops: float, depthwise: float) -> Sizes:
    """What an image costs the method and its encoder."""
    from rayssl.pipeline.methods import load_method

    method = configuration.method_name(config)
    passes = load_method(method).encoder_passes if method else 0
    return Sizes(config.data.image_size or 32, flops, len(config.augment.views or ()), passes, depthwise)


def training_seconds(config: Config, flops: float, steps: int, depthwise: float = 0.0) -> float:
    """A rough guess from the operations that a step needs; see `rayssl.pipeline.run.plan.step_seconds`."""
    if config.train.minutes:
        return 60 * config.train.minutes
    sizes = sizes_of(config, flops, depthwise)
    return steps * step_seconds(sizes, machine_of(config), config.train.batch_size, config.train.small_views)


def expected_seconds(
    config: Config, facts: Mapping[str, Any], data: Dataset, steps: int, stages: Collection[str]
) -> tuple[float, float]:
    """What the training steps take, and what the stages that follow."""
    from rayssl.pipeline.models.pretrained import FROZEN_MOST, available

    training = training_seconds(config, facts["flops"], steps, facts["depthwise"])
    sizes, machine = sizes_of(config, facts["flops"], facts["depthwise"]), machine_of(config)
    images = sum(len(split) for split in (data.train, data.val, data.test) if split is not None)
    has_labels = bool(data.class_names) and not data.some_classes
    named = [stage for stage in stages if has_labels or stage not in ("probe", "finetune")]
    return training, stages_seconds(sizes, machine, images, named, min(FROZEN_MOST, len(available())))


def expected_length(config: Config, training: float, after: float, *, alone: bool) -> str:
    """What the training steps take, what comes before and after them, and all of it together, in words."""
    told = f"{config.train.minutes:g} min" if config.train.minutes else f"about {format_duration(training)}"
    told += " of training steps"
    if not alone:
        return f"{told}, about {format_duration(after)} for what follows"
    what = "to start and for what follows" if after else "to start"
    told += f", about {format_duration(START_SECONDS + after)} more {what}"
    return f"{told}: {in_all(training + after)}"


def in_all(seconds: float) -> str:
    """What so many seconds of work take together with the start, in words."""
    return f"about {format_duration(START_SECONDS + seconds)} in all {A_GUESS}"


def expected_bytes(config: Config, facts: dict[str, Any], images: int) -> float:
    """Checkpoints (weights and optimiser state), exports, embeddings and index."""
    weights = 4.0 * facts["parameters"]
    checkpoint = 4.5 if is_guarded(config) else 3.5  # the best state is in it, too
    return float(weights * checkpoint * (config.train.keep_checkpoints + 1) + images * facts["dim"] * 4 * 4)


def existing_parent(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
