"""A run while stages work on it, and what pre-training is built of: encoder, method, optimiser, schedule, batches.

Everything here is a function of the config and the data.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import config as configuration
from pipeline.augment import view_from_dict
from pipeline.base import collectives
from pipeline.base.device import choose_device, plain_precision, resolve_precision
from pipeline.base.errors import UserError
from pipeline.base.memory import keep_freed_memory
from pipeline.base.reporter import Reporter
from pipeline.config import Config, TrainConfig
from pipeline.data import Dataset, Images
from pipeline.features.frozen import frozen_features
from pipeline.methods import load_method
from pipeline.methods.base import Before, Method
from pipeline.models.encoder import Encoder, build_encoder
from pipeline.models.trainable import add_adapters, freeze_stages, rate_scales
from pipeline.own import open_own
from pipeline.prepare import count_steps, open_data, traits_of
from pipeline.training.batch_norm import use_global_batch_norm
from pipeline.training.batches import Order, Views, load_batches
from pipeline.training.cuda_graph import can_be_recorded
from pipeline.training.optimizers import build_optimizer, learning_rate_at, scaled_learning_rate

RESIDENT_SHARE = 0.3  # of a GPU's free memory that decoded images may take


@dataclass
class Work:
    """A run while stages work on it: opened once, shared by the stages of one process."""

    run: Path
    reporter: Reporter
    config: Config
    dataset: Dataset
    device: torch.device
    precision: str
    features: dict[str, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    _at_sizes: dict[int, Dataset] = field(default_factory=dict)
    _resident: torch.Tensor | None = None

    @classmethod
    def open(cls, run: Path, reporter: Reporter) -> "Work":
        """Open the run's config and data; raises UserError where the images are not those it was trained on."""
        config = configuration.load(run / "config.json")
        return cls.begin(run, reporter, config, open_own(run, config))

    @classmethod
    def begin(cls, run: Path, reporter: Reporter, config: Config, dataset: Dataset) -> "Work":
        """Choose device, precision and threads for a config and data that belong together."""
        device = choose_device()
        if device.type == "cpu":
            keep_freed_memory()
        else:
            torch.set_float32_matmul_precision("high")  # views are off by less than 0.4 of 255, and bf16 rounds more
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        return cls(run, reporter, config, dataset, device, resolve_precision(config.train.precision, device))

    @property
    def is_main(self) -> bool:
        """Whether this is the worker that writes."""
        return collectives.rank() == 0

    def at_size(self, size: int) -> Dataset:
        """The same images in the same parts, read for a network of `size` pixels a side."""
        if size not in self._at_sizes:
            self._at_sizes[size] = read_at(size, self.config, self.dataset)
        return self._at_sizes[size]

    def frozen(self, source: Encoder | str, split: str, names: Sequence[str] = ()) -> NDArray[np.float32]:
        """(N, D) features of train, val or test by an encoder that is not trained, or by a descriptor of that name.

        `names` of its stages (see pipeline.features.pooled) are seen in the same pass and kept for whoever asks next.
        """

        def images_at(size: int) -> tuple[Images, str]:
            found = self.at_size(size)
            images = getattr(found, split)
            return (images if images is not None else found.train.select(np.arange(0))), found.cached_as()

        name = source if isinstance(source, str) else source.name
        return frozen_features(
            source if isinstance(source, str) else source.to(self.device),
            images_at,
            names=names,
            device=self.device,
            precision=plain_precision(self.precision),
            progress=lambda done, total: self.reporter.progress(
                {"run": self.run.name, "stage": f"{name}/{split}", "done": done, "total": total}
            ),
        )

    def resident(self) -> torch.Tensor | None:
        """(N, H, W, C) training images in the GPU's memory, where they fit and have one size; sent there once."""
        if self.config.augment.backend == "albumentations":  # which needs them on the CPU
            return None
        if self._resident is None and fits_on_device(self.dataset.train, self.device):
            pixels, _ = self.dataset.train.padded(np.arange(len(self.dataset.train)))
            self._resident = torch.from_numpy(pixels).to(self.device)
        return self._resident


def read_at(size: int, config: Config, dataset: Dataset) -> Dataset:
    """The images of a data set in the same parts, read for a network of `size` pixels a side."""
    if size == dataset.image_size:
        return dataset
    return open_data(replace(config, data=replace(config.data, image_size=size, channels=dataset.channels)))


class Stopped(Exception):  # noqa: N818
    """A stage was asked to stop; its checkpoint is written."""

    def __init__(self, done: int, steps: int) -> None:
        super().__init__(f"stopped after step {done} of {steps}")


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
        **config.encoder.sizes,
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
    scales_of(encoder, settings)  # where it has no stages it says so now


def scales_of(encoder: Encoder, settings: TrainConfig) -> dict[torch.Tensor, float]:
    """What the learning rate of each of the encoder's parameters is multiplied by, where it is not 1."""
    return rate_scales(encoder, settings.layer_decay) if settings.layer_decay < 1 else {}


def compile_or_capture(method: Method[Any], config: Config, work: Work) -> bool:
    """Compile the encoder's network where that is asked for; whether to record the whole step as a CUDA graph."""
    if config.train.compile != "yes":
        return False
    # For every shape by itself: E-SSL has two, and one program for both is slower at each.
    method.encoder.net.compile(dynamic=False)
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
    """The configured optimiser."""
    return build_optimizer(
        settings.optimizer,
        method,
        learning_rate=scaled_learning_rate(settings.learning_rate, settings.batch_size, settings.optimizer),
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        scales=scales_of(method.encoder, settings),
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


def fits_on_device(images: Images, device: torch.device) -> bool:
    """Whether all images, decoded, take at most a share of the GPU's free memory."""
    size = images.uniform_bytes()
    return device.type == "cuda" and size is not None and size <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


def loader_processes(config: Config, device: torch.device) -> int:
    """Next to a GPU, processes; next to a CPU, where augmentation is a few percent of a step, a thread will do."""
    if config.data.processes is not None:
        return config.data.processes
    return min(8, max(1, (os.cpu_count() or 2) // collectives.world_size() - 1)) if device.type == "cuda" else 0
