"""One job server for the session, because it takes seconds to start."""

import signal
from collections.abc import Iterator

import pytest
from job_server import Server, job_server

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cluster of one node with token authentication, on ports of its own."""
    with job_server(tmp_path_factory.mktemp("project")) as started:
        yield started
