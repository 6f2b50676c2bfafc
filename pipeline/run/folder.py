"""The run folder: the only thing passed between stages. One writer at a time, a manifest, a log of metrics."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayssl.pipeline.base.atomic import UNFINISHED
from rayssl.pipeline.base.documents import load
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.schemas import Manifest, RaceFile
from rayssl.pipeline.base.seals import check, note, seal_of, update

if TYPE_CHECKING:
    from rayssl.pipeline.data import Dataset


SCHEMA = 1


def is_unstarted(run: Path) -> bool:
    """Whether a folder holds nothing, or what a command that was killed at its first file has left."""
    return all(path.name == ".lock" or path.name.endswith(UNFINISHED) for path in listed(run))


def read_manifest(run: Path) -> dict[str, Any]:
    """manifest.json; raises UserError where the folder is no run, is damaged, or has another schema version."""
    path = run / "manifest.json"
    remedy = "restore it, or remove it and give the command that started the run again; finished training is kept"
    missing = f"{run} is not a run folder (no manifest.json): give the folder a run wrote to"
    if (run / "config.json").exists():
        missing = f"{path} is gone: the command that started the run writes it again; finished training is kept"
    values = load(path, Manifest, remedy, missing)
    if values.get("files") is not None and values.get("seal") != seal_of(values):
        raise UserError(f"{path} is damaged (it was changed after it was written): {remedy}")
    return {"stages": {}, **values}


def data_name(run: Path) -> str:
    """The name of the run's data set, a folder under embeddings/ and index/; a plain name, see the schema."""
    return str(own_data(run)["name"])


def own_data(run: Path) -> dict[str, Any]:
    """What the manifest tells of the run's images; raises UserError where it does not."""
    data: dict[str, Any] | None = read_manifest(run).get("data")
    if data is None:
        raise UserError(f"{run / 'manifest.json'} lacks data: give the command that started the run again")
    return data


def winner_of(path: Path) -> Path:
    """The run folder that is meant: of a race its winner's; any other folder itself.

    Raises UserError for a race that has no winner yet, or whose race.json is damaged.
    """
    race = path / "race.json"
    if not os.path.lexists(race):
        return path
    winner = read_race(path)["winner"]
    if winner is None:
        raise UserError(f"the race in {path} has no winner yet: the command that started it goes on")
    return path / str(winner)


def read_race(out: Path) -> dict[str, Any]:
    """race.json; raises UserError where it is missing, damaged or of another schema version."""
    path = out / "race.json"
    remedy = "restore it, or start the race again in a new --out"
    values = load(path, RaceFile, remedy, f"{out} is not a race (no race.json): `rayssl race DIR` runs one")
    check(path, remedy)
    return values


def recorded(run: Path, dataset: "Dataset") -> "Dataset | None":
    """The images as the run knows them, by its name and fingerprint of them; None where they, or labels, are others.

    A run that is older than the scheme of fingerprints is compared by the one that it was started with.
    """
    data = read_manifest(run).get("data") if os.path.lexists(run / "manifest.json") else None
    known = dataset.known_as(data["fingerprint"]) if data else None
    return None if known is None or data is None else replace(known, name=data["name"])


def as_recorded(run: Path, dataset: "Dataset") -> "Dataset":
    """`recorded`; UserError where the images, or their labels, are not those that the run was started with."""
    known = recorded(run, dataset)
    if known is None:
        raise UserError(
            f"{dataset.path}, or its labels, has changed since {run} was started: use another --out, or bring back "
            f"what was there, or say where it is now with --data.path NEW; `rayssl embed {run} --data.path "
            f"{dataset.path}` embeds what is there now, as data of its own"
        )
    return known


def update_manifest(run: Path, changes: Mapping[str, Any]) -> None:
    """Replace top-level keys of the manifest, whole or not at all."""
    path = run / "manifest.json"
    if os.path.lexists(path):
        read_manifest(run)
    update(path, lambda values: {**(values or {"schema": SCHEMA, "stages": {}, "files": {}}), **changes})


def stage_done(run: Path, stage: str, key: str) -> bool:
    """Whether a stage has ended with this very key (see `stage_key`)."""
    if not os.path.lexists(run / "manifest.json"):
        return False
    done: bool = read_manifest(run)["stages"].get(stage, {}).get("key") == key
    return done


def begin_stage(run: Path, stage: str) -> None:
    """Record that a stage is at work: until it has ended, files that belong together need not fit."""
    update_manifest(run, {"running": stage})


def mark_stage(run: Path, stage: str, key: str, seconds: float, **facts: Any) -> None:
    """Record that a stage has ended; the rows that it logged are whole."""
    note(run / "metrics.jsonl")
    stages = read_manifest(run)["stages"]
    stages[stage] = {"key": key, "seconds": round(seconds, 2), "finished": time.strftime("%FT%T%z"), **facts}
    update_manifest(run, {"stages": stages, "running": None})


def stage_key(*parts: Any) -> str:
    """A short hash of what a stage depends on: its part of the config and its inputs' hashes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
