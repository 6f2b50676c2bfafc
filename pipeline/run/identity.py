"""What makes a run the same run: which settings may differ when it is continued, and which key it has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import AUTO, Dataset
from rayssl.pipeline.run.build import count_steps
from rayssl.pipeline.run.folder import as_recorded, stage_key
from rayssl.pipeline.training.checkpoint import list_checkpoints

# Fields of the config that came later, with the value that changes nothing.
ADDED: dict[str, Any] = {
    "encoder.width": None, "train.guard": "auto", "train.layer_decay": 1.0, "train.freeze": 0, "train.lora": None,
    "augment.crop": None, "augment.color": None, "plan": [], "data.splits": "auto", "data.key": "first",
    "data.image_column": None, "data.label_column": None, "data.range": "auto", "data.background": "auto",
}  # fmt: skip


READ_BEFORE = {"data.range": "type", "data.background": "white"}


def identity(config: Config) -> dict[str, Any]:
    """The part of the config that decides what pre-training computes."""

    flat = flatten(configuration.to_dict(config))
    for path, default in ADDED.items():  # runs that are older than a field have the key they had
        if flat[path] == default:
            del flat[path]
    if flat["data.labels"] == "auto":  # what was None
        flat["data.labels"] = None
    for path, before in READ_BEFORE.items():  # how all runs read until it could be said; the fingerprint tells the rest
        if flat.get(path) == before:
            del flat[path]
    return {key: value for key, value in flat.items() if key not in FREE and not key.startswith(FREE_GROUPS)}


# What may differ when the same run is continued: nothing here changes what a step computes.
FREE = {
    "recipe", "schema", "wandb", "train.epochs", "train.steps", "train.minutes", "train.checkpoint_minutes",
    "train.checkpoint_epochs", "train.keep_checkpoints", "train.threads", "data.loader", "data.processes",
}  # fmt: skip


# Where `auto` or `fastest` became something, it stays so.
CHOSEN_AT_START = ("train.precision", "train.compile", "augment.backend")
FREE_GROUPS = ("cluster.", "probe.", "finetune.", "evaluate.", "index.", "search.")
LENGTH = ("train.steps", "train.epochs", "train.minutes")  # which say one thing together


def as_planned(config: Config, before: Config) -> Config:
    """A config for the run folder of `before`, whose values are kept where the recipe leaves them open."""
    kept = flatten(configuration.to_dict(before))
    paths = [path for path in (*config.plan, *config.on_gpu) if path in kept]
    if "train.steps" in paths:
        paths += [path for path in LENGTH if path != "train.steps"]
    if configuration.method_name(config) != configuration.method_name(before):
        paths = [path for path in paths if not path.startswith("method.")]
    filled = configuration.assign(config, {path: kept[path] for path in paths})
    return replace(
        filled,
        plan=tuple(path for path in config.plan if path not in paths),
        on_gpu={path: value for path, value in config.on_gpu.items() if path not in paths},
    )


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


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def run_name(config: Config, changes: dict[str, Any]) -> str:
    """A folder name that tells runs apart: the recipe, and a hash of what was changed of it."""

    kept = {k.replace("-", "_"): v for k, v in changes.items()}
    kept = {k: v for k, v in kept.items() if k not in FREE and not k.startswith(FREE_GROUPS) and k != "data.path"}
    if "data.path" in changes:
        kept["data.path"] = str(changes["data.path"])
    return config.recipe if not kept else f"{config.recipe}-{stage_key(kept)[:6]}"
