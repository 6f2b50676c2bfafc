"""Images in clusters: k-means, HDBSCAN, DBSCAN or mean shift over the searched vectors.

Shapes: N images, D numbers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import delete, listed, replacing, write_json
from rayssl.pipeline.base.seals import forget, note
from rayssl.pipeline.base.vectors import kmeans, normalise
from rayssl.pipeline.curation.sheets import MOST_IN_LINE, Line, save_sheet
from rayssl.pipeline.curation.subject import Ints, Subject
from rayssl.pipeline.evaluation.metrics import cluster_agreement

CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100)  # numbers of clusters that auto tries
JUDGED = 2_000  # images that a number of clusters is judged by
DENSITY_DIM = 16  # numbers that density is looked at in: in more, all distances become alike
LEAST_MEMBERS = 5  # of a cluster by density
MOST_IMAGES = {"hdbscan": 50_000, "dbscan": 200_000, "meanshift": 20_000}  # images; beyond that they take hours
MOST_SHEETS = 100  # of the largest clusters
MOST_ON_PAGE = 60  # images of a cluster's own sheet
SEED = 0

Floats = NDArray[np.float32]


def choose_number(vectors: Floats) -> int:
    """The number of k-means clusters with the largest mean silhouette (Rousseeuw, 1987), of a sample of 2,000."""
    from sklearn.metrics import silhouette_score

    rows = np.sort(np.random.default_rng(SEED).permutation(len(vectors))[:JUDGED])
    some = normalise(vectors[rows])
    tried = [k for k in CANDIDATES if k <= len(some) // 3]
    if not tried:
        raise UserError(f"{len(vectors)} images are too few to choose a number of clusters: give --clusters N")
    scores = {k: _silhouette(some, kmeans(some, k, SEED, restarts=3), silhouette_score) for k in tried}
    return max(scores, key=lambda k: scores[k])


def _silhouette(points: Floats, assignment: Ints, score: Callable[..., float]) -> float:
    return float(score(points, assignment)) if len(np.unique(assignment)) > 1 else -1.0


def by_density(method: str, vectors: Floats) -> Ints:
    """(N,) clusters by scikit-learn's HDBSCAN, DBSCAN or mean shift over the first 16 principal components; −1: none.

    DBSCAN's radius is where the sorted distances to the 5th neighbour bend most (Ester et al., KDD 1996, section 4.2);
    mean shift's bandwidth is scikit-learn's estimate. Raises UserError for more images than the method can take.
    """
    from sklearn.cluster import DBSCAN, HDBSCAN, MeanShift, estimate_bandwidth
    from sklearn.decomposition import PCA

    n = len(vectors)
    if n > MOST_IMAGES[method]:
        raise UserError(
            f"--method {method} with {n:,} images takes hours (at most {MOST_IMAGES[method]:,}): use kmeans"
        )
    points = PCA(min(DENSITY_DIM, *vectors.shape), random_state=SEED).fit_transform(vectors)
    if method == "hdbscan":
        fitted = HDBSCAN(min_cluster_size=min(LEAST_MEMBERS, n), copy=True).fit(points)
    elif method == "dbscan":
        fitted = DBSCAN(eps=_bend(points), min_samples=LEAST_MEMBERS).fit(points)
    else:
        width = estimate_bandwidth(points, quantile=min(1.0, max(0.05, 20 / n)), n_samples=1000, random_state=SEED)
        fitted = MeanShift(bandwidth=max(float(width), 1e-3), bin_seeding=True, cluster_all=False).fit(points)
    return np.asarray(fitted.labels_, dtype=np.int64)


def _bend(points: NDArray[Any]) -> float:
    """Where the sorted distances to the 5th neighbour are farthest below the straight line between their ends."""
    from sklearn.neighbors import NearestNeighbors

    k = min(LEAST_MEMBERS, len(points) - 1)
    distances = np.sort(NearestNeighbors(n_neighbors=k).fit(points).kneighbors()[0][:, -1])
    line = np.linspace(distances[0], distances[-1], len(distances))
    return max(float(distances[np.argmax(line - distances)]), 1e-6)


def centrality(vectors: Floats, assignment: Ints) -> NDArray[np.float64]:
    """(N,) cosine of each image with the mean of its cluster; NaN in none."""
    found = np.full(len(vectors), np.nan)
    for number in np.unique(assignment[assignment >= 0]):
        rows = np.flatnonzero(assignment == number)
        found[rows] = vectors[rows] @ normalise(vectors[rows].mean(axis=0, keepdims=True))[0]
    return found


def by_size(assignment: Ints) -> Ints:
    """(N,) the same clusters, numbered from the largest, 0, on; −1 stays."""
    numbers, counts = np.unique(assignment[assignment >= 0], return_counts=True)
    order = numbers[np.argsort(-counts, kind="stable")]
    place = np.full(int(numbers.max(initial=-1)) + 2, -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    return place[assignment]


def purity(assignment: Ints, labels: Ints) -> float:
    """Share of images whose class is the most frequent one of their cluster (Manning et al., 2008, section 16.3)."""
    hits = sum(int(np.bincount(labels[assignment == number]).max()) for number in np.unique(assignment))
    return hits / len(labels)


def find_clusters(subject: Subject, method: str, number: int | None, out: Path) -> dict[str, Any]:
    """Write clusters.parquet, clusters.png, a sheet a cluster in sheets/, and clusters.json into `out`.

    `number` None: chosen by the silhouette, for k-means. Clusters are numbered from the largest on; images that
    density leaves outside are in none.
    """
    if method == "kmeans":
        number = number if number is not None else choose_number(subject.vectors)
        assignment = by_size(kmeans(subject.vectors, number, SEED))
    else:
        assignment = by_size(by_density(method, subject.vectors))
    central = centrality(subject.vectors, assignment)
    clusters = [_told(subject, assignment, central, one) for one in range(int(assignment.max(initial=-1)) + 1)]
    known = (assignment >= 0) & (subject.labels >= 0)
    figures: dict[str, Any] = {
        "images": len(subject),
        "method": method,
        "clusters": len(clusters),
        "in_none": int((assignment < 0).sum()),
    }
    if known.any():
        agreement = cluster_agreement(assignment[known], subject.labels[known])
        figures |= {"labelled": int(known.sum()), "purity": purity(assignment[known], subject.labels[known])}
        figures |= {name: agreement[name] for name in ("nmi", "ari")}
    figures["largest"] = [{key: value for key, value in one.items() if key != "rows"} for one in clusters]
    save_clusters(subject, assignment, central, out / "clusters.parquet")
    lines = [_line(one, central) for one in clusters]
    save_sheet(subject, lines, out / "clusters.png")
    remove_sheets(out / "sheets")
    for one, line in zip(clusters[:MOST_SHEETS], lines):
        save_sheet(subject, _page(line), out / "sheets" / f"{one['cluster']:04d}.png")
    write_json(out / "clusters.json", figures)
    return figures


def remove_sheets(folder: Path) -> None:
    """Those of an earlier call, which may have had more clusters."""
    before = listed(folder, "[0-9][0-9][0-9][0-9].png")
    forget(*before)
    for path in before:
        delete(path)
    note(*before)


def _told(subject: Subject, assignment: Ints, central: NDArray[np.float64], number: int) -> dict[str, Any]:
    rows = np.flatnonzero(assignment == number)
    rows = rows[np.argsort(-central[rows], kind="stable")]
    labels = subject.labels[rows][subject.labels[rows] >= 0]
    counts = np.bincount(labels) if len(labels) else np.zeros(1, dtype=np.int64)
    return {
        "cluster": number,
        "images": len(rows),
        "central": subject.paths[rows[0]],
        "class": subject.class_name(int(counts.argmax())) if len(labels) else None,
        "share": float(counts.max() / len(labels)) if len(labels) else None,
        "rows": rows,
    }


def _line(cluster: dict[str, Any], central: NDArray[np.float64]) -> Line:
    called = "" if cluster["class"] is None else f", {100 * cluster['share']:.0f} % {cluster['class']}"
    captions = [f"{central[row]:.3f}" for row in cluster["rows"]]
    return Line(f"cluster {cluster['cluster']}: {cluster['images']:,} images{called}", cluster["rows"], captions)


def _page(line: Line) -> list[Line]:
    """A cluster over several lines, the most central images first."""
    starts = range(0, min(len(line.rows), MOST_ON_PAGE), MOST_IN_LINE)
    parts = [slice(start, start + MOST_IN_LINE) for start in starts]
    titles = [line.title, *[""] * (len(parts) - 1)]
    return [Line(title, line.rows[one], line.captions[one]) for title, one in zip(titles, parts)]


def save_clusters(subject: Subject, assignment: Ints, central: NDArray[np.float64], path: Path) -> None:
    """A row an image, in the order of the embeddings; cluster and centrality are null in none."""
    outside = assignment < 0
    columns: dict[str, Any] = {
        "id": subject.ids,
        "path": pa.array(subject.paths, pa.string()),
        "split": pa.array(subject.splits.tolist(), pa.string()),
        "label": pa.array([subject.label(row) for row in range(len(subject))], pa.string()),
        "cluster": pa.array(assignment, pa.int64(), mask=outside),
        "centrality": pa.array(central, pa.float64(), mask=outside),
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
