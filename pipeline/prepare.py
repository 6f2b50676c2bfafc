"""Before anything runs: resolve the config against the data, refuse what cannot work, and say what will happen."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.data import Dataset, of_classes, open_dataset
from pipeline.data.named import HANDED
from pipeline.errors import UserError
from pipeline.progress import format_bytes, format_duration
from pipeline.runfolder import check_unchanged, describe_software, update_manifest, writer_lock

if TYPE_CHECKING:
    from pipeline.methods.base import Traits

# What may differ when the same run is continued: nothing here changes what a step computes.
FREE = {
    "recipe", "schema", "wandb", "train.epochs", "train.steps", "train.minutes", "train.checkpoint_minutes",
    "train.checkpoint_epochs", "train.keep_checkpoints", "train.threads", "data.loader", "data.processes",
}  # fmt: skip
# Where `auto` or `fastest` became something, it stays so.
CHOSEN_AT_START = ("train.precision", "train.compile", "augment.backend")
FREE_GROUPS = ("cluster.", "probe.", "finetune.", "evaluate.", "index.", "search.")

# Rates for the first estimate. The CPU's were measured on two cores with bf16 instructions, resnet-tiny at 32 pixels;
# the GPU's is a guess.
CPU_FLOPS = 150e9  # a core, forward and backward
GPU_FLOPS = 40e12
VIEW_SECONDS = 25e-6  # to augment a view of 32 × 32 pixels on one core


@dataclass(frozen=True)
class Prepared:
    """A run that can start."""

    config: Config
    run: Path
    dataset: Dataset


def open_data(config: Config, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """The run's data set."""
    data = config.data
    dataset = open_dataset(
        data.path,
        image_size=data.image_size,
        channels=data.channels,
        limit=data.limit,
        val_fraction=data.val_fraction,
        seed=config.train.seed,
        labels=data.labels,
        loader=data.loader,
        progress=progress,
    )
    return dataset if data.classes is None else of_classes(dataset, data.classes)


def prepare(
    config: Config, run: Path, *, command: str, warn: Callable[[str], None], progress: Callable[[int, int], None]
) -> Prepared:
    """Resolve the config, check it against a run that is there already, and write config.json and manifest.json.

    Raises UserError before anything is written.
    """
    if "://" in str(run):
        raise UserError(f"--out {run} is a URL: give a folder, on storage that all workers share")
    config, dataset = open_and_resolve(config, warn, progress)
    facts, _, _ = check_disk(config, dataset, run)
    check_index(config, dataset, facts["dim"])
    if (run / "config.json").exists():
        config = continue_run(configuration.load(run / "config.json"), config, run)
        check_trained(config, dataset, run)
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"--out {run} is not empty and is no run folder: give a new or empty folder")
    with writer_lock(run):
        configuration.save(config, run / "config.json")
        update_manifest(
            run,
            {
                "recipe": config.recipe,
                "command": command,
                "seed": config.train.seed,
                "data": {"name": dataset.name, "path": dataset.path, "fingerprint": dataset.fingerprint,
                         "train": len(dataset.train), "val": len(dataset.val),
                         "test": len(dataset.test) if dataset.test is not None else 0,
                         "image_size": dataset.image_size, "channels": dataset.channels,
                         "classes": list(dataset.class_names) if dataset.class_names else None,
                         "labelled": dataset.count_labelled()[0]},
                "unreadable": [list(pair) for pair in dataset.unreadable],
                **describe_software(),
            },
        )  # fmt: skip
    if dataset.unreadable:
        warn(f"{len(dataset.unreadable)} unreadable images are left out: listed in {run / 'manifest.json'}")
    if dataset.idle_rows:
        named = f"{len(dataset.idle_rows)}, e.g. '{dataset.idle_rows[0]}'"
        warn(f"paths in {config.data.labels} that are no image's: {named}")
    return Prepared(config, run, dataset)


def open_and_resolve(
    config: Config, warn: Callable[[str], None], progress: Callable[[int, int], None] | None = None
) -> tuple[Config, Dataset]:
    """The config with every choice that depends on the data, and the data; raises UserError where they do not fit."""
    if not config.data.path:
        raise UserError("no images given: add --data.path DIR (a folder, parquet, tar shards or a data set's name)")
    dataset = open_data(config, progress)
    return resolve(config, dataset, warn), dataset


def resolve(config: Config, dataset: Dataset, warn: Callable[[str], None]) -> Config:
    """Every choice that depends on the data, made once and written down."""
    from pipeline.augment import View, load_views, view_to_dict
    from pipeline.methods import load_method

    traits = traits_of(config, dataset)
    method = configuration.method_name(config)
    views: tuple[View, ...] = load_method(method).views_for(config.method, traits) if method else ()
    if config.augment.spec is not None:
        views = load_views(config.augment.spec, len(views))
    if config.train.small_views > 0:
        check_small_views(method, config, dataset)
    made = config.augment.views or tuple(view_to_dict(view) for view in views)
    check_backend(config.augment.backend, made)
    return replace(
        config,
        data=replace(
            config.data,
            path=dataset.path,
            image_size=dataset.image_size,
            channels=dataset.channels,
            labels=absolute(config.data.labels),
        ),
        encoder=replace(config.encoder, weights=absolute(config.encoder.weights)),
        augment=replace(
            config.augment,
            mirror=traits.mirror,
            views=made,
        ),
        train=replace(config.train, batch_size=fit_batch(config, dataset, warn)),
    )


def check_backend(backend: str, views: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError where the batched backend is asked to apply somebody's own pipeline."""
    from pipeline.augment import Spec, view_from_dict

    own = [number for number, view in enumerate(views) if not isinstance(view_from_dict(view), Spec)]
    if backend == "batched" and own:
        raise UserError(
            f"--augment.backend batched: view {own[0]} is a pipeline of your own, which albumentations must apply: use "
            "--augment.backend albumentations"
        )


def check_small_views(method: str | None, config: Config, dataset: Dataset) -> None:
    """Raises UserError where the method or the encoder takes one image size only."""
    import torch

    from pipeline.encoders import build_encoder
    from pipeline.methods import load_method

    name, side = config.encoder.name, dataset.image_size // 2
    told = f"--train.small-views {config.train.small_views:g}"
    if method is not None:
        side //= load_method(method).shrinks
    if method is not None and not load_method(method).any_size:
        raise UserError(f"{told}: {method} takes views of one size only: use 0")
    encoder = build_encoder(
        name,
        channels=dataset.channels,
        image_size=dataset.image_size,
        stem=config.encoder.stem,
        **config.encoder.sizes,
    )
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, dataset.channels, side, side))
    except (RuntimeError, AssertionError, ValueError):
        raise UserError(f"{told}: {name} built for {dataset.image_size} px cannot take {side} px: use 0") from None


def traits_of(config: Config, dataset: Dataset) -> "Traits":
    """What a method may know of the data; where nothing is said of mirror images, the data set's name tells."""
    from pipeline.methods.base import Traits

    mirror = config.augment.mirror
    mirror = dataset.path not in HANDED if mirror is None else mirror
    return Traits(dataset.image_size, dataset.channels, mirror, len(dataset.class_names or ()))


def absolute(place: str | None) -> str | None:
    """A file's whole path, because workers have another working directory; what is no file stays as it is."""
    return str(Path(place).absolute()) if place is not None and Path(place).exists() else place


def fit_batch(config: Config, dataset: Dataset, warn: Callable[[str], None]) -> int:
    """The global batch: shrunk to the number of images, refused where workers cannot share it evenly."""
    from pipeline.methods import load_method

    batch, images, workers = config.train.batch_size, len(dataset.train), config.cluster.workers
    method = configuration.method_name(config)
    if method is not None and batch < (least := load_method(method).least_batch):
        raise UserError(f"--train.batch-size is {batch}: {method} compares images: use at least {least}")
    if batch > images:
        fitting = images // workers * workers
        if fitting < 2:
            raise UserError(f"{dataset.path} has {images} training images: at least 2 a worker are needed")
        warn(f"--train.batch-size {batch} is more than the {images} training images: {fitting} is used")
        return fitting
    if batch % workers:
        raise UserError(
            f"--train.batch-size {batch} cannot be shared evenly by {workers} workers: "
            f"use {batch // workers * workers or workers} or {(batch // workers + 1) * workers}"
        )
    return batch


def check_disk(config: Config, dataset: Dataset, run: Path) -> tuple[dict[str, Any], float, float]:
    """Facts of the encoder, bytes needed and bytes free; raises UserError where the disk is too small.

    Builds the encoder and the method once, so that what does not go together ends here and not in a worker.
    """
    from pipeline.encoders import describe
    from pipeline.methods import load_method
    from pipeline.work import new_encoder

    encoder = new_encoder(config)
    facts = describe(encoder)
    method = configuration.method_name(config)
    if method is not None:
        load_method(method)(config.method, encoder, traits_of(config, dataset))
    images = sum(len(split) for split in (dataset.train, dataset.val, dataset.test) if split is not None)
    needed, free = expected_bytes(config, facts, images), shutil.disk_usage(existing_parent(run)).free
    if needed > free:
        raise UserError(f"--out {run} needs about {format_bytes(needed)}: only {format_bytes(free)} are free")
    return facts, needed, free


def continue_run(before: Config, now: Config, run: Path) -> Config:
    """The config to go on with in a run folder; raises UserError where it holds another run."""
    old, new = flatten(configuration.to_dict(before)), flatten(configuration.to_dict(now))
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key == "augment.views", key)):  # the long one last
        if key in CHOSEN_AT_START and new[key] in ("auto", "fastest"):
            continue
        if key in FREE or key.startswith(FREE_GROUPS) or old.get(key) == new.get(key):
            continue
        raise UserError(
            f"{run} holds another run: {key} is {old.get(key)!r} there and {new.get(key)!r} here: "
            "use another --out, or the same value"
        )
    now = replace(
        now,
        train=replace(now.train, precision=before.train.precision, compile=before.train.compile),
        augment=replace(now.augment, backend=before.augment.backend),
    )
    if now.train.minutes is not None and now.train.minutes == before.train.minutes:
        return replace(now, train=replace(now.train, steps=before.train.steps))
    return now


def check_trained(config: Config, dataset: Dataset, run: Path) -> None:
    """Raises UserError where a run has learned from other images, or for more steps than it is asked to."""
    from pipeline.checkpoint import list_checkpoints

    checkpoints = list_checkpoints(run / "checkpoints")
    if config.method is None or (not checkpoints and not (run / "encoder.json").exists()):
        return
    check_unchanged(run, dataset.path, dataset.fingerprint)
    done = int(checkpoints[0].name.removeprefix("step-")) if checkpoints else 0
    _, steps = count_steps(config, len(dataset.train))
    if config.train.minutes is None:  # else they are planned by the worker
        check_steps(run, done, steps)


def check_steps(run: Path, done: int, steps: int) -> None:
    """Raises UserError where a run is asked for fewer steps than it has done."""
    if done > steps:
        raise UserError(f"{run} has already been trained for {done} steps: {steps} is less; use another --out")


def check_index(config: Config, dataset: Dataset, dim: int) -> None:
    """Raises UserError for an index that could not be built after the training."""
    if config.index.factory == "auto":
        return
    from pipeline.index import check_factory

    images = sum(len(split) for split in (dataset.train, dataset.val, dataset.test) if split is not None)
    check_factory(config.index.factory, dim, images)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def count_steps(config: Config, images: int) -> tuple[int, int]:
    """(steps an epoch, steps in all)."""
    per_epoch = images // config.train.batch_size
    return per_epoch, config.train.steps or config.train.epochs * per_epoch


def announce(prepared: Prepared, say: Callable[[str], None]) -> None:
    """What the run is about to do: images, encoder, steps, expected time and disk."""
    config, data = prepared.config, prepared.dataset
    facts, needed, free = check_disk(config, data, prepared.run)
    per_epoch, steps = count_steps(config, len(data.train))
    test = len(data.test) if data.test is not None else 0
    labels = f"{len(data.class_names)} classes" if data.class_names else "no labels"
    labelled, images = data.count_labelled()
    if 0 < labelled < images:
        labels += f", {labelled:,} of {images:,} images labelled"
    seconds = expected_seconds(config, facts["flops"], steps)
    length = f"{config.train.minutes:g} min" if config.train.minutes else f"about {format_duration(seconds)}"
    say(f"{prepared.run}")
    say(f"  images   {len(data.train):,} train, {len(data.val):,} held out, {test:,} test; "
        f"{data.image_size} px, {data.channels} channels, {labels} ({data.path})")  # fmt: skip
    width = f", {config.encoder.width} times as wide" if (config.encoder.width or 1) > 1 else ""
    say(f"  encoder  {config.encoder.name}{width}: {facts['parameters'] / 1e6:.2f} M parameters, "
        f"{facts['flops'] / 1e6:,.0f} MFLOPs an image, {facts['dim']} features")  # fmt: skip
    say(f"  method   {configuration.method_name(config)}: {steps:,} steps of {config.train.batch_size} images "
        f"({per_epoch:,} an epoch), {config.cluster.workers} worker{'s' * (config.cluster.workers > 1)}")  # fmt: skip
    say(f"  expected {length} of pre-training (a guess: the live line knows better), "
        f"{format_bytes(needed)} of {format_bytes(free)} free disk")  # fmt: skip


def expected_seconds(config: Config, flops: float, steps: int) -> float:
    """A rough guess from the operations that a step needs; within a factor of about two on a CPU."""
    from pipeline.methods import load_method
    from pipeline.recipes import has_gpu

    method = configuration.method_name(config)
    passes = load_method(method).passes if method else 0
    views = len(config.augment.views or ())
    cores = os.cpu_count() or 1
    rate = GPU_FLOPS * config.cluster.workers if has_gpu() else CPU_FLOPS * cores
    side = config.data.image_size or 32
    augment = VIEW_SECONDS * (side / 32) ** 1.5 / cores
    pixels = 1 - 0.75 * config.train.small_views
    return float(pixels * steps * config.train.batch_size * views * (3 * passes * flops / rate + augment))


def expected_bytes(config: Config, facts: dict[str, Any], images: int) -> float:
    """Checkpoints (weights and optimiser state), exports, embeddings and index."""
    weights = 4.0 * facts["parameters"]
    return float(weights * 3.5 * (config.train.keep_checkpoints + 1) + images * facts["dim"] * 4 * 4)


def existing_parent(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def run_name(config: Config, changes: dict[str, Any]) -> str:
    """A folder name that tells runs apart: the recipe, and a hash of what was changed of it."""
    from pipeline.runfolder import stage_key

    kept = {k.replace("-", "_"): v for k, v in changes.items()}
    kept = {k: v for k, v in kept.items() if k not in FREE and not k.startswith(FREE_GROUPS) and k != "data.path"}
    if "data.path" in changes:
        kept["data.path"] = str(changes["data.path"])
    return config.recipe if not kept else f"{config.recipe}-{stage_key(kept)[:6]}"
