"""Two processes for the whole session."""

from collections.abc import Iterator

import pytest
from workers import Workers


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two processes in one gloo group."""
    pool = Workers(2, tmp_path_factory.mktemp("group"))
    yield pool
    pool.stop()
