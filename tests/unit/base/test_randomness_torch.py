"""Keyed randomness on the device is the numpy one, bit for bit."""

import numpy as np
import pytest
import torch

from rayssl.pipeline.base import randomness, randomness_torch

IDS = np.array([1, 2, 3, 2**40 + 7, 2**62 + 12345, 2**63 - 1], dtype=np.int64)


def both(parts):
    """The same key for numpy and for torch."""
    return parts, [torch.from_numpy(p) if isinstance(p, np.ndarray) else p for p in parts]


@pytest.mark.parametrize("parts", [[0, 3, IDS, 1, "noise"], [IDS], [-7, IDS, "crop", 2**62], [IDS[:, None], IDS]])
def test_hash_is_bit_identical(parts):
    plain, keyed = both(parts)
    found = randomness_torch.hash_key(keyed)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy().view(np.uint64), randomness.hash_key(plain))


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_uniform_is_bit_identical(n):
    plain, keyed = both([5, 0, IDS, 0, "corruption"])
    found = randomness_torch.uniform(keyed, n)
    assert found.shape == (len(IDS), n)
    np.testing.assert_array_equal(found.numpy(), randomness.uniform(plain, n))


def test_key_is_not_changed():
    ids = torch.from_numpy(IDS.copy())
    randomness_torch.normal([1, ids], 4)
    randomness_torch.uniform([ids], 4)
    assert torch.equal(ids, torch.from_numpy(IDS))


def test_a_draw_depends_on_its_key_alone():
    ids = torch.arange(1, 50)
    whole = randomness_torch.normal([0, 2, ids, 0, "noise"], 33, torch.float64)
    part = randomness_torch.normal([0, 2, ids[7:9], 0, "noise"], 20, torch.float64)
    torch.testing.assert_close(part, whole[7:9, :20], rtol=1e-12, atol=1e-12)
    other = randomness_torch.normal([0, 3, ids, 0, "noise"], 33, torch.float64)
    assert (whole == other).float().mean() == 0


def test_normal_is_normal():
    from scipy.stats import kstest

    draws = randomness_torch.normal([0, 0, torch.arange(200), 0, "noise"], 501, torch.float64)
    assert draws.shape == (200, 501)
    assert kstest(draws.flatten().numpy(), "norm").pvalue > 0.01
    neighbours = np.corrcoef(draws[:, :-1].flatten().numpy(), draws[:, 1:].flatten().numpy())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(draws.numel())  # cosine and sine of one angle are independent


def test_normal_in_fp32_is_the_same_draw():
    key = [0, 0, torch.arange(100), 0, "noise"]
    single, double = (randomness_torch.normal(key, 200, dtype) for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    assert torch.isfinite(single).all()
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)
