"""Every choice that depends on the images or on the machine, made once and written down."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import WORDS, Dataset
from rayssl.pipeline.run.build import traits_of
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.run.machine import this_machine
from rayssl.pipeline.run.plan import (
    Machine,
    Plan,
    Sizes,
    plan_for,
)

ENOUGH_LABELLED = 500  # validation images with a label, to choose by
MORE_VALIDATION = 0.2  # of the training images, where there are fewer


def open_and_resolve(
    config: Config,
    warn: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    machine: Machine | None = None,
    *,
    strict: bool = True,
) -> tuple[Config, Dataset]:
    """The config with every choice that depends on the data or on where training runs, and the data.

    `machine`: what the workers have; None: this one. `strict`: options that say nothing about the data are refused.
    Raises UserError where config and data do not fit.
    """
    machine = machine or this_machine(config)
    config = configuration.for_device(config, machine.device)
    if not config.data.path:
        raise UserError("no images given: add --data.path DIR (a folder, parquet, tar shards or a data set's name)")
    dataset = open_data(config, progress, strict=strict)
    before, config = config.data.val_fraction, with_validation(config, dataset)
    if config.data.val_fraction != before:
        dataset = open_data(config, progress)
    return resolve(config, dataset, warn, machine), dataset


def with_validation(config: Config, dataset: Dataset) -> Config:
    """Hold out more images where few of those held out have a label: every choice is made by them.

    Not where the share was given, or where the source says which images are for validation.
    """
    if "data.val_fraction" not in config.plan:
        return config
    few = 0 < len(dataset.val.labelled()[0]) < ENOUGH_LABELLED and not dataset.own_val
    share = MORE_VALIDATION if few else config.data.val_fraction
    return configuration.override(config, {"data.val_fraction": share})


def resolve(config: Config, dataset: Dataset, warn: Callable[[str], None], machine: Machine) -> Config:
    """Every choice that depends on the data, made once and written down."""
    from rayssl.pipeline.augment import View, load_views, view_to_dict
    from rayssl.pipeline.augment.trial import try_pipelines
    from rayssl.pipeline.methods import load_method

    config = settled(fill_plan(config, dataset, machine))
    traits = traits_of(config, dataset)
    method = configuration.method_name(config)
    views: tuple[View, ...] = load_method(method).views_for(config.method, traits) if method else ()
    if config.augment.spec is not None:
        refuse_strengths(config)
        views = load_views(config.augment.spec, len(views))
        try_pipelines(views, size=dataset.image_size, channels=dataset.channels, seed=config.train.seed)
    if config.train.small_views > 0:
        check_small_views(method, config, dataset)
    made = config.augment.views or tuple(view_to_dict(view) for view in views)
    check_backend(config.augment.backend, made)
    check_scales(method, made, config, dataset)
    return replace(
        config,
        data=replace(
            config.data,
            path=dataset.path,
            image_size=dataset.image_size,
            channels=dataset.channels,
            range=dataset.range,
            background=dataset.background,
            labels=absolute_table(config.data.labels),
            splits=absolute_table(config.data.splits),
        ),
        encoder=replace(config.encoder, weights=absolute(config.encoder.weights)),
        augment=replace(
            config.augment,
            mirror=traits.mirror,
            views=made,
        ),
        train=replace(config.train, batch_size=fit_batch(config, dataset, warn)),
    )


def fill_plan(config: Config, dataset: Dataset, machine: Machine) -> Config:
    """A config without open paths: what its recipe leaves open is planned for these images and a machine."""
    opened, config = config.plan, replace(config, plan=())
    if not opened or config.method is None:
        return config
    plan = plan_of(config, opened, dataset, machine)
    return configuration.override(config, {path: planned_value(plan, path) for path in opened})


def plan_of(config: Config, opened: tuple[str, ...], dataset: Dataset, machine: Machine) -> Plan:
    """The plan for a config whose paths `opened` are open: what is given of the others is planned around."""
    from rayssl.pipeline.methods import load_method
    from rayssl.pipeline.models.encoder import describe
    from rayssl.pipeline.run.build import new_encoder, required_method

    if len(dataset.train) < 2 * config.cluster.workers:
        raise too_few(dataset)
    name = required_method(config)
    method, train = load_method(name), config.train
    data = replace(config.data, image_size=dataset.image_size, channels=dataset.channels)
    encoder = new_encoder(replace(config, data=data), weights=False)
    views = len(method.views_for(config.method, traits_of(config, dataset)))
    facts = describe(encoder)
    small_views = None if "train.small_views" in opened else train.small_views
    if small_views is None and not takes_small_views(name, config, dataset):
        small_views = 0.0
    return plan_for(
        len(dataset.train),
        Sizes(dataset.image_size, facts["flops"], views, method.encoder_passes, facts["depthwise"]),
        name,
        machine,
        batch_size=None if "train.batch_size" in opened else train.batch_size,
        small_views=small_views,
        weights=config.encoder.weights is not None,
        colors_tell=ask_colors(config, dataset) if "augment.color" in opened else None,
    )


def ask_colors(config: Config, dataset: Dataset) -> bool | None:
    """Whether colours tell the images apart; None where there is no telling."""
    from rayssl.pipeline.run.colors import colors_tell

    classes = 0 if dataset.some_classes else len(dataset.class_names or ())
    return colors_tell(dataset.train, dataset.val, classes, config.train.seed)


def too_few(dataset: Dataset) -> UserError:
    """For a set that cannot be shared by the workers."""
    return UserError(f"{dataset.path} has {len(dataset.train)} training images: at least 2 a worker are needed")


def planned_value(plan: Plan, path: str) -> Any:
    """What a plan says of a path of the config."""
    return getattr(plan, path.rpartition(".")[2])


def settled(config: Config, before: Config | None = None) -> Config:
    """A config whose method has looked up what only this machine can tell, or has it from the run `before`."""
    from rayssl.pipeline.methods import load_method

    name = configuration.method_name(config)
    if name is None:
        return config
    same = before is not None and configuration.method_name(before) == name
    method = load_method(name).settle(config.method, before.method if before is not None and same else None)
    return replace(config, method=method)


def refuse_strengths(config: Config) -> None:
    """Raises UserError for strengths of the method's own views where a file says what the views are."""
    for name in ("crop", "color"):
        if (value := getattr(config.augment, name)) is not None:
            raise UserError(f"--augment.{name} {value:g} changes the method's own views: not with --augment.spec")


def check_backend(backend: str, views: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError where the batched backend is asked to apply somebody's own pipeline."""
    from rayssl.pipeline.augment import Spec, view_from_dict

    own = [number for number, view in enumerate(views) if not isinstance(view_from_dict(view), Spec)]
    if backend == "batched" and own:
        raise UserError(
            f"--augment.backend batched: view {own[0]} is a pipeline of your own, which albumentations must apply: use "
            "--augment.backend albumentations"
        )


def check_scales(method: str | None, views: Sequence[Mapping[str, Any]], config: Config, dataset: Dataset) -> None:
    """Raises UserError where views have sizes that the method or the encoder cannot take."""
    from rayssl.pipeline.augment import side_of, view_from_dict
    from rayssl.pipeline.methods import load_method

    sides = sorted({side_of(view_from_dict(view), dataset.image_size) for view in views})
    if method is None or sides == [dataset.image_size]:
        return
    if len(sides) > 1 and not load_method(method).mixed_view_sizes:
        told = ", ".join(map(str, sides))
        raise UserError(f"views have sides of {told} px by their scales: {method} takes views of one size")
    check_takes(f"a view's scale of {sides[0] / dataset.image_size:g}", "1", sides[0], method, config, dataset)


def check_small_views(method: str | None, config: Config, dataset: Dataset) -> None:
    """Raises UserError where the method or the encoder takes one image size only."""
    told = f"--train.small-views {config.train.small_views:g}"
    check_takes(told, "0", dataset.image_size // 2, method, config, dataset)


def check_takes(told: str, instead: str, side: int, method: str | None, config: Config, dataset: Dataset) -> None:
    """Raises UserError where views of so many pixels a side are not for the method or the encoder."""
    import torch

    from rayssl.pipeline.methods import load_method
    from rayssl.pipeline.models.encoder import build_encoder

    name = config.encoder.name
    if method is not None:
        side = int(side * load_method(method).smallest_view)
    if method is not None and not load_method(method).any_view_size:
        raise UserError(f"{told}: {method} takes views of one size only: use {instead}")
    encoder = build_encoder(
        name,
        channels=dataset.channels,
        image_size=dataset.image_size,
        stem=config.encoder.stem,
        **asdict(config.encoder.architecture),
    )
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, dataset.channels, side, side))
    except (RuntimeError, AssertionError, ValueError):
        raise UserError(
            f"{told}: {name} built for {dataset.image_size} px cannot take {side} px: use {instead}"
        ) from None


def takes_small_views(method: str, config: Config, dataset: Dataset) -> bool:
    """Whether views of half the side will do."""
    try:
        check_small_views(method, config, dataset)
    except UserError:
        return False
    return True


def absolute_table(choice: str) -> str:
    """A CSV's whole path; auto, folder and none stay as they are."""
    return choice if choice in WORDS else absolute(choice) or choice


def absolute(place: str | None) -> str | None:
    """A file's whole path, because workers have another working directory; what is not a file stays as it is."""
    return str(Path(place).absolute()) if place is not None and Path(place).exists() else place


def fit_batch(config: Config, dataset: Dataset, warn: Callable[[str], None]) -> int:
    """The global batch: shrunk to the number of images, refused where workers cannot share it evenly."""
    from rayssl.pipeline.methods import load_method

    batch, images, workers = config.train.batch_size, len(dataset.train), config.cluster.workers
    method = configuration.method_name(config)
    if method is not None and batch < (least := load_method(method).smallest_batch):
        raise UserError(f"--train.batch-size is {batch}: {method} compares images: use at least {least}")
    if batch > images:
        fitting = images // workers * workers
        if fitting < 2:
            raise too_few(dataset)
        warn(f"--train.batch-size {batch} is more than the {images} training images: {fitting} is used")
        return fitting
    if batch % workers:
        raise UserError(
            f"--train.batch-size {batch} cannot be shared evenly by {workers} workers: "
            f"use {batch // workers * workers or workers} or {(batch // workers + 1) * workers}"
        )
    return batch
