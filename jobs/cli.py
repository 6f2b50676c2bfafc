"""Parsing that all verbs share: a few flags that people need, and any dotted path of the config."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.base.terminal import say

# At most 20 flags with --help; every other path of the config works the same way.
FLAGS = {
    "--out": ("DIR", "folder to write to [chosen by the command and printed]"),
    "--data.path": ("PATH", "folder, parquet, tar shards, URL or a data set's name"),
    "--data.limit": ("N", "use only N training images"),
    "--data.image-size": ("N", "side in pixels of what the network sees"),
    "--data.labels": ("auto|folder|none|CSV", "source of the labels; a CSV has path, label and, optionally, group"),
    "--data.splits": ("auto|none|folder|CSV", "source of the splits; a CSV has path and split"),
    "--data.key": ("first|last", "in tar shards, which dot of a name ends the key of a sample"),
    "--data.image-column": ("NAME", "the column of images of parquet files"),
    "--data.label-column": ("NAME", "the column of labels of parquet files"),
    "--data.range": ("auto|LOW,HIGH", "pixel values of black and white, for images of more than 8 bits"),
    "--data.background": ("auto|COLOUR", "what shows through transparent pixels: white, black, grey or #rrggbb"),
    "--data.loader": ("auto|resident|stream", "decode once into a cache, or on demand"),
    "--augment.spec": ("FILE", "your own augmentation (JSON, or albumentations' A.save)"),
    "--encoder.name": ("NAME", "resnet-tiny, resnet18, cnn-small, any torchvision classifier, timm/NAME …"),
    "--encoder.weights": ("NAME|FILE", "start from pretrained weights: DEFAULT, a file, a package (rayssl weights)"),
    "--train.epochs": ("N", "passes over the images; raising it extends a finished run"),
    "--train.minutes": ("M", "a time budget of training steps, instead of epochs; start and evaluation come on top"),
    "--train.batch-size": ("N", "images per step, over all workers together"),
    "--train.precision": ("auto|bf16|fp32|fp64", "floating-point precision"),
    "--train.seed": ("N", "random seed"),
    "--cluster.workers": ("N", "processes that train together"),
    "--cluster.gpu-per-worker": ("X", "GPUs per worker [1 if there are any]"),
    "--cluster.address": ("ADDRESS", "an existing Ray cluster"),
    "--index.factory": ("S", "a FAISS factory string"),
    "--index.memory": ("SIZE", "what the index may take, e.g. 2GB [as much as a recall near 1 needs]"),
    "--index.recall": ("X", "that the effort of an approximate index is chosen for [0.99]"),
    "--search.vectors": ("NAME", "what is searched: auto (chosen on validation images), last, NAME[:STAGE[:POOL]]"),
    "--search.whiten": ("auto|true|false", "whether directions that vary little count as much as others"),
    "--tune.space": ("OP,…|FILE", "operations to choose from: crop,flip,color,grey,blur,…"),
    "--tune.parameters": ("NAME,…", "searched too: temperature,learning-rate,method.noise=0.1..0.6"),
    "--tune.objective": ("NAME", "knn, probe, rotation, rankme, alignment-uniformity [knn, rotation without labels]"),
    "--tune.search": ("NAME", "optuna, random, grid or pairs [optuna]"),
    "--tune.scheduler": ("NAME", "none, asha, median or pbt [none]"),
    "--tune.trials": ("N", "candidates to try [20]; raising it continues the search"),
    "--tune.concurrent": ("N", "trials at a time [as many as there is room for]"),
    "--tune.share": ("X", "fraction of the recipe's steps per trial [0.25]"),
    "--wandb": ("MODE", "auto, online, offline or disabled"),
}
SHOWN_DATA = ("--data.path", "--data.limit", "--data.image-size")  # `rayssl data --help` shows them all
RUN_FLAGS = tuple(
    name
    for name in FLAGS
    if not name.startswith(("--tune.", "--search.", "--index.memory", "--index.recall"))
    and (not name.startswith("--data.") or name in SHOWN_DATA)
)
PLACE = ("data.path",)  # what verbs on a run that is there take of the images: they may have moved
READING = tuple(f"data.{name}" for name in ("splits", "labels", "key", "image_column", "label_column"))
RENAMED = {"index.whiten": "search.whiten"}  # paths of the config that have another name now
SWITCHES = {"--json": "machine-readable last line on stdout; all else goes to stderr"}


@dataclass(frozen=True)
class Parsed:
    """Positional arguments and options by name, and dotted paths of the config with their text."""

    values: dict[str, Any]
    changes: dict[str, Any]


def parse(
    verb: str,
    summary: str,
    argv: Sequence[str],
    arguments: Sequence[click.Parameter],
    flags: Sequence[str] = RUN_FLAGS,
    only: Sequence[str] | None = None,
) -> Parsed:
    """Parse a verb's arguments; --help prints and exits with 0; raises UserError for what cannot be understood.

    `only` names the paths of the config that the verb takes; None: all of them.
    """
    rest, changes = take_config_paths(argv)
    changes = renamed(changes)
    check_paths(verb, changes, only)
    shown = [_option(name) for name in flags]
    switches = [click.Option([name], is_flag=True, help=text) for name, text in SWITCHES.items()]
    command = click.Command(verb, params=[*arguments, *shown, *switches], help=summary, epilog=_EPILOG)
    try:
        context = command.make_context(f"rayssl {verb}", rest)
    except click.exceptions.Exit as finished:
        raise SystemExit(finished.exit_code) from None
    except click.UsageError as error:
        raise UserError(f"{error.format_message().rstrip('.')}: see rayssl {verb} --help") from None
    values = dict(context.params)
    if values.get("wandb") is not None:
        changes["wandb"] = values["wandb"]
    return Parsed(values, changes)


def take_config_paths(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split off `--a.b value` and `--a.b=value`."""
    rest: list[str] = []
    changes: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.startswith("--") and "." in name):
            rest.append(word)
            continue
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise UserError(f"{name} has no value: give one, e.g. {name} VALUE") from None
        changes[name[2:]] = value
    return rest, changes


def renamed(changes: dict[str, Any]) -> dict[str, Any]:
    """Paths by their present names; says which was meant."""
    for path in [path for path in changes if path.replace("-", "_") in RENAMED]:
        new = RENAMED[path.replace("-", "_")]
        say(f"rayssl: --{path} is called --{new} now", file=sys.stderr)
        changes = {(new if one == path else one): value for one, value in changes.items()}
    return changes


def check_paths(verb: str, changes: Mapping[str, Any], only: Sequence[str] | None) -> None:
    """Refuse paths of the config that a verb would not read."""
    for path in changes:
        if only is not None and path.replace("-", "_") not in only:
            takes = ", ".join(f"--{name.replace('_', '-')}" for name in only) or "no options of the config"
            raise UserError(f"unknown option --{path}{nearest(path, only)}: rayssl {verb} takes {takes}")


def run_argument() -> click.Argument:
    """The positional RUN: a run folder."""
    return click.Argument(["run"], metavar="RUN")


def run_folder(parsed: Parsed, *, other_images: bool = False) -> Path:
    """The run folder that was named, of a race that of its winner; raises UserError where it is none.

    --data.path says where its images are now, which is noted and taken out of the changes, but for verbs that look at
    `other_images`.
    """
    from rayssl.pipeline.run.folder import read_manifest, winner_of

    run = Path(parsed.values["run"])
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist: give the --out folder of a run")
    run = winner_of(run)
    read_manifest(run)
    if not other_images:
        note_place(run, parsed)
    return run


def note_place(run: Path, parsed: Parsed) -> None:
    """Note where the images of a run are now, where that is said."""
    path = parsed.changes.pop(PLACE[0], None)
    if path is not None:
        from rayssl.pipeline.base.progress import Display
        from rayssl.pipeline.launch.embed import move_shown

        with Display() as display:
            move_shown(run, path, display)


def said_of_others(parsed: Parsed) -> dict[str, Any]:
    """How the images of --data.path are to be read, where that is said, by the names of `Reading`."""
    from rayssl.pipeline.run.resolve import absolute_table

    given = {path.replace("-", "_"): value for path, value in parsed.changes.items()}
    said = {path.removeprefix("data."): given[path] for path in READING if path in given}
    if said and PLACE[0] not in given:
        first = next(path for path in parsed.changes if path.replace("-", "_") in READING)
        raise UserError(f"--{first} says how other images are read: name them with --data.path")
    if said.get("key", "first") not in ("first", "last"):
        raise UserError(f"--data.key is '{said['key']}': first or last")
    return {name: absolute_table(value) if name in ("splits", "labels") else value for name, value in said.items()}


def command_line() -> str:
    """This command as one would type it again, also where it was `python -m rayssl.jobs.VERB`."""
    module = Path(sys.argv[0])
    verb = [module.stem] if module.parent.name == "jobs" and module.stem != "main" else []
    return shlex.join(["rayssl", *verb, *sys.argv[1:]])


def _option(name: str) -> click.Option:
    metavar, text = FLAGS[name]
    variable = name.strip("-").replace(".", "__").replace("-", "_")
    return click.Option([name, variable], metavar=metavar, help=text)


_EPILOG = (
    "Commands that train accept any path of a run's config.json, e.g. --train.learning-rate 0.1 or "
    "--method.temperature 0.2; commands on a run accept those of their own stage."
)
