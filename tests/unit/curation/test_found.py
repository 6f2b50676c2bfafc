"""Outliers, wrong labels, clusters and bad pictures: what was planted is found."""

import numpy as np
import pytest
from numpy.typing import NDArray
from photographs import unit
from PIL import Image, ImageFilter

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.curation.clusters import by_density, by_size, centrality, choose_number, purity
from rayssl.pipeline.curation.mislabelled import suspects, vote
from rayssl.pipeline.curation.outliers import outlier_distance
from rayssl.pipeline.curation.quality import Quality, modified_z, sharpness_of
from rayssl.pipeline.search.graph import make_graph

CLASSES = 6


def blobs(n: int, seed: int = 0, spread: float = 0.15) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(n, 32) unit vectors around six centres, and whose they are."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    centres = rng.standard_normal((CLASSES, 32))
    return unit(centres[labels] + spread * np.sqrt(32) * rng.standard_normal((n, 32))), labels


def test_what_lies_apart_is_the_least_usual() -> None:
    vectors, _ = blobs(300)
    odd = unit(np.random.default_rng(5).standard_normal((4, 32)))
    found = outlier_distance(make_graph(np.concatenate([vectors, odd]), np.arange(304)))
    assert set(np.argsort(-found)[:4]) == {300, 301, 302, 303}
    assert (found >= 0).all()
    assert (found <= 2).all()


def test_the_distance_is_that_of_the_last_neighbour() -> None:
    vectors, _ = blobs(40)
    found = outlier_distance(make_graph(vectors, np.arange(40), 5))
    distances = np.sort(np.linalg.norm(vectors[:, None] - vectors[None], axis=2), axis=1)
    np.testing.assert_allclose(found, distances[:, 5], atol=1e-3)


def test_wrong_labels_are_doubted_and_the_right_one_is_suggested() -> None:
    vectors, labels = blobs(600, spread=0.08)
    rng = np.random.default_rng(0)
    wrong = rng.permutation(600)[:30]
    given = labels.copy()
    given[wrong] = (labels[wrong] + rng.integers(1, CLASSES, 30)) % CLASSES
    shares = vote(make_graph(vectors, np.arange(600)), given, CLASSES)
    doubted, doubt, suggested = suspects(shares, given)
    assert set(np.flatnonzero(doubted)) == set(wrong)
    np.testing.assert_array_equal(suggested[wrong], labels[wrong])
    assert set(np.argsort(-doubt)[:30]) == set(wrong)


def test_what_an_image_is_called_does_not_vote_for_it() -> None:
    vectors, labels = blobs(60)
    graph = make_graph(vectors, np.arange(60), 5)
    shares = vote(graph, labels, CLASSES)
    for row in range(60):
        other = labels.copy()
        other[row] = (labels[row] + 1) % CLASSES
        np.testing.assert_array_equal(vote(graph, other, CLASSES)[row], shares[row])
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_votes_are_weighted_and_those_without_a_label_have_none() -> None:
    vectors = unit(np.array([[1, 0], [1, 0.1], [1, 0.4], [1, 0.5], [-1, 0.0]]))
    graph = make_graph(vectors, np.arange(5), 3)
    labels = np.array([0, 1, 0, -1, 0])
    shares = vote(graph, labels, 2, temperature=0.15)
    weights = np.exp((vectors[0] @ vectors[1:4].T).astype(float) / 0.15)[:2]
    assert shares[0] == pytest.approx([weights[1] / weights.sum(), weights[0] / weights.sum()])
    np.testing.assert_array_equal(vote(graph, np.full(5, -1), 2), 0)


def test_the_number_of_clusters_is_found() -> None:
    assert choose_number(blobs(300)[0]) == CLASSES
    with pytest.raises(UserError, match="--clusters N"):
        choose_number(blobs(5)[0])


@pytest.mark.parametrize("method", ["hdbscan", "dbscan", "meanshift"])
def test_clusters_by_density_are_the_blobs(method: str) -> None:
    vectors, labels = blobs(300, spread=0.08)
    found = by_density(method, vectors)
    inside = found >= 0
    assert inside.mean() > 0.8
    assert purity(found[inside], labels[inside]) == 1
    assert sorted(np.bincount(found[inside]))[-CLASSES] > 0.7 * 300 / CLASSES  # hardly anything else is a cluster


def test_clusters_are_numbered_by_size_and_images_by_their_place_in_them() -> None:
    found = by_size(np.array([4, 4, 7, -1, 7, 7, 0]))
    np.testing.assert_array_equal(found, [1, 1, 0, -1, 0, 0, 2])
    np.testing.assert_array_equal(by_size(np.array([-1, -1])), [-1, -1])
    vectors = unit(np.array([[1, 0], [1, 0.2], [1, 0.4], [0, 1.0]]))
    central = centrality(vectors, np.array([0, 0, 0, -1]))
    assert np.argmax(central[:3]) == 1
    assert np.isnan(central[3])


def test_purity_is_the_share_of_the_most_frequent_classes() -> None:
    assert purity(np.array([0, 0, 0, 1, 1]), np.array([2, 2, 3, 3, 3])) == pytest.approx(4 / 5)


def test_blur_takes_sharpness_away(photographs: dict[str, list[Image.Image]]) -> None:
    for picture in photographs["china"][::5]:
        sharp, soft = (np.asarray(one) for one in (picture, picture.filter(ImageFilter.GaussianBlur(2))))
        assert sharpness_of(soft) < 0.5 * sharpness_of(sharp)


def test_pictures_are_flagged_by_what_is_wrong_with_them() -> None:
    n, rng = 50, np.random.default_rng(0)
    sharpness, contrast = np.exp(rng.normal(6, 0.5, n)), np.full(n, 40.0)
    sharpness[0], contrast[1], sharpness[1] = 2.0, 0.5, 0.0
    heights, widths = np.full(n, 100), np.full(n, 100)
    heights[2], widths[2] = 20, 20  # small
    heights[3], widths[3] = 400, 25  # as large as the others, of another shape
    heights[4], widths[4] = 120, 90  # not far from the others
    heights[5], widths[5] = 0, 0  # unknown
    dark = np.arange(n) == 6
    flags = Quality(sharpness, dark, np.zeros(n, bool), contrast, heights, widths).flags()
    found = {name: np.flatnonzero(one).tolist() for name, one in flags.items()}
    assert found == {"blurred": [0], "dark": [6], "bright": [], "flat": [1], "size": [2], "shape": [3]}


def test_a_modified_z_score() -> None:
    np.testing.assert_allclose(modified_z(np.array([1.0, 2, 3, 4, 100])), 0.6745 * np.array([-2, -1, 0, 1, 97]))
    np.testing.assert_array_equal(modified_z(np.array([1.0, 1, 1, 2, 0])), [0, 0, 0, np.inf, -np.inf])
