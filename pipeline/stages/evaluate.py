"""Figures of the embeddings, beside those of the baselines."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.files import listed
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.evaluation.baselines import FIGURES, VERSIONS, Pictures, evaluate_baseline
from rayssl.pipeline.evaluation.doubts import doubts_of_figures
from rayssl.pipeline.evaluation.measure import Record, evaluate_embeddings, is_evaluated, write_evaluation
from rayssl.pipeline.evaluation.metrics import interval_of_proportion
from rayssl.pipeline.evaluation.records import read_evaluation
from rayssl.pipeline.run.context import read_at
from rayssl.pipeline.run.folder import data_name, mark_stage, stage_done, stage_key
from rayssl.pipeline.run.own_images import open_own
from rayssl.pipeline.search.described import embeddings_folder, load_splits, load_splits_in, searched_splits
from rayssl.pipeline.search.embeddings import digests
from rayssl.pipeline.search.store import FOLDER, has_search, read_candidates, read_search, search_hash
from rayssl.pipeline.stages.done import at_work, has_records


def run_evaluate(run: Path, dataset: Dataset | None = None) -> None:
    """kNN, k-means, retrieval and health of the embeddings, beside those of the baselines."""
    config, name = configuration.load(run / "config.json"), data_name(run)
    splits = load_splits(run, name)
    first = splits["train"]
    networks = [path.parent for path in listed(embeddings_folder(run, name, "baseline"), "*/train.parquet")]
    own = [dataclasses.asdict(config.evaluate), VERSIONS, FIGURES]
    contents = [digests(run, name, part) for part in ("", FOLDER, *(f"baseline/{one.name}" for one in networks))]
    key = stage_key("evaluate", own, first.encoder_hash, search_hash(run), contents)
    if stage_done(run, "evaluate", key) and has_records(run, "health/"):
        return
    began = time.perf_counter()
    settings = dataclasses.asdict(config.evaluate)
    settings.update(seed=config.train.seed, checkpoint=first.encoder_hash[:12], all_classes=config.data.classes is None)
    records = evaluate_embeddings(splits["train"], splits["test"], **settings)
    for folder in networks:
        found = load_splits_in(folder)
        if found["train"].encoder_hash == first.encoder_hash:  # else left from before the run was trained on
            prefix = f"baseline/{folder.name}/"
            records += evaluate_embeddings(found["train"], found["test"], **settings, prefix=prefix)
    images = dataset if dataset is not None else open_own(run, config)
    pictures = Pictures(images, functools.cache(lambda size: read_at(size, config, images)))
    for plain in VERSIONS:
        records += evaluate_baseline(plain, pictures, splits, **settings)
    records += search_records(run, name, settings)
    with writer_lock(run), at_work(run, "evaluate"):
        write_evaluation(run, records, keep=lambda record: not is_evaluated(record, first.data))
        doubts = doubts_of_figures(read_evaluation(run)["flat"]) if config.method is not None else []
        mark_stage(run, "evaluate", key, time.perf_counter() - began, warnings=doubts)


def search_records(run: Path, name: str, settings: dict[str, Any]) -> list[Record]:
    """What the searched vectors find among test images, and what every candidate found among validation images."""
    if not has_search(run):
        return []
    splits, search = searched_splits(run, name), read_search(run)
    found = evaluate_embeddings(splits["train"], splits["test"], **settings, prefix="search/")
    kept = ("search/knn/", "search/retrieval/", "search/cluster/")
    records = [record for record in found if record["metric"].startswith(kept)]
    for one in read_candidates(run):
        n = len(one.correct)
        interval = list(interval_of_proportion(int(one.correct.sum()), n)) if n else None
        like: Record = {
            "metric": f"choice/{one.name}", "value": one.score, "protocol": search.facts["criterion"], "data": name,
            "split": "val", "checkpoint": settings["checkpoint"], "seed": settings["seed"], "n": n or search.facts["n"],
            "interval": interval,
        }  # fmt: skip
        records.append(like)
    return records
