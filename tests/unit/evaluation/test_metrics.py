"""Metrics against closed forms and slow, plain versions."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from rayssl.pipeline.base import vectors as vectors_module
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import kmeans, knn_classify, normalise
from rayssl.pipeline.evaluation import metrics


def blobs(
    n: int, dim: int, classes: int, seed: int = 0, spread: float = 0.7
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`classes` overlapping clouds, so that no metric is trivially 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, dim))
    return (centres[labels] + spread * rng.normal(size=(n, dim))).astype(np.float32), labels.astype(np.int64)


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few rows: their borders must not show."""
    monkeypatch.setattr(vectors_module, "_CELLS", 700)


def plain_dino_vote(train, labels, test, k, temperature, classes):  # type: ignore[no-untyped-def]
    """The weighting of DINO's evaluation, one image and one neighbour after another."""
    predictions = []
    for image in test:
        scores = [float(image @ other / np.linalg.norm(image) / np.linalg.norm(other)) for other in train]
        nearest = sorted(range(len(train)), key=lambda i: -scores[i])[:k]
        votes = [0.0] * classes
        for i in nearest:
            votes[labels[i]] += math.exp(scores[i] / temperature)
        predictions.append(votes.index(max(votes)))
    return predictions


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (50, 0.5), (120, 0.1)])
def test_knn_is_dinos_weighting(tiny_chunks: None, k: int, temperature: float) -> None:
    vectors, labels = blobs(200, 6, 4, spread=1.0)
    train, test = vectors[:120], vectors[120:]
    found = knn_classify(train, labels[:120], test, k, temperature, 4)
    assert found.tolist() == plain_dino_vote(train.astype(float), labels[:120], test.astype(float), k, temperature, 4)


def test_knn_temperature_matters_and_never_overflows() -> None:
    # Two far neighbours of class 1 outvote a near one of class 0, unless the weights are steep
    train = np.array([[1, 0.1], [1, 0.5], [1, 0.55]], dtype=np.float32)
    labels, test = np.array([0, 1, 1]), np.array([[1, 0]], dtype=np.float32)
    assert knn_classify(train, labels, test, 3, 100.0, 2).tolist() == [1]
    assert knn_classify(train, labels, test, 3, 1e-4, 2).tolist() == [0]


def test_knn_of_k_beyond_the_vectors() -> None:
    vectors, labels = blobs(5, 3, 2)
    for k in (0, 6):
        with pytest.raises(UserError, match=rf"k is {k}: .*within 1 … 5"):
            knn_classify(vectors, labels, vectors, k, 0.07, 2)


def test_kmeans_finds_separate_clouds_whatever_their_lengths() -> None:
    vectors, labels = blobs(300, 8, 5, spread=0.05)
    lengths = np.random.default_rng(1).uniform(0.1, 10, (300, 1)).astype(np.float32)
    assignment = kmeans(vectors * lengths, 5, seed=0)
    assert metrics.cluster_agreement(assignment, labels) == {"acc": 1.0, "nmi": pytest.approx(1), "ari": 1.0}


def test_kmeans_depends_on_vectors_and_seed_alone() -> None:
    vectors, _ = blobs(500, 8, 10, spread=2.0)
    first = kmeans(vectors, 10, seed=3, restarts=1)
    np.random.default_rng().normal(size=10)
    np.testing.assert_array_equal(first, kmeans(vectors, 10, seed=3, restarts=1))
    assert (first != kmeans(vectors, 10, seed=4, restarts=1)).any()
    with pytest.raises(UserError, match="number of clusters is 501"):
        kmeans(vectors, 501, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_is_the_best_of_all_matchings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, assignment = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    best = max(
        np.mean([permutation[a] == label for a, label in zip(assignment, labels)])
        for permutation in itertools.permutations(range(5))
    )
    assert metrics.cluster_agreement(assignment, labels)["acc"] == pytest.approx(best)


def test_agreement_where_there_is_one_cluster_or_one_class() -> None:
    one, both = np.zeros(6, dtype=np.int64), np.array([0, 0, 0, 1, 1, 1])
    for assignment, labels, acc, nmi in ((one, one, 1.0, 1.0), (one, both, 0.5, 0.0), (both, one, 0.5, 0.0)):
        found = metrics.cluster_agreement(assignment, labels)
        assert (found["acc"], found["nmi"]) == (acc, nmi)


def test_agreement_is_whole_where_only_the_names_differ() -> None:
    labels = np.array([0, 1, 2, 2, 1, 0, 0])
    assert metrics.cluster_agreement((labels + 1) % 3, labels) == pytest.approx({"acc": 1.0, "nmi": 1.0, "ari": 1.0})


def test_cluster_intervals_hold_their_value_and_narrow() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (100, 10_000):
        labels = rng.integers(0, 5, n)
        assignment = np.where(rng.random(n) < 0.7, labels, rng.integers(0, 5, n))
        figures = metrics.cluster_agreement(assignment, labels)
        intervals = metrics.cluster_intervals(assignment, labels, seed=0)
        for name, (low, high) in intervals.items():
            assert low <= figures[name] <= high
        widths.append(intervals["acc"][1] - intervals["acc"][0])
    assert 7 < widths[0] / widths[1] < 14  # √100 = 10
    # Of 10,000 points 0.76 agree: a proportion's interval, give or take the bootstrap's own error
    assert widths[1] == pytest.approx(2 * 1.96 * math.sqrt(0.76 * 0.24 / 10_000), rel=0.2)


def test_cluster_intervals_hold_their_value_for_chance_clusters() -> None:
    rng = np.random.default_rng(0)
    assignment, labels = rng.integers(0, 10, 200), rng.integers(0, 10, 200)
    for name, value in metrics.cluster_agreement(assignment, labels).items():
        low, high = metrics.cluster_intervals(assignment, labels, seed=0)[name]
        assert low <= value <= high


def plain_retrieval(vectors, labels, query):  # type: ignore[no-untyped-def]
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    others = [i for i in range(len(labels)) if i != query]
    ranking = sorted(others, key=lambda i: -cosine(vectors[query], vectors[i]))
    relevant = [labels[i] == labels[query] for i in ranking]
    r = sum(relevant)
    ap = sum(sum(relevant[: i + 1]) / (i + 1) for i in range(r) if relevant[i]) / r
    return {
        "precision@1": relevant[0], "recall@1": relevant[0], "recall@10": any(relevant[:10]), "map@r": ap,
        "r-precision": sum(relevant[:r]) / r, "mrr": 1 / (1 + relevant.index(True)),
    }  # fmt: skip


def test_retrieval_is_the_definition(tiny_chunks: None) -> None:
    vectors, labels = blobs(80, 5, 6, spread=1.5)
    labels[:1] = 9  # alone in its class: searches nothing
    found = metrics.retrieval_per_query(vectors, labels)
    expected = [plain_retrieval(vectors.astype(float), labels, i) for i in range(1, 80)]
    for name in ("precision@1", "recall@1", "recall@10", "map@r", "r-precision", "mrr"):
        np.testing.assert_allclose(found[name], [float(e[name]) for e in expected])
        assert metrics.retrieval(vectors, labels)[name] == pytest.approx(np.mean(found[name]))


def test_retrieval_leaves_out_itself_and_not_its_twin() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    assert metrics.retrieval(vectors, np.array([0, 0, 1, 1]))["map@r"] == 1
    assert metrics.retrieval(vectors, np.array([0, 1, 0, 1]))["precision@1"] == 0
    with pytest.raises(UserError, match="at least two of them must be of one class"):
        metrics.retrieval(vectors, np.arange(4))


def plain_cka(one, other):  # type: ignore[no-untyped-def]
    """Kornblith et al. with the sums of Song et al.'s equation 5 over kernels without their diagonals."""

    def hsic(k, m):  # type: ignore[no-untyped-def]
        n, ones = len(k), np.ones(len(k))
        return (np.trace(k @ m) + ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
                - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))  # fmt: skip

    kernels = []
    for vectors in (one.astype(float), other.astype(float)):
        kernel = vectors @ vectors.T
        np.fill_diagonal(kernel, 0)
        kernels.append(kernel)
    one, other = kernels
    return hsic(one, other) / math.sqrt(hsic(one, one) * hsic(other, other))


def test_cka_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal((50, 6)).astype(np.float32)
    other = np.concatenate([one[:, :3], rng.standard_normal((50, 4))], axis=1).astype(np.float32)
    centred = [vectors - vectors.mean(axis=0) for vectors in (one, other)]
    assert metrics.linear_cka(one, other) == pytest.approx(plain_cka(*centred), abs=1e-5)


def test_cka_knows_no_turn_scale_or_shift_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal((100, 8)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)
    assert metrics.linear_cka(one, 3 * one @ turn + 5) == pytest.approx(1, abs=1e-4)
    noise = [metrics.linear_cka(one, rng.standard_normal((100, 500)).astype(np.float32)) for _ in range(10)]
    assert abs(np.mean(noise)) < 0.03  # the biased estimate gives 0.5 and more for so many numbers
    with pytest.raises(UserError, match="4 or more"):
        metrics.linear_cka(one[:3], one[:3])


def test_silhouette_and_adjusted_information_are_scikit_learns() -> None:
    from sklearn.metrics import adjusted_mutual_info_score, silhouette_score

    vectors, labels = blobs(60, 3, 5, spread=0.5)
    expected = silhouette_score(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels, metric="cosine")
    assert metrics.silhouette(vectors, labels, seed=0) == pytest.approx(expected, abs=1e-5)
    assert metrics.silhouette(vectors, np.zeros(60, np.int64), seed=0) is None
    some = (labels + (np.arange(60) % 5 == 0)) % 3
    assert metrics.adjusted_mutual_information(some, labels) == pytest.approx(adjusted_mutual_info_score(labels, some))


def test_rankme_closed_forms() -> None:
    assert metrics.rankme(np.eye(16, dtype=np.float32)) == pytest.approx(16, rel=1e-4)
    assert metrics.rankme(np.ones((50, 16), dtype=np.float32)) == pytest.approx(1, abs=1e-3)
    assert metrics.rankme(np.zeros((50, 16), dtype=np.float32)) == 1
    # Three equal directions of ten, seen from either side of the matrix
    half = np.repeat(np.eye(3, 10, dtype=np.float32), 4, axis=0)
    assert metrics.rankme(half) == pytest.approx(3, rel=1e-3)
    assert metrics.rankme(half.T.copy()) == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("shape", [(400, 24), (24, 400)])
def test_rankme_is_the_definition(tiny_chunks: None, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=shape) * np.logspace(0, -3, shape[1])).astype(np.float32)
    sigma = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert metrics.rankme(vectors) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-6)


def test_alignment_and_uniformity_are_the_definition(tiny_chunks: None) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60, 5))
    u, v = x / np.linalg.norm(x, axis=1)[:, None], y / np.linalg.norm(y, axis=1)[:, None]
    pairs = list(itertools.combinations(range(60), 2))
    plain = [math.log(np.mean([math.exp(-2 * np.sum((s[i] - s[j]) ** 2)) for i, j in pairs])) for s in (u, v)]
    alignment, uniformity = metrics.alignment_uniformity(x.astype(np.float32), y.astype(np.float32))
    assert alignment == pytest.approx(np.mean(np.sum((u - v) ** 2, axis=1)), rel=1e-5)
    assert uniformity == pytest.approx(np.mean(plain), rel=1e-5)


def test_uniformity_closed_forms() -> None:
    assert metrics.uniformity(np.ones((9, 4), dtype=np.float32)) == pytest.approx(0, abs=1e-5)
    assert metrics.uniformity(np.array([[1, 0], [-1, 0]], dtype=np.float32)) == pytest.approx(-8)  # distance 2


def test_code_std_of_healthy_and_collapsed_codes() -> None:
    assert metrics.code_std(np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)) == pytest.approx(
        1, abs=0.01
    )
    assert metrics.code_std(np.ones((50, 64), dtype=np.float32)) == pytest.approx(0, abs=1e-6)


def test_normalise() -> None:
    unit = normalise(np.array([[3, 4], [0, 0]], dtype=np.float32))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(15, 50, 0.1910, 0.4375), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    """81 of 263: Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I."""
    found = metrics.interval_of_proportion(successes, n)
    assert found == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_interval_of_mean() -> None:
    values = np.array([0.0, 1.0] * 50)
    low, high = metrics.interval_of_mean(values) or (0, 0)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(50 / 2 / 99 / 100))
    assert metrics.interval_of_mean(np.array([0.5])) is None
    assert metrics.interval_of_mean(np.array([0.0, 0.0, 1.0]), least=0.0, most=1.0) == (
        0.0,
        pytest.approx(1 / 3 + 1.96 / 3),
    )
