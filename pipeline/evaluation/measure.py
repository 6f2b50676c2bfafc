"""Metrics of embeddings as records that say how they were measured, and the file that keeps them."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.vectors import kmeans, knn_classify, normalise
from rayssl.pipeline.evaluation import metrics
from rayssl.pipeline.evaluation.records import flat_of, read_evaluation, sealed
from rayssl.pipeline.features.whitening import fit_whitening
from rayssl.pipeline.run.folder import read_manifest
from rayssl.pipeline.search.embeddings import Embeddings

SCHEMA = 1
# Metrics that are recorded here, and those of the candidates for the search.
EVALUATED = re.compile(r"choice/|(baseline/[^/]+/|search/)?(knn|knn-whitened|cluster|retrieval|health)/")

RANKME_SAMPLES = 25_600  # where RankMe has converged (Garrido et al., ICML 2023)
UNIFORMITY_SAMPLES = 5_000  # 12.5 million pairs
RAW_PIXEL_VALUES = 1024  # 32 × 32 grey, 18 × 18 in colour: more cost minutes and change little

Interval = tuple[float, float]


class Record(TypedDict):
    """One figure and all that is needed to understand it."""

    metric: str  # "knn/top1"; of a baseline "baseline/raw-pixels/knn/top1"
    value: float
    protocol: str  # a plain sentence
    data: str  # the data set's name
    split: str  # that the figure speaks of
    checkpoint: str  # "last", or what else gave the embeddings
    seed: int
    n: int  # images the figure is a mean over
    interval: list[float] | None  # [low, high], 95 %
    encoder: NotRequired[str | None]  # what it was computed from, and a seal: see rayssl.pipeline.evaluation.records
    embeddings: NotRequired[dict[str, str] | None]
    seal: NotRequired[str]


class _Images(Protocol):
    """What is needed of rayssl.pipeline.data's Images."""

    ids: NDArray[np.int64]
    paths: list[str]
    labels: NDArray[np.int64] | None

    def square(self, indices: NDArray[np.int64], size: int) -> NDArray[np.uint8]: ...


def evaluate_embeddings(
    train: Embeddings,
    test: Embeddings,
    *,
    k: int,
    temperature: float,
    clusters: int | None,
    seed: int,
    prefix: str = "",
    checkpoint: str = "last",
    all_classes: bool = True,
) -> list[Record]:
    """Records of knn/top1, knn-whitened/top1, cluster/acc|nmi|ari|…, retrieval/… (with labels) and health/… (always).

    `clusters` None: as many as classes. `prefix`, such as "baseline/raw-pixels/", goes before every metric's name.
    What a set is too small for is left out, and kNN where the training images are not of `all_classes`. Raises
    UserError for embeddings that are not finite, and for more `clusters` than labelled images.
    """
    _check_finite(train, test)
    records = _health_records(train, seed)
    train, test = _labelled(train), _labelled(test)
    if len(train.ids) and len(test.ids):
        if clusters is not None and clusters > len(test.ids):
            raise UserError(f"--evaluate.clusters is {clusters}: {test.split} has {len(test.ids)} labelled images")
        records += _knn_records(train, test, k, temperature) if all_classes else []
        records += _cluster_records(test, clusters or _n_classes(train, test), seed)
        records += _retrieval_records(test)
    return [
        {**record, "metric": prefix + record["metric"], "checkpoint": checkpoint, "seed": seed} for record in records
    ]


def raw_pixel_embeddings(
    images: _Images,
    split: str,
    *,
    image_size: int,
    channels: int,
    class_names: tuple[str, ...] | None = None,
    data_fingerprint: str = "",
    data: str = "",
    data_path: str = "",
) -> Embeddings:
    """The baseline that needs no encoder: pixels in [0, 1], flattened, of images shrunk to at most 1,024 values."""
    side = min(image_size, math.isqrt(RAW_PIXEL_VALUES // channels))
    n = len(images.ids)
    pixels = [images.square(np.arange(i, min(i + 1024, n)), side) for i in range(0, max(n, 1), 1024)]
    flat = np.concatenate(
        [part.reshape(len(part), math.prod(part.shape[1:])).astype(np.float32) / 255 for part in pixels]
    )
    return Embeddings(
        ids=images.ids,
        paths=list(images.paths),
        labels=images.labels,
        vectors=flat,
        class_names=class_names,
        encoder_hash="raw-pixels",
        data_fingerprint=data_fingerprint,
        split=split,
        data=data,
        data_path=data_path,
    )


def write_evaluation(run: Path, records: list[Record], keep: Callable[[Record], bool] = lambda record: True) -> None:
    """Merge records into <run>/evaluation.json, whole or not at all.

    A record takes the place of one of the same metric, data and split; of the others those stay that `keep` is true
    of. Protocols say where images that are there twice flatter a figure. The flat view shows for each metric the
    record of the test split if there is one, and of several data sets the one written last.
    """
    path = run / "evaluation.json"
    before: list[Record] = read_evaluation(run)["records"] if os.path.lexists(path) else []
    merged = {_key(record): record for record in before if keep(record)}
    for record in flattered(records, run):
        merged.pop(_key(record), None)  # so that the new one comes last
        merged[_key(record)] = cast(Record, sealed(record, run))
    write_json(path, {"schema": SCHEMA, "records": list(merged.values()), "flat": flat_of(merged.values())})


def flattered(records: list[Record], run: Path) -> list[Record]:
    """Records of a run whose protocols say how many images are there twice, where that flatters them."""
    data = read_manifest(run).get("data", {}) if (run / "manifest.json").exists() else {}
    found = data.get("duplicates") or {}
    told = [_told_of(record, found) if record["data"] == data.get("name") else "" for record in records]
    return [
        {**record, "protocol": f"{record['protocol']}; {text}"} if text and text not in record["protocol"] else record
        for record, text in zip(records, told)
    ]


def _told_of(record: Record, found: dict[str, int]) -> str:
    """What flatters a figure, from the manifest's counts of images that are there twice; empty: nothing does."""
    metric, split = record["metric"], record["split"]
    if split == "val" and found.get("val_in_train"):
        return f"flattered: {found['val_in_train']:,} of {found['val']:,} validation images are also in training"
    if split != "test" or re.search(r"(^|/)(cluster|health)/", metric):
        return ""
    if re.search(r"(^|/)retrieval/", metric):
        return f"flattered: {found['in_test']:,} test images are there twice" if found.get("in_test") else ""
    if not found.get("test_in_train"):
        return ""
    return f"flattered: {found['test_in_train']:,} of {found['test']:,} test images are also in training"


def drop_stale_records(run: Path, checkpoint: str) -> None:
    """Take out the figures of another checkpoint: the encoder has been trained on since."""
    if (run / "evaluation.json").exists():
        write_evaluation(run, [], keep=lambda record: record["checkpoint"] == checkpoint)


def is_evaluated(record: Record, data: str) -> bool:
    """Whether a record is one of `evaluate_embeddings` of this data set."""
    return record["data"] == data and EVALUATED.match(record["metric"]) is not None


def _key(record: Record) -> tuple[str, str, str]:
    return record["metric"], record["data"], record["split"]


def _check_finite(*sets: Embeddings) -> None:
    for embeddings in sets:
        if not np.isfinite(embeddings.vectors).all():
            raise UserError(
                f"the embeddings of the {embeddings.split} split hold NaN or infinity: the training diverged; "
                "train again with a lower --train.learning-rate"
            )


def _labelled(embeddings: Embeddings) -> Embeddings:
    """The rows that have a label."""
    known = np.zeros(0, dtype=np.int64) if embeddings.labels is None else np.flatnonzero(embeddings.labels >= 0)
    return replace(
        embeddings,
        ids=embeddings.ids[known],
        paths=[embeddings.paths[row] for row in known.tolist()],
        labels=None if embeddings.labels is None else embeddings.labels[known],
        vectors=embeddings.vectors[known],
    )


def _n_classes(*sets: Embeddings) -> int:
    return 1 + max(int(e.labels.max()) for e in sets if e.labels is not None and len(e.labels))


def _record(
    embeddings: Embeddings, metric: str, value: float, protocol: str, n: int, interval: Interval | None
) -> Record:
    return {
        "metric": metric,
        "value": value,
        "protocol": protocol,
        "data": embeddings.data or embeddings.data_fingerprint,
        "split": embeddings.split,
        "checkpoint": "",
        "seed": 0,
        "n": n,
        "interval": None if interval is None else list(interval),
    }


def _knn_records(train: Embeddings, test: Embeddings, k: int, temperature: float) -> list[Record]:
    """Of the features, and of whitened ones."""
    points = normalise(train.vectors)
    whiten = fit_whitening(points)
    known = replace(train, vectors=whiten(points))
    asked = replace(test, vectors=whiten(normalise(test.vectors)))
    what = " of L2-normalised embeddings, whitened by those of the former"
    return [
        _knn_record("knn/top1", train, test, k, temperature),
        _knn_record("knn-whitened/top1", known, asked, k, temperature, what),
    ]


def _knn_record(metric: str, train: Embeddings, test: Embeddings, k: int, temperature: float, what: str = "") -> Record:
    assert train.labels is not None
    assert test.labels is not None
    used = min(k, len(train.vectors))
    predicted = knn_classify(train.vectors, train.labels, test.vectors, used, temperature, _n_classes(train, test))
    n = len(test.labels)
    hits = int((predicted == test.labels).sum())
    protocol = (
        f"k nearest neighbours by cosine{what}, k = {used}, weights exp(s/T) with T = {temperature:g}; "
        f"votes of {len(train.vectors)} images of {train.split} for {n} of {test.split}; Wilson interval"
    )
    return _record(test, metric, hits / n, protocol, n, metrics.interval_of_proportion(hits, n))


def _cluster_records(test: Embeddings, clusters: int, seed: int) -> list[Record]:
    assert test.labels is not None
    n = len(test.labels)
    if n < clusters:
        return []
    assignment = kmeans(test.vectors, clusters, seed)
    intervals = metrics.cluster_intervals(assignment, test.labels, seed)
    protocol = (
        f"k-means with {clusters} clusters on the L2-normalised embeddings of {n} images of {test.split}, best of 10 "
        "starts; acc by Hungarian matching; interval by bootstrap over images, the clustering held fixed"
    )
    agreement = metrics.cluster_agreement(assignment, test.labels)
    records = [_record(test, f"cluster/{key}", value, protocol, n, intervals[key]) for key, value in agreement.items()]
    without, _, _ = protocol.partition("; acc by")
    ami = metrics.adjusted_mutual_information(assignment, test.labels)
    records.append(_record(test, "cluster/ami", ami, f"{without}; without an interval", n, None))
    spread = metrics.silhouette(test.vectors, assignment, seed)
    told = f"{without}; by cosine distance, over at most 2,000 images, without an interval"
    return records if spread is None else [*records, _record(test, "cluster/silhouette", spread, told, n, None)]


def _retrieval_records(test: Embeddings) -> list[Record]:
    assert test.labels is not None
    if np.bincount(test.labels).max() < 2:
        return []
    figures = metrics.retrieval_per_query(test.vectors, test.labels)
    n = len(figures["map@r"])
    protocol = (
        f"each of {n} images of {test.split} searches the other {len(test.labels) - 1} by cosine, itself left out; "
        "definitions of pytorch-metric-learning; recall@k: one of the k nearest is of its class; mrr: 1 / the rank of "
        "the first one of its class"
    )
    records = []
    for name, values in figures.items():
        share = metrics.interval_of_proportion(int(values.sum()), n)
        mean = metrics.interval_of_mean(values, least=0.0, most=1.0)
        interval = mean if name in ("map@r", "r-precision", "mrr") else share
        records.append(_record(test, f"retrieval/{name}", float(values.mean()), protocol, n, interval))
    return records


def _health_records(train: Embeddings, seed: int) -> list[Record]:
    n = len(train.vectors)
    if n < 2:
        return []
    sample = np.random.default_rng(seed).permutation(n)
    wide = train.vectors.shape[1] > 1024  # such as HOG, whose singular values are slow to find and of little interest
    vectors, few = (
        train.vectors[sample[: RANKME_SAMPLES // 5 if wide else RANKME_SAMPLES]],
        train.vectors[sample[:UNIFORMITY_SAMPLES]],
    )
    short = "" if len(vectors) == RANKME_SAMPLES else f", fewer than the {RANKME_SAMPLES} it needs to settle"
    dim = vectors.shape[1]
    where = f"images of {train.split}"
    rank = f"RankMe, the effective rank of the embeddings, 1 … {min(vectors.shape)}, of {len(vectors)} {where}{short}"
    spread = f"uniformity (Wang and Isola, t = 2; lower is better) over all pairs of {len(few)} {where}"
    std = f"mean std per dimension of the L2-normalised embeddings × √{dim} over {len(vectors)} {where}; 0: collapsed"
    return [
        _record(train, "health/rankme", metrics.rankme(vectors), rank, len(vectors), None),
        _record(train, "health/uniformity", metrics.uniformity(few), spread, len(few), None),
        _record(train, "health/std", metrics.code_std(vectors), std, len(vectors), None),
    ]
