"""One job server for the session, because it takes seconds to start."""

from collections.abc import Iterator

import pytest
from job_server import Server, job_server


@pytest.fixture(scope="session", autouse=True)
def worker_niceness() -> Iterator[None]:
    """Workers as quick as any process: nice as Ray makes them, they stand still while other tests run beside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cluster of one node with token authentication, on ports of its own."""
    with job_server(tmp_path_factory.mktemp("project")) as started:
        yield started
