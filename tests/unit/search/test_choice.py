"""Which vectors are searched: the maps, the candidates and the rule."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.features.whitening import fit_whitening
from rayssl.pipeline.search.choice import (
    Candidate,
    Material,
    Raw,
    agreement,
    choose,
    paired_error,
    pairs,
    refit,
    singles,
)
from rayssl.pipeline.search.parts import Seen
from rayssl.pipeline.search.projection import find_directions, fit_projection

RNG = np.random.default_rng(0)


def vectors(n: int, dim: int, rank: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, dim)) + 0.1 * rng.standard_normal((n, dim))
    return found.astype(np.float32)


def cosines(points: np.ndarray) -> np.ndarray:
    points = normalise(points)
    return points @ points.T


def candidate(name: str, correct: list[int], *, size: int = 64, flops: float = 1.0) -> Candidate:
    right = np.array(correct, dtype=bool)
    return Candidate(name, name, False, size, flops, float(right.mean()), right)


def test_whitened_to_full_width_has_the_cosines_of_the_symmetric_map() -> None:
    points = normalise(vectors(200, 24))
    symmetric = fit_whitening(points)(points)
    np.testing.assert_allclose(cosines(fit_projection(points, 24, whiten=True)(points)), cosines(symmetric), atol=1e-4)


@pytest.mark.parametrize("dim", [96, 700])
def test_directions_are_those_of_the_covariance(dim: int) -> None:
    points = normalise(vectors(300, dim, rank=12))
    found = find_directions(points, 10)
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    exact = np.sort(np.linalg.eigvalsh(centred.T @ centred / len(points)))[::-1]
    np.testing.assert_allclose(found.variances, exact[:10], rtol=1e-3)
    np.testing.assert_allclose(found.average, exact.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.directions.T @ found.directions, np.eye(10), atol=1e-4)


def test_narrow_plain_vectors_stay_as_they_are_and_wide_ones_keep_what_varies() -> None:
    points = vectors(300, 40, rank=6)
    np.testing.assert_array_equal(fit_projection(points, 40, whiten=False)(points), normalise(points))
    shrunk = fit_projection(points, 12, whiten=False)
    assert shrunk(points).shape == (300, 12)
    centred = normalise(points) - normalise(points).mean(axis=0)
    np.testing.assert_allclose(cosines(shrunk(points)), cosines(centred), atol=0.1)


def test_a_projection_is_the_same_for_one_image_and_for_many() -> None:
    points = vectors(120, 64)
    project = fit_projection(points, 16, whiten=True)
    alone = np.concatenate([project(points[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(project(points)[:5], alone, atol=1e-6)


def test_the_cheapest_of_those_that_cannot_be_told_from_the_best_is_taken() -> None:
    best = candidate("best", [1] * 60 + [0] * 40, size=1024)
    near = candidate("near", [1] * 59 + [0] * 41, size=256)
    cheap_but_bad = candidate("bad", [1] * 30 + [0] * 70, size=16)
    chosen, ties = choose([cheap_but_bad, best, near])
    assert chosen is near
    assert [one.name for one in ties] == ["best", "near"]


def test_of_equal_bytes_the_quicker_one_is_taken() -> None:
    slow = candidate("slow", [1] * 60 + [0] * 40, flops=1e9)
    quick = candidate("quick", [1] * 60 + [0] * 40, flops=1e6)
    assert choose([slow, quick])[0] is quick


@given(st.lists(st.lists(st.integers(0, 1), min_size=30, max_size=30), min_size=1, max_size=8), st.randoms())
def test_the_choice_is_within_one_paired_error_of_the_best_whatever_the_order(
    rows: list[list[int]], random: Random
) -> None:
    found = [candidate(f"c{i}", row, size=random.choice([32, 64, 128])) for i, row in enumerate(rows)]
    chosen, ties = choose(found)
    best = max(found, key=lambda one: one.score)
    assert best.score - chosen.score <= max(paired_error(one.correct, chosen.correct) for one in found) + 1e-12
    assert chosen.bytes == min(one.bytes for one in ties)
    shuffled = list(found)
    random.shuffle(shuffled)
    assert choose(shuffled)[0].name == chosen.name


def test_the_paired_error_is_that_of_the_difference() -> None:
    a, b = RNG.random(500) < 0.6, RNG.random(500) < 0.5
    draws = [
        (a[rows].mean() - b[rows].mean())
        for rows in (np.random.default_rng(i).integers(0, 500, 500) for i in range(800))
    ]
    assert paired_error(a, b) == pytest.approx(np.std(draws), rel=0.15)
    assert paired_error(a, a) == 0


def labelled(n: int, classes: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99 + width).standard_normal((classes, width)) * 2
    return (centres[labels] + rng.standard_normal((n, width))).astype(np.float32), labels


def test_pairs_of_sources_that_know_different_things_find_more_than_either() -> None:
    # One source tells even from odd classes, the other one the halves: together they tell all four.
    rng = np.random.default_rng(0)

    def split(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = rng.integers(0, 4, n)
        a = np.eye(2)[labels % 2] * 3 + rng.standard_normal((n, 2))
        b = np.eye(2)[labels // 2] * 3 + rng.standard_normal((n, 2))
        return labels, a.astype(np.float32), b.astype(np.float32)

    train_labels, a_train, b_train = split(400)
    val_labels, a_val, b_val = split(200)
    material = Material(train_labels, val_labels, 20, 0.07)

    def measure(train: np.ndarray, val: np.ndarray) -> tuple[float, np.ndarray]:
        correct = material.correct(train, val)
        return float(correct.mean()), correct

    tried = singles(Raw(Seen("a"), a_train, a_val, 1, 0), 8, measure)
    tried += singles(Raw(Seen("b"), b_train, b_val, 1, 0), 8, measure)
    (pair,) = pairs(tried, 8, measure)
    assert pair.candidate.source in ("a+b", "b+a")
    assert pair.candidate.score > max(one.candidate.score for one in tried) + 0.15


def test_refitted_vectors_have_the_same_parts_and_width() -> None:
    raw = {name: vectors(200, 300, seed=i) for i, name in enumerate(("a", "b"))}
    labels = RNG.integers(0, 3, 200)
    material = Material(labels, labels[:50], 5, 0.07)

    def measure(train: np.ndarray, val: np.ndarray) -> tuple[float, np.ndarray]:
        correct = material.correct(train, val)
        return float(correct.mean()), correct

    tried = [one for name in raw for one in singles(Raw(Seen(name), raw[name], raw[name][:50], 1, 0), 32, measure)]
    (pair,) = pairs(tried, 32, measure)
    again = refit(pair.vectors, [raw[seen.seen.source] for seen in pair.vectors.parts], 32)
    assert again.label == pair.vectors.label
    assert again([raw[part.seen.source] for part in again.parts]).shape == (200, 32)
    np.testing.assert_allclose(
        cosines(again([raw[p.seen.source] for p in again.parts])), cosines(pair.train), atol=1e-2
    )


def test_how_far_neighbours_are_those_of_others_is_a_number_also_where_nothing_is_held_out() -> None:
    rng = np.random.default_rng(0)
    train = normalise(rng.normal(size=(30, 4)).astype(np.float32))
    assert agreement(["a", "b"], [(train, train[:5]), (train, train[:5])]) == [1.0, 1.0]
    assert agreement(["a", "b"], [(train, train[:0]), (train, train[:0])]) == [0.0, 0.0]
