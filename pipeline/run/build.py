"""What pre-training is built of, as functions of config and data."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from rayssl.pipeline import config as configuration
from rayssl.pipeline.augment import view_from_dict
from rayssl.pipeline.base import collectives
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config, TrainConfig
from rayssl.pipeline.data import Dataset, Images
from rayssl.pipeline.data.named import HANDED
from rayssl.pipeline.methods import load_method
from rayssl.pipeline.methods.base import Before, Method, OwnStep, Traits
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.trainable import add_adapters, freeze_stages, parameter_groups, rate_scales
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.training.batch_norm import use_global_batch_norm
from rayssl.pipeline.training.batches import Order, Views, load_batches
from rayssl.pipeline.training.cuda_graph import can_be_recorded
from rayssl.pipeline.training.optimizers import (
    JointOptimizer,
    build_optimizer,
    learning_rate_at,
    scaled_learning_rate,
)
from rayssl.pipeline.training.step import Step


def traits_of(config: Config, dataset: Dataset) -> Traits:
    """What a method may know of the data; where nothing is said of mirror images, the data set's name tells."""
    mirror = config.augment.mirror
    mirror = dataset.path not in HANDED if mirror is None else mirror
    return Traits(
        dataset.image_size,
        dataset.channels,
        mirror,
        len(dataset.class_names or ()),
        config.augment.crop,
        config.augment.color,
    )


def count_steps(config: Config, images: int) -> tuple[int, int]:
    """(steps an epoch, steps in all)."""
    per_epoch = images // config.train.batch_size
    return per_epoch, config.train.steps or config.train.epochs * per_epoch


def is_guarded(config: Config) -> bool:
    """Whether training is watched, its best state kept and its end brought about: see `training.guard`."""
    return config.train.guard == "yes" or (config.train.guard == "auto" and config.encoder.weights is not None)


def new_encoder(config: Config, *, weights: bool = True) -> Encoder:
    """The run's encoder before training: a function of the seed (and of the weights it starts from)."""
    data = config.data
    if data.channels is None or data.image_size is None:
        raise UserError("the config is not resolved: start the run with `rayssl run` or `rayssl pretrain`")
    torch.manual_seed(config.train.seed)
    return build_encoder(
        config.encoder.name,
        channels=data.channels,
        image_size=data.image_size,
        stem=config.encoder.stem,
        weights=config.encoder.weights if weights else None,
        **asdict(config.encoder.architecture),
    )


def new_method(config: Config, work: Work) -> Method[Any]:
    """The method with its first weights, on this worker's device."""
    traits = traits_of(config, work.dataset)
    encoder = new_encoder(config)
    restrict(encoder, config.train)
    torch.manual_seed(config.train.seed + 1)
    method = load_method(required_method(config))(config.method, encoder, traits)
    method.prepare(Before(work.dataset.train.ids, lambda source: work.frozen(source, "train")))
    return to_device(method, work)


def restrict(encoder: Encoder, settings: TrainConfig) -> None:
    """Train only what the settings say of a network; raises UserError where it has no such parts."""
    if settings.lora is not None:
        add_adapters(encoder, settings.lora, settings.freeze)
    elif settings.freeze:
        freeze_stages(encoder, settings.freeze)
    if settings.layer_decay < 1:
        rate_scales(encoder, settings.layer_decay)  # where it has no stages it says so now


def compile_or_capture(method: Method[Any], config: Config, work: Work) -> bool:
    """Compile the encoders' networks where that is asked for; whether to record the whole step as a CUDA graph."""
    if config.train.compile != "yes":
        return False
    # For every shape by itself: E-SSL has two, and one program for both is slower at each.
    for encoder in method.encoders():
        encoder.net.compile(dynamic=False)
    return can_be_recorded(type(method), config.train.optimizer, work.resident())


def required_method(config: Config) -> str:
    """The method's name; raises UserError for a run that trains none."""
    name = configuration.method_name(config)
    if name is None:
        raise UserError("this run folder holds an encoder that was not trained here: `rayssl run RECIPE` trains one")
    return name


def to_device(method: Method[Any], work: Work) -> Method[Any]:
    """Global BatchNorm, precision, device and memory layout."""
    use_global_batch_norm(method)
    if work.precision == "fp64":
        method.double()
    return method.to(work.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def new_optimizer(method: Method[Any], settings: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimiser, or those of a method that makes its own step."""

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return build_optimizer(
            settings.optimizer,
            groups,
            learning_rate=scaled_learning_rate(settings.learning_rate, settings.batch_size, settings.optimizer),
            momentum=settings.momentum,
            nesterov=settings.nesterov,
        )

    if isinstance(method, OwnStep):
        return JointOptimizer(method.optimizers(lambda module: build(parameter_groups(module, settings.weight_decay))))
    return build(method.parameter_groups(settings.weight_decay, settings.layer_decay))


def step_of(
    work: Work, config: Config, method: Method[Any], optimizer: torch.optim.Optimizer, *, captured: bool = False
) -> Step:
    """The optimiser's step of pre-training by this config."""
    _, steps = count_steps(config, len(work.dataset.train))
    settings = config.train
    return Step(
        method,
        optimizer,
        work.device,
        work.precision,
        settings.seed,
        steps,
        clip_grad=settings.clip_grad,
        resident=work.resident(),
        captured=captured,
    )


def schedule_of(settings: TrainConfig, steps: int, per_epoch: int) -> Callable[[int], float]:
    """Step → learning rate: a function of the planned number of steps.

    A finished run that is extended goes on with the rate that the longer plan has at that step.
    """
    peak = scaled_learning_rate(settings.learning_rate, settings.batch_size, settings.optimizer)
    warmup = min(round(settings.warmup_epochs * per_epoch), steps)
    return lambda step: learning_rate_at(step, steps, warmup, peak)


def batches_of(work: Work, images: Images, config: Config, start: int, stop: int) -> Iterator[Any]:
    """This worker's batches of the pre-training steps start … stop − 1."""
    views = views_of(work, images, config)
    processes = 0 if views.on_device else loader_processes(config, work.device)  # nothing to decode or to send
    return load_batches(views, start, stop, processes)


def views_of(work: Work, images: Images, config: Config) -> Views:
    """What makes this worker's batches."""
    _, steps = count_steps(config, len(images))
    return Views(
        images,
        Order(len(images), config.train.batch_size, config.train.seed),
        [view_from_dict(view) for view in config.augment.views or ()],
        work.dataset.image_size,
        config.train.seed,
        collectives.rank(),
        collectives.world_size(),
        backend=config.augment.backend,
        on_device=config.augment.backend == "batched" and work.resident() is not None,
        small_until=round(config.train.small_views * steps),
    )


def loader_processes(config: Config, device: torch.device) -> int:
    """Next to a GPU, processes; next to a CPU, where augmentation is a few percent of a step, a thread will do."""
    if config.data.processes is not None:
        return config.data.processes
    return min(8, max(1, (os.cpu_count() or 2) // collectives.world_size() - 1)) if device.type == "cuda" else 0
