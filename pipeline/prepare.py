"""Before anything runs: resolve the config against the data, refuse what cannot work, and say what will happen."""

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import config as configuration
from pipeline.base.errors import UserError
from pipeline.base.lease import writer_lock
from pipeline.base.progress import format_bytes, format_duration
from pipeline.config import Config, DataConfig
from pipeline.data import AUTO, WORDS, Dataset, Reading, of_classes, open_dataset
from pipeline.data.concluded import facts, lines
from pipeline.data.named import HANDED
from pipeline.places import at_places_of, check_there, moved, started_at
from pipeline.plan import (
    MINUTES,
    START_SECONDS,
    STRENGTHS,
    Machine,
    Plan,
    Sizes,
    plan_for,
    stages_seconds,
    step_seconds,
)
from pipeline.runfolder import as_recorded, describe_software, is_unstarted, recorded, update_manifest

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

ENOUGH_LABELLED = 500  # validation images with a label, to choose by
MORE_VALIDATION = 0.2  # of the training images, where there are fewer

A_GUESS = "(a guess for an idle machine: the live line knows better)"
COLOR_REASONS = {
    True: "colours tell validation images apart better than shapes do",
    False: "shapes tell validation images apart as well as colours do",
    None: "there are too few labels, or no colours, to tell by",
}
LENGTH = ("train.steps", "train.epochs", "train.minutes")  # which say one thing together


@dataclass(frozen=True)
class Prepared:
    """A run that can start."""

    config: Config
    run: Path
    dataset: Dataset
    planned: tuple[str, ...] = ()  # paths whose values were planned just now
    seconds: float = 0.0  # that its stages are expected to take, the start apart


def reading_of(data: DataConfig) -> dict[str, Any]:
    """How the user says that images are to be read, as options of `open_dataset`."""
    return {one.name: getattr(data, one.name) for one in fields(Reading)}


def open_other(
    own: DataConfig,
    path: str,
    *,
    image_size: int | None,
    channels: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Images that a run has not seen, read as it reads its own; what they are called is told by themselves."""
    reading = replace(Reading(), range=own.range, background=own.background)
    return open_dataset(
        path, image_size=image_size, channels=channels, loader=own.loader, progress=progress, **vars(reading)
    )  # fmt: skip


def open_data(config: Config, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """The run's data set."""
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
        **reading_of(data),
    )
    return dataset if data.classes is None else of_classes(dataset, data.classes)


def image_size_of(config: Config) -> int | None:
    """The side in pixels that is given, else the one that the encoder's weights are for; None: the images' own."""
    from pipeline.models.pretrained import own_size

    if config.data.image_size is not None:
        return config.data.image_size
    return own_size(config.encoder.name, config.encoder.weights)


def prepare(
    config: Config, run: Path, *, command: str, warn: Callable[[str], None], progress: Callable[[int, int], None]
) -> Prepared:
    """Resolve the config, check it against a run that is there already, and write config.json and manifest.json.

    Raises UserError before anything is written.
    """
    if "://" in str(run):
        raise UserError(f"--out {run} is a URL: give a folder, on storage that all workers share")
    before = configuration.load(run / "config.json") if (run / "config.json").exists() else None
    if before is not None:
        config = read_as_before(settled(as_planned(config, before), before), before)
        check_there(run, config)
    planned = config.plan
    config, dataset = open_and_resolve(config, warn, progress)
    sizes, _, _ = check_disk(config, dataset, run)
    check_index(config, dataset, sizes["dim"])
    if before is not None:
        known = recorded(run, dataset)
        config = continue_run(before if known is None else at_places_of(before, config), config, run)
        check_trained(config, dataset, run)
        dataset = known or dataset
        if before.data.path != dataset.path:
            warn(moved(run, before.data.path, dataset.path))
    elif run.exists() and (not run.is_dir() or not is_unstarted(run)):
        raise UserError(f"--out {run} is not empty and is no run folder: give a new or empty folder")
    with writer_lock(run):
        configuration.save(config, run / "config.json")
        update_manifest(
            run,
            {
                "recipe": config.recipe,
                "command": command,
                "seed": config.train.seed,
                "data": data_facts(dataset) | started_at(run, before, config),
                "unreadable": [list(pair) for pair in dataset.unreadable],
                **describe_software(),
            },
        )  # fmt: skip
    if dataset.unreadable:
        warn(f"{len(dataset.unreadable)} unreadable images are left out: listed in {run / 'manifest.json'}")
    if dataset.idle_rows:
        named = f"{len(dataset.idle_rows)}, e.g. '{dataset.idle_rows[0]}'"
        warn(f"paths in {config.data.labels} that are no image's: {named}")
    return Prepared(config, run, dataset, planned)


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """What the manifest tells of the images."""
    return {
        "name": dataset.name,
        "path": dataset.path,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "val": len(dataset.val),
        "test": len(dataset.test) if dataset.test is not None else 0,
        "image_size": dataset.image_size,
        "channels": dataset.channels,
        "classes": list(dataset.class_names) if dataset.class_names else None,
        "labelled": dataset.count_labelled()[0],
        "duplicates": None if (found := dataset.count_duplicates()) is None else asdict(found),
        "concluded": facts(dataset),
    }


def open_and_resolve(
    config: Config, warn: Callable[[str], None], progress: Callable[[int, int], None] | None = None
) -> tuple[Config, Dataset]:
    """The config with every choice that depends on the data, and the data; raises UserError where they do not fit."""
    if not config.data.path:
        raise UserError("no images given: add --data.path DIR (a folder, parquet, tar shards or a data set's name)")
    dataset = open_data(config, progress)
    before, config = config.data.val_fraction, with_validation(config, dataset)
    if config.data.val_fraction != before:
        dataset = open_data(config, progress)
    return resolve(config, dataset, warn), dataset


def with_validation(config: Config, dataset: Dataset) -> Config:
    """Hold out more images where few of those held out have a label: every choice is made by them.

    Not where the share was given, or where the source says which images are for validation.
    """
    if "data.val_fraction" not in config.plan:
        return config
    few = 0 < len(dataset.val.labelled()[0]) < ENOUGH_LABELLED and not dataset.own_val
    share = MORE_VALIDATION if few else config.data.val_fraction
    return configuration.override(config, {"data.val_fraction": share})


def resolve(config: Config, dataset: Dataset, warn: Callable[[str], None]) -> Config:
    """Every choice that depends on the data, made once and written down."""
    from pipeline.augment import View, load_views, view_to_dict
    from pipeline.methods import load_method

    config = settled(fill_plan(config, dataset))
    traits = traits_of(config, dataset)
    method = configuration.method_name(config)
    views: tuple[View, ...] = load_method(method).views_for(config.method, traits) if method else ()
    if config.augment.spec is not None:
        refuse_strengths(config)
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


def fill_plan(config: Config, dataset: Dataset) -> Config:
    """A config without open paths: what its recipe leaves open is planned for these images and this machine."""
    opened, config = config.plan, replace(config, plan=())
    if not opened or config.method is None:
        return config
    plan = plan_of(config, opened, dataset)
    return configuration.override(config, {path: planned_value(plan, path) for path in opened})


def plan_of(config: Config, opened: tuple[str, ...], dataset: Dataset) -> Plan:
    """The plan for a config whose paths `opened` are open: what is given of the others is planned around."""
    from pipeline.methods import load_method
    from pipeline.models.encoder import describe
    from pipeline.work import new_encoder, required_method

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
        Sizes(dataset.image_size, facts["flops"], views, method.passes, facts["depthwise"]),
        name,
        machine_of(config),
        batch_size=None if "train.batch_size" in opened else train.batch_size,
        small_views=small_views,
        weights=config.encoder.weights is not None,
        colors_tell=ask_colors(config, dataset) if "augment.color" in opened else None,
    )


def ask_colors(config: Config, dataset: Dataset) -> bool | None:
    """Whether colours tell the images apart; None where there is no telling."""
    from pipeline.colors import colors_tell

    classes = 0 if dataset.some_classes else len(dataset.class_names or ())
    return colors_tell(dataset.train, dataset.val, classes, config.train.seed)


def machine_of(config: Config) -> Machine:
    """What a run is planned for."""
    from pipeline.recipes import has_gpu

    return Machine("cuda" if has_gpu() else "cpu", os.cpu_count() or 1, config.cluster.workers)


def too_few(dataset: Dataset) -> UserError:
    """For a set that cannot be shared by the workers."""
    return UserError(f"{dataset.path} has {len(dataset.train)} training images: at least 2 a worker are needed")


def planned_value(plan: Plan, path: str) -> Any:
    """What a plan says of a path of the config."""
    return getattr(plan, path.rpartition(".")[2])


def as_planned(config: Config, before: Config) -> Config:
    """A config for the run folder of `before`, whose values are kept where the recipe leaves them open."""
    kept = flatten(configuration.to_dict(before))
    paths = [path for path in config.plan if path in kept]
    if "train.steps" in paths:
        paths += [path for path in LENGTH if path != "train.steps"]
    if configuration.method_name(config) != configuration.method_name(before):
        paths = [path for path in paths if not path.startswith("method.")]
    filled = configuration.override(config, {path: kept[path] for path in paths})
    return replace(filled, plan=tuple(path for path in config.plan if path not in paths))


def read_as_before(config: Config, before: Config) -> Config:
    """A config that reads values and transparency as the run `before` does, where nothing is said of it."""
    data, said = config.data, before.data
    return replace(
        config,
        data=replace(
            data,
            range=said.range if data.range == AUTO else data.range,
            background=said.background if data.background == AUTO else data.background,
        ),
    )


def settled(config: Config, before: Config | None = None) -> Config:
    """A config whose method has looked up what only this machine can tell, or has it from the run `before`."""
    from pipeline.methods import load_method

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

    from pipeline.methods import load_method
    from pipeline.models.encoder import build_encoder

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


def takes_small_views(method: str, config: Config, dataset: Dataset) -> bool:
    """Whether views of half the side will do."""
    try:
        check_small_views(method, config, dataset)
    except UserError:
        return False
    return True


def traits_of(config: Config, dataset: Dataset) -> "Traits":
    """What a method may know of the data; where nothing is said of mirror images, the data set's name tells."""
    from pipeline.methods.base import Traits

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


def absolute_table(choice: str) -> str:
    """A CSV's whole path; auto, folder and none stay as they are."""
    return choice if choice in WORDS else absolute(choice) or choice


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
            raise too_few(dataset)
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
    from pipeline.methods import load_method
    from pipeline.models.encoder import describe
    from pipeline.work import new_encoder, restrict

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
    from pipeline.training.checkpoint import list_checkpoints

    checkpoints = list_checkpoints(run / "checkpoints")
    if config.method is None or (not checkpoints and not (run / "encoder.json").exists()):
        return
    as_recorded(run, dataset)
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
    from pipeline.base.faiss_factory import check_factory

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


def announce(
    prepared: Prepared, say: Callable[[str], None], stages: Collection[str] = ("pretrain",), *, alone: bool = True
) -> float:
    """What the run is about to do: images, encoder, steps, expected time of the stages that are asked for, and disk.

    Returns the seconds that these are expected to take, the start apart, which a run that is not `alone` shares.
    """
    config, data = prepared.config, prepared.dataset
    sizes, needed, free = check_disk(config, data, prepared.run)
    per_epoch, steps = count_steps(config, len(data.train))
    training, after = expected_seconds(config, sizes, data, steps, stages)
    say(f"{prepared.run}")
    for line in lines(data):
        say(line)
    if os.path.realpath(prepared.run).startswith(os.path.realpath(data.path) + os.sep):
        say("  found    the run folder lies among the images: it will be left out of them")
    width = f", {config.encoder.width} times as wide" if (config.encoder.width or 1) > 1 else ""
    say(f"  encoder  {config.encoder.name}{width}: {sizes['parameters'] / 1e6:.2f} M parameters, "
        f"{sizes['flops'] / 1e6:,.0f} MFLOPs an image, {sizes['dim']} features")  # fmt: skip
    say(f"  method   {configuration.method_name(config)}: {steps:,} steps of {config.train.batch_size} images "
        f"({per_epoch:,} an epoch), {config.cluster.workers} worker{'s' * (config.cluster.workers > 1)}")  # fmt: skip
    teacher = [getattr(config.method, name, None) for name in ("teacher", "teacher_weights")]
    if any(teacher):
        say(f"  teacher  {', '.join(filter(None, teacher))}")
    length = expected_length(config, training, after, alone=alone)
    say(f"  expected {length}; {format_bytes(needed)} of {format_bytes(free)} free disk")
    if "train.steps" in prepared.planned:
        say(f"  planned  {steps:,} steps, about {MINUTES:g} min: --train.minutes or --train.epochs changes it")
    if "augment.color" in prepared.planned and (color := config.augment.color) is not None:
        told = next(told for told, strength in STRENGTHS.items() if strength == color)
        say(f"  colours  jitter of strength {color:g}, for {COLOR_REASONS[told]}: --augment.color changes it")
    return training + after


def sizes_of(config: Config, flops: float, depthwise: float) -> Sizes:
    """What an image costs the method and its encoder."""
    from pipeline.methods import load_method

    method = configuration.method_name(config)
    passes = load_method(method).passes if method else 0
    return Sizes(config.data.image_size or 32, flops, len(config.augment.views or ()), passes, depthwise)


def training_seconds(config: Config, flops: float, steps: int, depthwise: float = 0.0) -> float:
    """A rough guess from the operations that a step needs; see `pipeline.plan.step_seconds`."""
    if config.train.minutes:
        return 60 * config.train.minutes
    sizes = sizes_of(config, flops, depthwise)
    return steps * step_seconds(sizes, machine_of(config), config.train.batch_size, config.train.small_views)


def expected_seconds(
    config: Config, facts: Mapping[str, Any], data: Dataset, steps: int, stages: Collection[str]
) -> tuple[float, float]:
    """What the training steps take, and what the stages that follow."""
    from pipeline.models.pretrained import FROZEN_MOST, available

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
    return f"{told}: {format_duration(START_SECONDS + training + after)} in all {A_GUESS}"


def expected_bytes(config: Config, facts: dict[str, Any], images: int) -> float:
    """Checkpoints (weights and optimiser state), exports, embeddings and index."""
    weights = 4.0 * facts["parameters"]
    checkpoint = 4.5 if is_guarded(config) else 3.5  # the best state is in it, too
    return float(weights * checkpoint * (config.train.keep_checkpoints + 1) + images * facts["dim"] * 4 * 4)


def is_guarded(config: Config) -> bool:
    """Whether training is watched, its best state kept and its end brought about: see `pipeline.training.guard`."""
    return config.train.guard == "yes" or (config.train.guard == "auto" and config.encoder.weights is not None)


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
