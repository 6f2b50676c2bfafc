"""Whitening: covariance, shrinkage, directions without variance."""

import numpy as np
import pytest

from rayssl.pipeline.features import whitening
from rayssl.pipeline.features.whitening import fit_whitening


def vectors(n: int = 500, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 6)) * [8, 4, 2, 1, 0.5, 0.1] @ rng.normal(size=(6, 6)) + 3).astype(np.float32)


def test_without_shrinkage_the_covariance_is_the_identity():
    found = fit_whitening(vectors(), shrinkage=0.0)(vectors())
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(6), atol=1e-2)


@pytest.mark.parametrize("shrinkage", [0.01, 0.1, 1.0])
def test_shrinkage_leaves_small_variances_small(shrinkage):
    given = vectors()
    variances = np.linalg.eigvalsh(np.cov(given.T, bias=True))
    found = fit_whitening(given, shrinkage)(given)
    expected = variances / (variances + shrinkage * variances.mean())
    np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(found.T, bias=True)), expected, atol=1e-3)


def test_blocks_of_rows_make_no_difference(monkeypatch):
    whole = fit_whitening(vectors())
    monkeypatch.setattr(whitening, "ROWS", 7)
    np.testing.assert_allclose(fit_whitening(vectors()).matrix, whole.matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 20, 39])
def test_fewer_vectors_than_numbers_have_the_same_map(n):
    """Against the definition, by the whole covariance."""
    given = np.random.default_rng(n).normal(size=(n, 40)).astype(np.float32) + 1
    given[0] = given[-1]  # a direction less
    asked = np.random.default_rng(1).normal(size=(5, 40)).astype(np.float32)
    variances, directions = np.linalg.eigh(np.cov(given.T, bias=True))
    variances = variances.clip(min=0)
    least = 0.1 * variances.mean() + np.finfo(np.float32).tiny
    matrix = (directions / np.sqrt(variances + least)) @ directions.T
    expected = (asked - given.mean(axis=0)) @ matrix
    np.testing.assert_allclose(fit_whitening(given)(asked), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_feature_that_never_varies_stays_zero():
    given = vectors()
    given[:, 2] = 7
    found = fit_whitening(given)(given)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 2], 0, atol=1e-5)


def test_constant_vectors_do_not_overflow():
    assert np.isfinite(fit_whitening(np.full((10, 4), 2, dtype=np.float32))(np.full((3, 4), 2, dtype=np.float32))).all()
