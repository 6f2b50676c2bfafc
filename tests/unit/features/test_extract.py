"""Which worker sees which images."""

import numpy as np
import pytest

from rayssl.pipeline.features.extract import BATCH, blocks_of


@pytest.mark.parametrize("n", [0, 1, BATCH, 5 * BATCH, 5 * BATCH + 7])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_every_worker_sees_whole_blocks_of_the_same_rows(n: int, workers: int) -> None:
    """What a block holds does not depend on the number of workers: only the last one of all may be smaller."""
    parts = [blocks_of(n, rank, workers) for rank in range(workers)]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(n))
    for part in parts:
        assert not len(part) or part[0] % BATCH == 0
    sizes = [-(-len(part) // BATCH) for part in parts]
    assert max(sizes) - min(sizes) <= 1
