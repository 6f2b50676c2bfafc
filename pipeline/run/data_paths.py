"""Where the images of a run lie: they may move, and it is the same run as long as they are the same images."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import WORDS, is_named, storage
from rayssl.pipeline.run.folder import read_manifest

PLACES = ("data.path", "data.labels", "data.splits")  # of the images and of what is told of them


def places_of(config: Config) -> dict[str, str]:
    """Where images, labels and splits are."""
    return {path: getattr(config.data, path.removeprefix("data.")) for path in PLACES}


def at_places_of(config: Config, other: Config) -> Config:
    """The config for the same images where `other` has them; auto, folder and none are no places."""
    own, there = places_of(config), places_of(other)
    return configuration.override(
        config, {path: there[path] for path in PLACES if own[path] not in WORDS and there[path] not in WORDS}
    )


def at_place(config: Config, path: str) -> Config:
    """The config for images at another place; tables that lay among them have moved with them."""
    data = config.data
    old, new = _normalised(data.path), _normalised(path)
    labels, splits = (_moved(table, old, new) for table in (data.labels, data.splits))
    return replace(config, data=replace(data, path=new, labels=labels, splits=splits))


def started_at(run: Path, before: Config | None, now: Config) -> dict[str, Any]:
    """What the manifest tells of where the images were when the run was started, if they have moved since."""
    if before is None:
        return {}
    places = {**places_of(before), **_started(run)}
    return {} if places == places_of(now) else {"started": places}


def as_started(run: Path, config: Config) -> Config:
    """The config with the places that images had when the run was started."""
    return configuration.override(config, _started(run))


def check_there(run: Path, config: Config) -> None:
    """Raises UserError where the images of a run are gone."""
    if is_gone(config.data.path):
        raise UserError(
            f"{config.data.path}, which holds the images of {run}, does not exist: bring it back, or say where it is "
            f"now with --data.path NEW (`rayssl embed {run} --data.path NEW` notes it)"
        )


def is_gone(path: str) -> bool:
    """Whether a folder, file or pattern on this machine leads nowhere."""
    if not path or is_named(path) or storage.is_url(where := storage.normalise(path)) or os.path.exists(where):
        return False
    return not storage.matches(where)


def moved(run: Path, before: str, now: str) -> str:
    """Tells that the images have moved."""
    return f"the images of {run} are at {now} now (they were at {before}), and unchanged"


def _started(run: Path) -> dict[str, str]:
    data = read_manifest(run).get("data", {}) if (run / "manifest.json").exists() else {}
    return dict(data.get("started", {}))


def _normalised(path: str) -> str:
    return path if is_named(path) else storage.normalise(path)


def _moved(table: str, old: str, new: str) -> str:
    inside = table.removeprefix(f"{old}/")
    there = storage.join(new, inside)
    return there if inside != table and not os.path.exists(table) and os.path.exists(there) else table
