"""The base of an index: gathered from embeddings and from what was added since, built, written as a new generation.

Shapes: N images, D numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.config import IndexConfig
from rayssl.pipeline.features.whitening import Whitening, fit_whitening
from rayssl.pipeline.run.folder import data_name
from rayssl.pipeline.search.described import load_splits, searched_splits
from rayssl.pipeline.search.effort import FEWEST, build_measured
from rayssl.pipeline.search.embeddings import digests, vectors_in
from rayssl.pipeline.search.factory import auto_factory, memory_of
from rayssl.pipeline.search.generations import (
    ADDED,
    COLUMNS,
    IDS,
    ITEMS,
    REMOVED,
    Generation,
    drop,
    drop_older_form,
    drop_others,
    name_current,
    next_name,
    read_generation,
    with_vectors,
    write_parts,
)
from rayssl.pipeline.search.index import build_index, measure_recall, recall_warning, save_index
from rayssl.pipeline.search.items import SCHEMA, ints, load_items
from rayssl.pipeline.search.store import FOLDER, has_search

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """What a base is built of."""

    ids: Ints  # (N,)
    vectors: Floats  # (N, D)
    items: pa.Table  # N rows, ascending by id
    added: pa.Table  # id and vector of those that came after the run
    removed: Ints  # ids that have gone
    facts: dict[str, Any]  # for the manifest
    whitened: bool  # by the index
    columns: pa.Table | None = None  # what else is known of images


@dataclass(frozen=True)
class Built:
    """A base that is not written yet."""

    material: Material
    index: faiss.Index
    factory: str
    recall: float


def gather(run: Path, name: str, before: Generation | None, warn: Warn) -> Material:
    """The embeddings of a data set, without what was removed from its index and with what was added to it.

    Additions of another encoder are left behind, which is told.
    """
    config = configuration.load(run / "config.json")
    part = FOLDER if has_search(run) else ""
    splits, items = searched_splits(run, name), load_items(run / "embeddings" / name / part, run, whole=True)
    ids = np.concatenate([split.ids for split in splits.values()])
    vectors = np.concatenate([split.vectors for split in splits.values()])
    first = next(iter(splits.values()))
    facts = {
        "encoder_hash": first.encoder_hash,
        "data_fingerprint": first.data_fingerprint,
        "embeddings": digests(run, name, part),
        "class_names": None if items.class_names is None else list(items.class_names),
        "data_path": items.data_path,
    }
    whitened = config.index.whiten and not has_search(run)  # else the vectors are whitened already, or not to be
    table, added, removed = items.table, with_vectors(IDS, vectors.shape[1]).empty_table(), np.zeros(0, dtype=np.int64)
    if before is not None and before.manifest["data_fingerprint"] == facts["data_fingerprint"]:
        removed, kept = before.removed, ~np.isin(ids, before.removed)
        if not kept.all():  # else they would be copied for nothing
            ids, vectors = ids[kept], vectors[kept]
        added = living_added(before) if before.manifest["encoder_hash"] == first.encoder_hash else added
        table = _as_known(table, before, np.concatenate([ids, ints(added["id"])]))
        facts["place"] = before.manifest.get("place")
        if len(added):
            ids = np.concatenate([ids, ints(added["id"])])
            vectors = np.concatenate([vectors, vectors_in(added["vector"], run)])
    if before is not None:
        facts["waiting"] = _waiting(before, added)
        if facts["waiting"]:
            warn(
                f"{run / 'index' / name}: what was added has vectors of another encoder: `rayssl sync {run}` embeds it"
            )
    columns = None if before is None else before.columns
    return Material(ids, vectors, sorted_by_id(table), sorted_by_id(added), removed, facts, whitened, columns)


def _waiting(before: Generation, added: pa.Table) -> list[str]:
    """What had been added and is not in the index any more, because it was embedded otherwise."""
    items = before.living().table
    lost = items.filter(pa.array(~np.isin(ints(items["id"]), ints(added["id"]))))["source"]
    return sorted({*before.manifest.get("waiting", []), *(one for one in lost.unique().to_pylist() if one is not None)})


def living_added(generation: Generation) -> pa.Table:
    """Id and vector of all that came after the run and has not gone."""
    table = pa.concat_tables([generation.added, generation.additions.select(["id", "vector"])])
    return table.filter(pa.array(~np.isin(ints(table["id"]), generation.removed)))


def sorted_by_id(table: pa.Table) -> pa.Table:
    """The rows, ascending by id."""
    return table.take(pa.array(np.argsort(ints(table["id"]), kind="stable")))


def _as_known(table: pa.Table, before: Generation, ids: Ints) -> pa.Table:
    """What is known of these ids: by the generation before, where images may have moved, else by the embeddings."""
    known = before.living().table
    known = known.filter(pa.array(np.isin(ints(known["id"]), ids)))
    new = np.isin(ints(table["id"]), ids) & ~np.isin(ints(table["id"]), ints(known["id"]))
    return pa.concat_tables([known.select(SCHEMA.names), table.filter(pa.array(new))])


def build(run: Path, name: str, settings: IndexConfig, before: Generation | None, key: str, warn: Warn) -> Built:
    """Build the index of a data set, and measure its recall; `key`: a hash of what it depends on."""
    material = gather(run, name, before, warn)
    material.facts["key"] = key
    factory = settings.factory
    if factory == "auto":
        factory = auto_factory(len(material.ids), material.vectors.shape[1], memory_of(settings.memory))
    whitening = whitening_of(run) if material.whitened else None
    if factory == "Flat" or whitening is not None or len(material.ids) < FEWEST:
        index = build_index(material.vectors, material.ids, factory, whitening)
        recall = measure_recall(index, material.vectors, material.ids, k=min(10, len(material.ids)))
    else:
        index, recall = build_measured(material.vectors, material.ids, factory, settings.recall)
    if told := recall_warning(recall, factory, len(material.ids)):
        warn(f"{run / 'index' / name}: {told}")
    return Built(material, index, settings.factory, recall)


def write(folder: Path, built: Built, *, broken: bool = False) -> Generation:
    """A base becomes the current generation, and all others go.

    `broken`: in the place of one that is not whole, and has nothing that is nowhere else.
    """
    material, name = built.material, next_name(folder, broken=broken)
    drop(folder / name)
    removed = pa.table({"id": pa.array(np.sort(material.removed))}, schema=IDS)
    tables = {ITEMS: material.items, ADDED: material.added, REMOVED: removed}
    if material.columns is not None:
        tables[COLUMNS] = material.columns
    parts = write_parts(folder, name, tables)
    save_index(
        built.index,
        folder / name,
        factory=built.factory,
        recall=built.recall,
        dim=material.vectors.shape[1],
        count=len(material.ids),
        whitened=material.whitened,
        parts=parts,
        **material.facts,
    )
    name_current(folder, name)
    found = read_generation(folder, name)
    drop_others(folder, [found])
    drop_older_form(folder)
    return found


def whitening_of(run: Path) -> Whitening:
    """Fitted to the images that the run was trained on: all that it is asked of is whitened alike."""
    return fit_whitening(normalise(load_splits(run, data_name(run))["train"].vectors))
