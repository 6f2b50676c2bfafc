"""Metrics against the implementations of scikit-learn and pytorch-metric-learning."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rayssl.pipeline.base.vectors import kmeans, knn_classify, normalise
from rayssl.pipeline.evaluation import metrics


@pytest.fixture(scope="module")
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images.astype(np.float32), labels.astype(np.int64)


Digits = tuple[NDArray[np.float32], NDArray[np.int64]]


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.07, 1e6])
def test_knn_against_sklearn(digits: Digits, k: int, temperature: float) -> None:
    """A huge T makes all weights equal; else scikit-learn gets exp(s/T) as its weights."""
    from sklearn.neighbors import KNeighborsClassifier

    images, labels = digits
    weights = "uniform" if temperature > 1 else lambda distance: np.exp((1 - distance) / temperature)
    peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights).fit(
        images[:1400], labels[:1400]
    )
    ours = knn_classify(images[:1400], labels[:1400], images[1400:], k, temperature, 10)
    agreement = np.mean(ours == peer.predict(images[1400:]))
    # An equal number of votes, or equal distances at the k-th place, are broken differently
    assert agreement >= (0.99 if temperature > 1 else 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_agreement_against_sklearn(seed: int) -> None:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3 + seed, 400)
    assignment = np.where(rng.random(400) < 0.5, labels, rng.integers(0, 7, 400)) * 3 + 5  # numbers with gaps
    found = metrics.cluster_agreement(assignment, labels)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, assignment))
    assert found["ari"] == pytest.approx(adjusted_rand_score(labels, assignment))


@pytest.mark.parametrize(
    ("assignment", "labels"),
    [([0, 0, 0], [1, 1, 1]), ([0, 1, 2], [0, 0, 0]), ([0, 1, 2], [2, 0, 1]), ([0], [0]), ([0, 0, 1], [0, 1, 2])],
)
def test_degenerate_agreement_against_sklearn(assignment: list[int], labels: list[int]) -> None:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    found = metrics.cluster_agreement(np.array(assignment), np.array(labels))
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, assignment))
    assert found["ari"] == pytest.approx(adjusted_rand_score(labels, assignment))


def test_kmeans_is_as_tight_as_sklearns(digits: Digits) -> None:
    from sklearn.cluster import KMeans

    points = normalise(digits[0])
    assignment = kmeans(digits[0], 10, seed=0)
    centres = np.stack([points[assignment == cluster].mean(axis=0) for cluster in range(10)])
    inertia = float(((points - centres[assignment]) ** 2).sum())
    peer = KMeans(10, n_init=10, random_state=0).fit(points)
    assert inertia <= peer.inertia_ * 1.005
    ours, theirs = (metrics.cluster_agreement(a, digits[1])["acc"] for a in (assignment, peer.labels_))
    assert ours == pytest.approx(theirs, abs=0.03)


def test_retrieval_against_pytorch_metric_learning(digits: Digits) -> None:
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    images, labels = digits[0][:600], digits[1][:600].copy()
    labels[0] = 77  # alone in its class
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision", "mean_reciprocal_rank"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    peer = calculator.get_accuracy(torch.from_numpy(images), torch.from_numpy(labels))
    found = metrics.retrieval(images, labels)
    assert found["precision@1"] == pytest.approx(peer["precision_at_1"])
    assert found["map@r"] == pytest.approx(peer["mean_average_precision_at_r"], abs=1e-6)
    assert found["r-precision"] == pytest.approx(peer["r_precision"], abs=1e-6)
    assert found["mrr"] == pytest.approx(peer["mean_reciprocal_rank"], abs=1e-3)  # theirs looks at the nearest alone


def test_knn_of_raw_pixels_on_real_images(shared_data: Path) -> None:
    """Raw pixels of MNIST: about 0.95 with 5,000 training images; a slip in the protocol shows at once."""
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    def read(split: str, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        file = next((shared_data / "mnist").glob(f"{split}*.parquet"))
        batch = next(pq.ParquetFile(file).iter_batches(n))
        images = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in batch["image"].to_pylist()]
        return np.stack(images).reshape(n, -1).astype(np.float32), batch["label"].to_numpy().astype(np.int64)

    train, train_labels = read("train", 5000)
    test, test_labels = read("test", 1000)
    found = knn_classify(train, train_labels, test, 20, 0.07, 10)
    assert 0.92 < np.mean(found == test_labels) < 0.98
