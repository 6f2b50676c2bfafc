"""Two processes for the whole session."""

from collections.abc import Iterator

import pytest
import torch
from workers import Workers


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two processes in one gloo group."""
    pool = Workers(2, tmp_path_factory.mktemp("group"))
    yield pool
    pool.stop()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the workers: beside two busy processes threads of one calculation mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
