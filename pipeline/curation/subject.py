"""A data set of a run as it is looked at: its searched vectors, its images in the same order, and their graph."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.lease import settled, writer_lock
from rayssl.pipeline.base.seals import digest
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset, Images
from rayssl.pipeline.run.data_paths import check_there
from rayssl.pipeline.run.folder import data_name, read_manifest, recorded
from rayssl.pipeline.run.images import open_data, open_other
from rayssl.pipeline.search.build import living_added
from rayssl.pipeline.search.described import load_splits, searched_splits
from rayssl.pipeline.search.embeddings import Embeddings, files_of
from rayssl.pipeline.search.generations import following, has_generations, read_generation
from rayssl.pipeline.search.graph import FILE, LAST_FILE, Graph, load_graph, make_graph, save_graph
from rayssl.pipeline.search.items import splits_of
from rayssl.pipeline.search.query import check_data_name
from rayssl.pipeline.search.store import FOLDER, has_search

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """N images of a data set, in the order of its embeddings."""

    name: str  # of the data set
    ids: Ints  # (N,)
    paths: list[str]
    labels: Ints  # (N,), −1 for none
    class_names: tuple[str, ...] | None
    splits: NDArray[np.str_]  # (N,) train, val or test
    vectors: Floats  # (N, D), unit length
    graph: Graph
    images: Images
    image_size: int

    def __len__(self) -> int:
        return len(self.ids)

    def label(self, row: int) -> str | None:
        """The name of an image's class, else its number; None: it has none."""
        return self.class_name(int(self.labels[row]))

    def class_name(self, label: int) -> str | None:
        """The name of a class, else its number; None for −1."""
        if label < 0:
            return None
        return str(label) if self.class_names is None else self.class_names[label]

    def square(self, rows: Ints, size: int) -> NDArray[np.uint8]:
        """(B, size, size, C) of some images."""
        return self.images.square(rows, size)


def open_subject(run: Path, data: str | None, progress: Progress, say: Say, *, last: bool = False) -> Subject:
    """The run's own data set, or that of a name; its graph is made where there is none of these embeddings.

    `last`: seen by the last stage of the encoder, whatever the run is searched by.

    Raises UserError where there are no embeddings, or the images are not those that were embedded.
    """
    name = data or data_name(run)
    if name != data_name(run):
        check_data_name(run, name)
    embeddings = list(settled(run, lambda: (load_splits if last else searched_splits)(run, name)).values())
    dataset = _dataset_of(run, name, embeddings[0].data_path, progress, say)
    every = np.concatenate([split.ids for split in embeddings])
    rows = np.flatnonzero(~np.isin(every, removed_since(run / "index" / name, every, say)))
    ids, vectors = every[rows], np.concatenate([split.vectors for split in embeddings])[rows]
    paths = [path for split in embeddings for path in split.paths]
    return Subject(
        name=name,
        ids=ids,
        paths=[paths[row] for row in rows],
        labels=np.concatenate([_labels_of(split) for split in embeddings])[rows],
        class_names=embeddings[0].class_names,
        splits=np.concatenate([_splits_of(split, run) for split in embeddings])[rows],
        vectors=normalise(vectors),
        graph=graph_of(run, name, vectors, ids, say, last=last),
        images=_in_order(dataset, ids, run, name),
        image_size=dataset.image_size,
    )


def removed_since(index: Path, ids: Ints, say: Say) -> Ints:
    """The images that went from an index since they were embedded; what came and went since is told."""
    if not has_generations(index):
        return ids[:0]
    try:
        now = following(index, lambda name: read_generation(index, name))
    except UserError:  # a damaged index is no matter of the images
        return ids[:0]
    came, gone = len(living_added(now)), ids[np.isin(ids, now.removed)]
    if came or len(gone):
        say(f"left out, because they came to the index or went from it: {came:,} and {len(gone):,}")
    return gone


def graph_of(run: Path, name: str, vectors: Floats, ids: Ints, say: Say, *, last: bool = False) -> Graph:
    """The graph that is kept with the index where it is of these embeddings, else a new one, which is kept."""
    chosen = has_search(run) and not last
    path = run / "index" / name / (LAST_FILE if has_search(run) and last else FILE)
    folder = run / "embeddings" / name / (FOLDER if chosen else "")
    made_from = {file.relative_to(run).as_posix(): digest(file) for file in files_of(folder)}
    try:
        graph, facts = load_graph(path)
        if facts["embeddings"] == made_from and np.array_equal(graph.ids, ids):
            return graph
    except UserError:
        pass  # missing or damaged: it is made again
    say(f"comparing {len(ids):,} images with each other")
    graph = make_graph(vectors, ids)
    try:
        with writer_lock(run):
            save_graph(graph, path, made_from)
    except (OSError, UserError) as error:  # of somebody else, or at work
        say(f"the graph of neighbours is not kept: {error}")
    return graph


def _dataset_of(run: Path, name: str, path: str, progress: Progress, say: Say) -> Dataset:
    config = configuration.load(run / "config.json")
    if name == data_name(run):
        return _own(run, config, progress, say)
    said = (read_manifest(run).get("others") or {}).get(name, {}).get("reading")
    size, channels = config.data.image_size, config.data.channels
    return open_other(config.data, path, image_size=size, channels=channels, said=said, progress=progress)


def _own(run: Path, config: Config, progress: Progress, say: Say) -> Dataset:
    """The run's own images as they are now, changed or not: they are found by their ids."""
    check_there(run, config)
    dataset = open_data(config, progress)
    known = recorded(run, dataset)
    if known is None:
        say(f"{dataset.path} has changed since {run} was started: the images that were embedded are looked at")
    return known or dataset


def _in_order(dataset: Dataset, ids: Ints, run: Path, name: str) -> Images:
    """The images with these ids."""
    others = [images for images in (dataset.val, dataset.test) if images is not None]
    joined = dataset.train.join(*others)
    row_of = {one: row for row, one in enumerate(joined.ids.tolist())}
    rows = np.array([row_of.get(one, -1) for one in ids.tolist()], dtype=np.int64)
    if (rows < 0).any():
        raise UserError(
            f"{int((rows < 0).sum()):,} of {len(ids):,} embedded images of {name} are not in {dataset.path} any more: "
            f"bring them back, `rayssl sync {run}`, or embed what is there: `rayssl embed {run} --data.path "
            f"{dataset.path}`"
        )
    return joined.select(rows)


def _splits_of(split: Embeddings, run: Path) -> NDArray[np.str_]:
    return np.array(splits_of({"split": split.split, "data": split.data}, len(split.ids), run), dtype=np.str_)


def _labels_of(split: Embeddings) -> Ints:
    return split.labels if split.labels is not None else np.full(len(split.ids), -1, dtype=np.int64)
