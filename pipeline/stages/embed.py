"""Embeddings of a run's own images, of its baselines, and of other images."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.device import choose_device, resolve_precision
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.reporter import Reporter
from rayssl.pipeline.data import Dataset, Images
from rayssl.pipeline.data.concluded import facts
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.run.folder import read_manifest, update_manifest
from rayssl.pipeline.search.apply import Searcher, searched_by
from rayssl.pipeline.search.described import describe_vectors, embeddings_folder, test_images
from rayssl.pipeline.search.embeddings import save_embeddings
from rayssl.pipeline.search.networks import data_set_networks
from rayssl.pipeline.search.store import FOLDER, has_search
from rayssl.pipeline.stages.done import already_done, at_work, key_of, stage
from rayssl.pipeline.stages.features import counting, embeddings_of, encoders_to_compare
from rayssl.pipeline.stages.search_networks import frozen_names, frozen_networks

SPLITS = ("train", "val", "test")


def run_embed(work: Work) -> None:
    """Embeddings of all images by the encoder and by a randomly initialised one."""
    key = key_of("embed", work.run, work.config, work.dataset)
    if already_done(work, "embed", key):
        return
    with stage(work, "embed", key):
        for prefix, encoder in encoders_to_compare(work):
            save_splits(work, encoder, prefix)
        work.features.clear()
        for given, encoder in frozen_networks(work):
            named = "" if given.name == work.config.encoder.name else f"-{given.label}"
            if named or work.config.encoder.weights is None:  # else it is there, at the run's own image size
                save_frozen(work, encoder.to(work.device), f"baseline/pretrained{named}/")


def save_splits(work: Work, encoder: Encoder, prefix: str) -> None:
    """Embed train (with what is held out of it) and test, and write them on rank 0."""
    folder = embeddings_folder(work.run, work.dataset.name, prefix)
    found = {split: embeddings_of(work, encoder, prefix, split) for split in ("train", "val", "test")}
    if work.is_main:
        write_splits(work, found, folder)


def write_splits(work: Work, found: dict[str, NDArray[np.float32]], folder: Path) -> None:
    """train.parquet, with what is held out of it, and test.parquet."""
    train = [work.dataset.train, work.dataset.val]
    vectors = np.concatenate([found["train"], found["val"]])
    save_embeddings(describe_vectors(work, train, vectors, "train"), folder / "train.parquet")
    save_embeddings(describe_vectors(work, [test_images(work)], found["test"], "test"), folder / "test.parquet")


def save_frozen(work: Work, encoder: Encoder, prefix: str) -> None:
    """The same of a pretrained network at its own image size, which is seen once and then kept by content."""
    compared = frozen_names(encoder)  # by the stage that follows, of train and val: seen in one pass
    found = {split: work.frozen(encoder, split, compared if split != "test" else ()) for split in SPLITS}
    if work.is_main:
        write_splits(work, found, embeddings_folder(work.run, work.dataset.name, prefix))


def embed_other_data(run: Path, dataset: Dataset, reporter: Reporter, said: Mapping[str, Any] | None = None) -> None:
    """Embeddings of another data set by a run's encoder, under embeddings/<its name>/.

    The manifest keeps how its images were read: what was `said` of it, and what was concluded.
    """
    config, device = configuration.load(run / "config.json"), choose_device()
    work = Work(run, reporter, config, dataset, device, resolve_precision(config.train.precision, device))
    encoder = load_encoder(run).to(device)
    if (dataset.channels, dataset.image_size) != (encoder.channels, encoder.image_size):
        raise UserError(
            f"{dataset.path} was read with {dataset.channels} channels of {dataset.image_size} px: the encoder of "
            f"{run} takes {encoder.channels} of {encoder.image_size}"
        )
    with writer_lock(run), at_work(run, f"embed/{dataset.name}"):
        save_splits(work, encoder, "")
        if has_search(run):
            search_other_data(work, encoder, said)
        told = {"path": dataset.path, "reading": dict(said or {}), "concluded": facts(dataset)}
        others = {**(read_manifest(run).get("others") or {}), dataset.name: told}
        update_manifest(run, {"running": None, "others": others})


def search_other_data(work: Work, encoder: Encoder, said: Mapping[str, Any] | None) -> None:
    """The searched vectors of another data set, by the function that was chosen for the run's own."""
    from rayssl.pipeline.run.images import open_other

    dataset = work.dataset
    opened = {encoder.image_size: dataset}

    def read_for(size: int) -> Dataset:
        if size not in opened:
            opened[size] = open_other(
                work.config.data, dataset.path, image_size=size, channels=dataset.channels, said=said
            )
        return opened[size]

    search = searched_by(work.run)
    networks = data_set_networks(work.run, search, dataset.channels, work.device)
    searcher = Searcher(search, networks, dataset.channels)
    folder = embeddings_folder(work.run, dataset.name, FOLDER)
    splits = {"train": [dataset.train, dataset.val], "test": [test_images(work)]}
    for split, images in splits.items():
        wanted = images[0].join(*images[1:])

        def images_at(size: int, ids: NDArray[np.int64] = wanted.ids) -> Images:
            found = read_for(size)
            return by_ids(found.train.join(found.val, found.test), ids)

        vectors = searcher(images_at, counting(work, f"search/{split}"))
        described = describe_vectors(work, images, vectors, split)
        save_embeddings(replace(described, encoder_hash=searcher.hash), folder / f"{split}.parquet")


def by_ids(images: Images, ids: NDArray[np.int64]) -> Images:
    """The images with these ids, in their order."""
    rows = {int(one): row for row, one in enumerate(images.ids)}
    return images.select([rows[int(one)] for one in ids])
