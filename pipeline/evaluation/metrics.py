"""Figures that say how good embeddings are. Numpy arrays in, numbers out.

Shapes: N vectors of D dimensions. Memory stays bounded: no function holds an N × N or N_test × N_train matrix.
"""

import math

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import Floats, Ints, chunks, normalise

_Z_95 = 1.96  # 97.5 % quantile of the standard normal distribution


def cluster_agreement(assignment: Ints, labels: Ints) -> dict[str, float]:
    """Agreement of clusters (N,) with classes (N,): {"acc", "nmi", "ari"}.

    acc: share of points under the best one-to-one matching of clusters to classes (Hungarian algorithm; Xie et al.,
    "Unsupervised Deep Embedding for Clustering Analysis", ICML 2016, section 4.2). nmi: mutual information over the
    arithmetic mean of the entropies. ari: adjusted Rand index (Hubert and Arabie, 1985).
    """
    return _agreement(_contingency(assignment, labels))


def cluster_intervals(assignment: Ints, labels: Ints, seed: int, draws: int = 200) -> dict[str, tuple[float, float]]:
    """95 % intervals of `cluster_agreement` by a bootstrap over the points, the clustering held fixed.

    value ± 1.96 bootstrap standard deviations rather than quantiles: resampling a table biases its NMI upwards.
    """
    table = _contingency(assignment, labels)
    n = int(table.sum())
    resampled = np.random.default_rng(seed).multinomial(n, table.ravel() / n, size=draws)
    figures = [_agreement(draw.reshape(table.shape)) for draw in resampled]
    intervals = {}
    for name, value in _agreement(table).items():
        half = _Z_95 * float(np.std([figure[name] for figure in figures]))
        lowest = -0.5 if name == "ari" else 0.0
        intervals[name] = (max(value - half, lowest), min(value + half, 1.0))
    return intervals


def _contingency(assignment: Ints, labels: Ints) -> Ints:
    """Counts (clusters, classes)."""
    _, rows = np.unique(assignment, return_inverse=True)
    _, columns = np.unique(labels, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def _agreement(table: Ints) -> dict[str, float]:
    return {"acc": _matched_share(table), "nmi": _mutual_information(table), "ari": _rand_index(table)}


def _matched_share(table: Ints) -> float:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def _mutual_information(table: Ints) -> float:
    joint = table / table.sum()
    clusters, classes = joint.sum(axis=1), joint.sum(axis=0)
    mean_entropy = (_entropy(clusters) + _entropy(classes)) / 2
    if mean_entropy == 0:  # one cluster and one class: they agree
        return 1.0
    information = _entropy(clusters) + _entropy(classes) - _entropy(joint.ravel())
    return float(np.clip(information / mean_entropy, 0, 1))


def _entropy(p: NDArray[np.float64]) -> float:
    """In nats; terms of zero probability count nothing."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _rand_index(table: Ints) -> float:
    def pairs(counts: Ints) -> float:
        return float((counts * (counts - 1.0)).sum() / 2)

    same_both = pairs(table)
    same_cluster, same_class = pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = same_cluster * same_class / max(pairs(table.sum()), 1.0)
    highest = (same_cluster + same_class) / 2
    return 1.0 if highest == expected else (same_both - expected) / (highest - expected)


def retrieval(vectors: Floats, labels: Ints) -> dict[str, float]:
    """Each vector searches all others by cosine; means over queries of precision@1, recall@1 and @10, map@r, and more.

    Definitions: `retrieval_per_query`. Raises UserError where no class has two members.
    """
    return {name: float(values.mean()) for name, values in retrieval_per_query(vectors, labels).items()}


def retrieval_per_query(vectors: Floats, labels: Ints) -> dict[str, NDArray[np.float64]]:
    """The figures of `retrieval` for each of the Q vectors that has another one of its class: (Q,) each.

    precision@1, r-precision and map@r as in Musgrave et al., "A Metric Learning Reality Check" (ECCV 2020) and in
    pytorch-metric-learning: with R others of the query's class, map@r = 1/R · Σ_{i ≤ R} P(i)·[i-th is of the class]
    and r-precision the share of the class among the R nearest. mrr: 1 / the rank of the first one of the class.
    recall@k: 1 where one of the k nearest is of the class (Jégou et al., TPAMI 2011); recall@1 is precision@1.
    """
    points = normalise(vectors)
    others = np.bincount(labels)[labels] - 1  # R of each query
    queries = np.flatnonzero(others > 0)
    if len(queries) == 0:
        raise UserError(f"retrieval among {len(labels)} images: at least two of them must be of one class")
    depth = int(min(max(others.max(), 10), len(labels) - 1))
    parts = []
    for rows in chunks(len(queries), len(labels)):
        similarities = _with_others(points, queries[rows])
        nearest = _nearest(similarities, depth)
        alike = labels == labels[queries[rows]][:, None]
        hits = np.take_along_axis(alike, nearest, axis=1)
        found = _query_figures(hits, others[queries[rows]])
        parts.append({**found, "mrr": 1 / _first_rank(similarities, alike)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _with_others(points: Floats, queries: Ints) -> Floats:
    """(Q, N) cosines; −∞ of a query with itself, which is dropped by its position."""
    similarities = points[queries] @ points.T
    similarities[np.arange(len(queries)), queries] = -np.inf
    return np.asarray(similarities)


def _first_rank(similarities: Floats, alike: NDArray[np.bool_]) -> Ints:
    """(Q,) the rank, from 1 on, of the most similar one that is alike; ties count in its favour."""
    first = np.where(alike, similarities, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(1 + (similarities > first).sum(axis=1))


def _nearest(similarities: Floats, depth: int) -> Ints:
    """Positions (Q, depth) of the most similar points, best first."""
    best = np.argpartition(-similarities, depth - 1, axis=1)[:, :depth]
    order = np.argsort(-np.take_along_axis(similarities, best, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(best, order, axis=1))


def _query_figures(hits: NDArray[np.bool_], others: Ints) -> dict[str, NDArray[np.float64]]:
    """Hits (Q, depth) in order of similarity and R (Q,) → figures (Q,) each."""
    rank = np.arange(1, hits.shape[1] + 1)
    precision = np.cumsum(hits, axis=1) / rank
    counted = hits & (rank <= others[:, None])
    first = hits[:, 0].astype(np.float64)
    return {
        "precision@1": first,
        "recall@1": first,
        "recall@10": hits[:, :10].any(axis=1).astype(np.float64),
        "map@r": (precision * counted).sum(axis=1) / others,
        "r-precision": counted.sum(axis=1) / others,
    }


def adjusted_mutual_information(assignment: Ints, labels: Ints) -> float:
    """Mutual information of clusters (N,) and classes (N,) above what chance gives; 1: equal, about 0: unrelated.

    Vinh et al., "Information Theoretic Measures for Clusterings Comparison" (JMLR 2010), arithmetic mean.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(labels, assignment))


def silhouette(vectors: Floats, assignment: Ints, seed: int, sample: int = 2_000) -> float | None:
    """How much nearer points are to their own cluster than to the next, −1 … 1; None where there is one cluster.

    Rousseeuw (1987), by cosine distance, over at most `sample` of the vectors (N, D).
    """
    from sklearn.metrics import silhouette_score

    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:sample])
    if not 1 < len(np.unique(assignment[rows])) < len(rows):
        return None
    return float(silhouette_score(normalise(vectors[rows]), assignment[rows], metric="cosine"))


def linear_cka(one: Floats, other: Floats) -> float:
    """How alike two representations (N, D) and (N, E) of the same N ≥ 4 images are: 1 up to a rotation and a scale.

    Centred kernel alignment (Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019) of
    linear kernels, with the unbiased estimate of HSIC (Song et al., JMLR 2012, equation 5), which unlike the biased one
    is about 0 for unrelated ones however many numbers they have. Raises UserError for fewer than 4 images.
    """
    if len(one) != len(other) or len(one) < 4:
        raise UserError(f"CKA of {len(one)} and {len(other)} vectors: the same images, 4 or more, are needed")
    x, y = (vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64) for vectors in (one, other))
    both, first, second = _unbiased_hsic(x, y), _unbiased_hsic(x, x), _unbiased_hsic(y, y)
    return float(both / math.sqrt(first * second)) if first > 0 and second > 0 else 0.0


def _unbiased_hsic(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of the linear kernels of (N, D) and (N, E), without their diagonals, and without making either (N, N)."""
    n = len(x)
    own_x, own_y = (x**2).sum(axis=1), (y**2).sum(axis=1)  # the diagonals
    rows_x, rows_y = x @ x.sum(axis=0) - own_x, y @ y.sum(axis=0) - own_y
    trace = float(((x.T @ y) ** 2).sum() - own_x @ own_y)
    sums = float(rows_x.sum() * rows_y.sum()) / ((n - 1) * (n - 2))
    return (trace + sums - 2 * float(rows_x @ rows_y) / (n - 2)) / (n * (n - 3))


def rankme(vectors: Floats) -> float:
    """Effective rank of (N, D) in 1 … min(N, D): exp(−Σ p log p) with p = σ / Σσ + 1e-7 of the singular values σ.

    Garrido et al., "RankMe" (ICML 2023, equation 1), who use about 25,600 samples. The singular values come from
    the smaller Gram matrix in float64: exact to 1e-8 of the largest, well below the 1e-7 of the definition.
    """
    n, dim = vectors.shape
    if n < dim:
        wide = vectors.astype(np.float64)
        gram = wide @ wide.T
    else:
        gram = np.zeros((dim, dim))
        for rows in chunks(n, dim):
            chunk = vectors[rows].astype(np.float64)
            gram += chunk.T @ chunk
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    if singular.sum() == 0:
        return 1.0
    p = singular / singular.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def alignment_uniformity(view1: Floats, view2: Floats) -> tuple[float, float]:
    """Of two views (N, D) of the same images: mean squared distance of pairs, and mean uniformity of the views.

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere" (ICML 2020, section 4.1), α = 2, t = 2. Both are better when lower: alignment in 0 … 4.
    """
    distance = ((normalise(view1) - normalise(view2)) ** 2).sum(axis=1).mean()
    return float(distance), (uniformity(view1) + uniformity(view2)) / 2


def uniformity(vectors: Floats) -> float:
    """log of the mean of exp(−2 ‖u − v‖²) over all pairs of distinct rows, normalised: −8 … 0 (all equal)."""
    points = normalise(vectors)
    n = len(points)
    if n < 2:
        raise UserError(f"uniformity of {n} vectors: it needs at least 2")
    total = 0.0
    for rows in chunks(n, n):
        # ‖u − v‖² = 2 − 2 u·v on the sphere
        potential = np.exp(4 * (points[rows] @ points.T) - 4)
        total += float(potential.sum(dtype=np.float64)) - float(np.trace(potential[:, rows], dtype=np.float64))
    return math.log(total / (n * (n - 1)))


def code_std(vectors: Floats) -> float:
    """Mean standard deviation per dimension of the normalised codes × √D: about 1 healthy, 0 collapsed.

    Chen and He, "Exploring Simple Siamese Representation Learning" (CVPR 2021, section 4.1).
    """
    return float(normalise(vectors).std(axis=0, dtype=np.float64).mean() * math.sqrt(vectors.shape[1]))


def interval_of_proportion(successes: int, n: int, z: float = _Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 1927); 95 % with the default z."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}")
    share = successes / n
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def interval_of_mean(
    values: NDArray[np.float64], z: float = _Z_95, *, least: float = -math.inf, most: float = math.inf
) -> tuple[float, float] | None:
    """Mean ± z standard errors of (N,) values that lie within least … most; None for fewer than two."""
    if len(values) < 2:
        return None
    half = z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return max(float(values.mean()) - half, least), min(float(values.mean()) + half, most)
