"""A FAISS index over the vectors that are searched."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.config import Config
from rayssl.pipeline.run.folder import data_name, mark_stage, stage_done, stage_key
from rayssl.pipeline.search.described import searched_splits
from rayssl.pipeline.search.embeddings import digests
from rayssl.pipeline.search.store import FOLDER, has_search
from rayssl.pipeline.stages.done import at_work, is_whole


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
    """The index of one data set; what was added to it and removed from it stays so."""
    from rayssl.pipeline.search.build import build, write
    from rayssl.pipeline.search.generations import drop_others, last_whole, may_have_lost
    from rayssl.pipeline.search.index import load_live

    config, folder = configuration.load(run / "config.json"), run / "index" / name
    stage_name = "index" if name == data_name(run) else f"index/{name}"
    key = index_key(run, name, config)
    began = time.perf_counter()
    with writer_lock(run):
        whole = is_whole(lambda: load_live(folder))
        found = last_whole(folder)
        if whole and found is not None and found.manifest.get("key") == key:
            drop_others(folder, [found])
            if stage_done(run, stage_name, key):
                return
        if not whole and found is None and may_have_lost(folder):
            warn(f"{folder} is damaged: what was added to it and removed from it since it was built is lost")
        broken = not whole and (found is None or not found.has_own)
        with at_work(run, stage_name):
            if not whole or found is None or found.manifest.get("key") != key:
                found = write(folder, build(run, name, config.index, found, key, warn), broken=broken)
            facts = {"vectors": found.manifest["count"], "recall": found.manifest["recall"]}
            mark_stage(run, stage_name, key, time.perf_counter() - began, **facts)


def index_key(run: Path, name: str, config: Config) -> str:
    """A hash of all that the base of an index depends on."""
    made_by = next(iter(searched_splits(run, name).values())).encoder_hash
    whiten = config.index.whiten and not has_search(run)  # else the vectors are whitened already, or not to be
    contents = digests(run, name, FOLDER if has_search(run) else "")
    return stage_key("index", dataclasses.asdict(config.index), whiten, made_by, contents)
