"""A run's own images: those that it was started with, or an error; and that they moved."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.run.data_paths import at_place, check_there, moved, started_at
from rayssl.pipeline.run.folder import as_recorded, own_data, recorded, update_manifest
from rayssl.pipeline.run.images import open_data

Progress = Callable[[int, int], None]


def open_own(run: Path, config: Config, progress: Progress | None = None) -> Dataset:
    """The run's images as it knows them; UserError where they are gone, or not those that it was started with."""
    check_there(run, config)
    return as_recorded(run, open_data(config, progress))


def is_intact(run: Path) -> bool:
    """Whether the run's images are where it has them, unchanged."""
    try:
        open_own(run, configuration.load(run / "config.json"))
    except UserError:
        return False
    return True


def move_images(run: Path, path: str, say: Callable[[str], None], progress: Progress | None = None) -> None:
    """Note that the run's images are at `path` now; UserError where those there are others."""
    before = configuration.load(run / "config.json")
    config = at_place(before, path)
    dataset = recorded(run, open_data(config, progress))
    if dataset is None:
        raise UserError(
            f"--data.path {path} holds other images, or other labels, than {run} was started with: give the place "
            f"where these are now; `rayssl embed {run} --data.path {path}` embeds other images by its encoder"
        )
    config = replace(config, data=replace(config.data, path=dataset.path))
    if config == before:
        return
    with writer_lock(run):
        data = {name: value for name, value in own_data(run).items() if name != "started"}
        update_manifest(run, {"data": {**data, "path": dataset.path, **started_at(run, before, config)}})
        configuration.save(config, run / "config.json")
    say(moved(run, before.data.path, dataset.path))
