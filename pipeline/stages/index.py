"""A FAISS index over the vectors that are searched."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.features.whitening import Whitening, fit_whitening
from rayssl.pipeline.run.folder import data_name, mark_stage, stage_done, stage_key
from rayssl.pipeline.search.described import load_splits, searched_splits
from rayssl.pipeline.search.store import FOLDER, has_search
from rayssl.pipeline.stages.done import at_work, digests, is_whole


def run_index(run: Path, warn: Callable[[str], None] = lambda text: None) -> None:
    """A FAISS index for each data set that the run has embeddings of, over all its images.

    Raises UserError for the run's own data set; of others that cannot be indexed it warns.
    """
    own = data_name(run)
    index_embeddings(run, own, warn)
    for path in listed(run / "embeddings", "*/train.parquet"):
        name = path.parent.name
        try:
            if name != own:
                index_embeddings(run, name, warn)
        except UserError as error:
            warn(f"no index of {name}: {error}")


def index_embeddings(run: Path, name: str, warn: Callable[[str], None]) -> None:
    """The index of one data set."""
    from rayssl.pipeline.search.index import build_index, load_index, measure_recall, recall_warning, save_index

    config = configuration.load(run / "config.json")
    splits = searched_splits(run, name)
    whiten = config.index.whiten and not has_search(run)  # else the vectors are whitened already, or not to be
    vectors = np.concatenate([split.vectors for split in splits.values()])
    ids = np.concatenate([split.ids for split in splits.values()])
    first = next(iter(splits.values()))
    stage_name = "index" if name == data_name(run) else f"index/{name}"
    contents = digests(run, name, FOLDER if has_search(run) else "")
    key = stage_key("index", dataclasses.asdict(config.index), whiten, first.encoder_hash, contents)
    if stage_done(run, stage_name, key) and is_whole(lambda: load_index(run / "index" / name)):
        return
    began = time.perf_counter()
    index = build_index(vectors, ids, config.index.factory, whitening_of(run) if whiten else None)
    recall = measure_recall(index, vectors, ids, k=min(10, len(ids)))
    if told := recall_warning(recall, config.index.factory, len(ids)):
        warn(f"{run / 'index' / name}: {told}")
    with writer_lock(run), at_work(run, stage_name):
        save_index(
            index,
            run / "index" / name,
            encoder_hash=first.encoder_hash,
            data_fingerprint=first.data_fingerprint,
            factory=config.index.factory,
            recall=recall,
            dim=vectors.shape[1],
            count=len(ids),
            whitened=whiten,
            embeddings=contents,
        )
        mark_stage(run, stage_name, key, time.perf_counter() - began, vectors=len(ids), recall=recall)


def whitening_of(run: Path) -> Whitening:
    """Fitted to the images that the run was trained on: all that it is asked of is whitened alike."""
    return fit_whitening(normalise(load_splits(run, data_name(run))["train"].vectors))
