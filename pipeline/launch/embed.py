"""Embeddings of a run's own images, of others, and by an encoder that is not trained here; all in this process."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.config import Config
from rayssl.pipeline.data.concluded import lines
from rayssl.pipeline.launch.plan import show_reading, telling, warn_on
from rayssl.pipeline.run.folder import own_data
from rayssl.pipeline.stages.start import prepare

if TYPE_CHECKING:
    from rayssl.pipeline.data import Dataset


def embed_run(run: Path, other: str | None, display: Display, said: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Embeddings of a run's own images, or of the images at `other`, in this process; what was concluded of them.

    Where the run's own are not what they were where it has them, and those at `other` are, they have moved there.
    What is `said` of how images are read (options of `Reading`) is of others than the run's own.
    """
    from rayssl.pipeline.base.reporter import LocalReporter
    from rayssl.pipeline.data.concluded import facts
    from rayssl.pipeline.stages.story import run_worker_stages

    dataset = None if other is None else others_at(run, other, said or {}, display)
    if dataset is None:
        run_worker_stages(run, ["embed", "search"], LocalReporter(display))
        return own_data(run).get("concluded") or {}
    embed_others(run, dataset, said or {}, display)
    return facts(dataset)


def others_at(run: Path, place: str, said: Mapping[str, Any], display: Display) -> "Dataset | None":
    """The images at a place; None where these are the run's own, which may have moved there."""
    from rayssl.pipeline.run.data_paths import is_gone
    from rayssl.pipeline.run.images import open_other
    from rayssl.pipeline.run.own_images import is_intact

    data, own = configuration.load(run / "config.json").data, own_data(run)
    if not said and is_gone(data.path) and have_moved(run, place, display):
        return None
    size, channels = data.image_size, data.channels
    dataset = open_other(data, place, image_size=size, channels=channels, said=said, progress=show_reading(display))
    own_place, same_images = dataset.path == own["path"], dataset.known_as(own["fingerprint"]) is not None
    if said:
        return dataset
    if own_place and is_intact(run):
        return None
    if not own_place and same_images and not is_intact(run) and have_moved(run, place, display):
        return None
    return dataset


def embed_others(run: Path, dataset: "Dataset", said: Mapping[str, Any], display: Display) -> None:
    """Embeddings of images that are not the run's own, under a name that no others have there."""
    from rayssl.pipeline.base.reporter import LocalReporter
    from rayssl.pipeline.search.embeddings import name_in
    from rayssl.pipeline.stages.embed import embed_other_data

    reporter = LocalReporter(display)
    if (name := name_in(run, dataset.name, dataset.path)) != dataset.name:
        reporter.message(f"{run} knows other images as {dataset.name}: those at {dataset.path} are {name} there")
    for line in lines(dataset):
        display({"message": line})
    embed_other_data(run, replace(dataset, name=name), reporter, said)
    query = f"rayssl query {run} IMAGE --data {name}"
    reporter.message(f"{dataset.path} is embedded as {name}: after `rayssl index {run}`, `{query}` searches it")


def move_shown(run: Path, place: str, display: Display) -> None:
    """Note that the run's images are at this place now, and show it; UserError where they are not."""
    from rayssl.pipeline.run.own_images import move_images

    move_images(run, place, lambda text: display({"message": text}), show_reading(display))


def have_moved(run: Path, place: str, display: Display) -> bool:
    """Whether the run's images are at this place now, which is noted then."""
    try:
        move_shown(run, place, display)
    except UserError:
        return False
    return True


def search_anew(run: Path, display: Display, *, asked: bool) -> None:
    """Choose what a run is searched by where that is asked for, or where what was chosen is not there any more."""
    from rayssl.pipeline.base.reporter import LocalReporter
    from rayssl.pipeline.search.described import check_search
    from rayssl.pipeline.search.store import has_search
    from rayssl.pipeline.stages.done import changed_since, is_whole
    from rayssl.pipeline.stages.story import run_worker_stages

    gone = changed_since(run, "search") or (has_search(run) and not is_whole(lambda: check_search(run)))
    if asked or gone:
        run_worker_stages(run, ["search"], LocalReporter(display))


def embed_without_training(config: Config, run: Path, command: str, display: Display) -> None:
    """A run folder for an encoder with weights from elsewhere: its embeddings and an index over them."""
    from rayssl.pipeline.base.reporter import LocalReporter
    from rayssl.pipeline.models.export import export_encoder
    from rayssl.pipeline.run.build import new_encoder
    from rayssl.pipeline.stages.index import run_index
    from rayssl.pipeline.stages.query_networks import keep_query_networks
    from rayssl.pipeline.stages.story import run_worker_stages

    prepared = prepare(config, run, command=command, warn=warn_on(display), progress=show_reading(display))
    for line in lines(prepared.dataset):
        display({"message": line})
    with writer_lock(run):
        encoder = new_encoder(prepared.config)
        told = export_encoder(encoder, run, {"method": None}, data=prepared.dataset.name)
    for line in (*encoder.told(), *([told] if told else [])):
        display({"message": line})
    run_worker_stages(run, ["embed", "search"], LocalReporter(display))
    run_index(run, warn_on(display))
    keep_query_networks(run, telling(display), prepared.dataset)
