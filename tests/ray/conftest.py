"""One job server and one cluster of several nodes for the session, because they take long to start."""

from collections.abc import Iterator
from typing import Any

import pytest
from job_server import Server, job_server

from rayssl.pipeline.cluster.ray_private import few_processes


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


@pytest.fixture(scope="session")
def nodes(worker_niceness: None) -> Iterator[Any]:
    """Three nodes of one core on this machine, without the processes that serve nobody here."""
    from ray.cluster_utils import Cluster

    with few_processes():
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 1024**2})
        for _ in range(2):
            started.add_node(num_cpus=1, object_store_memory=80 * 1024**2)
    yield started
    started.shutdown()
