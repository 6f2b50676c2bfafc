"""Before anything runs: resolve the config against the data, refuse what cannot work, and say what will happen."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.progress import format_bytes
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.data.concluded import facts, lines
from rayssl.pipeline.run.build import count_steps
from rayssl.pipeline.run.data_paths import at_places_of, check_there, moved, started_at
from rayssl.pipeline.run.estimate import check_disk, check_network, expected_length, expected_seconds
from rayssl.pipeline.run.folder import is_unstarted, recorded, update_manifest
from rayssl.pipeline.run.identity import as_planned, check_trained, continue_run, read_as_before
from rayssl.pipeline.run.machine import describe_sizes, this_machine
from rayssl.pipeline.run.plan import (
    MINUTES,
    STRENGTHS,
    Machine,
)
from rayssl.pipeline.run.resolve import open_and_resolve, settled
from rayssl.pipeline.run.software import describe_software

COLOR_REASONS = {
    True: "colours tell validation images apart better than shapes do",
    False: "shapes tell validation images apart as well as colours do",
    None: "there are too few labels, or no colours, to tell by",
}


@dataclass(frozen=True)
class Prepared:
    """A run that can start."""

    config: Config
    run: Path
    dataset: Dataset
    machine: Machine  # that its workers have
    planned: tuple[str, ...] = ()  # paths whose values were planned just now
    by_device: tuple[str, ...] = ()  # paths whose values the recipe has for this kind of machine
    network: Mapping[str, Any] = field(default_factory=dict)  # facts of the encoder of a run that is announced
    seconds: float = 0.0  # that its stages are expected to take, the start apart


def prepare(
    config: Config,
    run: Path,
    *,
    command: str,
    warn: Callable[[str], None],
    progress: Callable[[int, int], None],
    machine: Machine | None = None,
) -> Prepared:
    """Resolve the config, check it against a run that is there already, and write config.json and manifest.json.

    `machine`: what the workers will have; None: this one. Raises UserError before anything is written.
    """
    if "://" in str(run):
        raise UserError(f"--out {run} is a URL: give a folder, on storage that all workers share")
    before = configuration.load(run / "config.json") if (run / "config.json").exists() else None
    if before is not None:
        config = read_as_before(settled(as_planned(config, before), before), before)
        check_there(run, config)
    planned, by_device = config.plan, tuple(config.on_gpu)
    machine = machine or this_machine(config)
    config, dataset = open_and_resolve(config, warn, progress, machine, strict=before is None)
    network = check_network(config, dataset)
    check_disk(config, network, dataset, run)
    check_index(config, dataset, network["dim"])
    check_searched(config)
    if before is not None:
        known = recorded(run, dataset)
        config = continue_run(before if known is None else at_places_of(before, config), config, run)
        check_trained(config, dataset, run)
        dataset = known or dataset
        if before.data.path != dataset.path:
            warn(moved(run, before.data.path, dataset.path))
    elif run.exists() and (not run.is_dir() or not is_unstarted(run)):
        raise UserError(f"--out {run} is not empty and is not a run folder: give a new or empty folder")
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
        warn(f"paths in {config.data.labels} that match no image: {named}")
    warn_of_turned_views(config, warn)
    return Prepared(config, run, dataset, machine, planned, by_device, network)


def warn_of_turned_views(config: Config, warn: Callable[[str], None]) -> None:
    """RotNet cannot learn how an image is rotated if its views are rotated already."""
    if configuration.method_name(config) != "rotnet":
        return
    used = {operation["name"] for view in config.augment.views or () for operation in view.get("operations", ())}
    for name in sorted(used & {"rotation", "quarter_turn"}):
        warn(f"the views have {name}, and RotNet is to predict how an image is rotated: leave it out of --augment.spec")


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


def announce(
    prepared: Prepared, say: Callable[[str], None], stages: Collection[str] = ("pretrain",), *, alone: bool = True
) -> float:
    """What the run is about to do: images, encoder, steps, expected time of the stages that are asked for, and disk.

    Returns the seconds that these are expected to take, the start apart, which a run that is not `alone` shares.
    """
    config, data = prepared.config, prepared.dataset
    sizes = prepared.network
    needed, free = check_disk(config, sizes, data, prepared.run)
    per_epoch, steps = count_steps(config, len(data.train))
    training, after = expected_seconds(config, prepared.machine, sizes, data, steps, stages)
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
    by_device = [path for path in prepared.by_device if path not in prepared.planned]
    for line in describe_sizes(config, prepared.machine, by_device):
        say(line)
    length = expected_length(config, training, after, alone=alone)
    say(f"  expected {length}; {format_bytes(needed)} of {format_bytes(free)} free disk")
    if "train.steps" in prepared.planned:
        say(f"  planned  {steps:,} steps, about {MINUTES:g} min: --train.minutes or --train.epochs changes it")
    if "augment.color" in prepared.planned and (color := config.augment.color) is not None:
        told = next(told for told, strength in STRENGTHS.items() if strength == color)
        say(f"  colours  jitter of strength {color:g}, for {COLOR_REASONS[told]}: --augment.color changes it")
    return training + after


def check_searched(config: Config) -> None:
    """Raises UserError for vectors to search by that there would not be after the training."""
    from rayssl.pipeline.stages.search_names import check_vectors

    check_vectors(config)


def check_index(config: Config, dataset: Dataset, dim: int) -> None:
    """Raises UserError for an index that could not be built after the training."""
    from rayssl.pipeline.search.factory import check_factory, memory_of

    memory_of(config.index.memory)
    if config.index.factory == "auto":
        return
    images = sum(len(split) for split in (dataset.train, dataset.val, dataset.test) if split is not None)
    check_factory(config.index.factory, dim, images)
