"""The images of a run, read as its config says."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from rayssl.pipeline.config import Config, DataConfig
from rayssl.pipeline.data import Dataset, Reading, of_classes, open_dataset


def reading_of(data: DataConfig) -> dict[str, Any]:
    """How the user says that images are to be read, as options of `open_dataset`."""
    return {one.name: getattr(data, one.name) for one in fields(Reading)}


def open_other(
    own: DataConfig,
    path: str,
    *,
    image_size: int | None,
    channels: int | None,
    said: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Images that a run has not seen, with its range and background.

    What they are called is told by themselves, or `said` (options of `Reading`).
    """
    reading = replace(Reading(), **(said or {}), range=own.range, background=own.background)
    return open_dataset(
        path, image_size=image_size, channels=channels, loader=own.loader, progress=progress, **vars(reading)
    )  # fmt: skip


def open_data(config: Config, progress: Callable[[int, int], None] | None = None, *, strict: bool = False) -> Dataset:
    """The run's data set; `strict`: options that say nothing about it are refused."""
    data = config.data
    dataset = open_dataset(
        data.path,
        image_size=image_size_of(config),
        channels=data.channels,
        limit=data.limit,
        val_fraction=data.val_fraction,
        seed=config.train.seed,
        loader=data.loader,
        progress=progress,
        strict=strict,
        **reading_of(data),
    )
    return dataset if data.classes is None else of_classes(dataset, data.classes)


def image_size_of(config: Config) -> int | None:
    """The side in pixels that is given, else the one that the encoder's weights are for; None: the images' own."""
    from rayssl.pipeline.models.pretrained import own_size

    if config.data.image_size is not None:
        return config.data.image_size
    return own_size(config.encoder.name, config.encoder.weights)
