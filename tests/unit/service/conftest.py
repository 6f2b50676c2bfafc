"""A service over the tiny run, in this process: no port, no other process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rayssl.pipeline.service.app import create_app
from rayssl.pipeline.service.guard import Names
from rayssl.pipeline.service.opened import Runs, View, open_runs
from rayssl.pipeline.service.tokens import Door

TOKEN = "a-token-of-the-tests"
HERE = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def runs(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The tiny run, opened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSSL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return open_runs([finished])


@pytest.fixture(scope="session")
def view(runs: Runs) -> View:
    """It, as it is."""
    return runs["simclr-folder"]


@pytest.fixture(scope="session")
def api() -> str:
    """Where the tiny run is served."""
    return "/api/runs/simclr-folder"


@pytest.fixture
def client(runs: Runs) -> Iterator[TestClient]:
    """Somebody on this machine; what goes wrong inside is answered as a stranger sees it."""
    app = create_app(Runs(list(runs.by_name.values())), names=Names("127.0.0.1"))
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def guarded(runs: Runs) -> Iterator[TestClient]:
    """Somebody elsewhere, who has to have the token."""
    app = create_app(Runs(list(runs.by_name.values())), names=Names("10.0.0.7"), door=Door(TOKEN, 8000))
    with TestClient(app, base_url="http://10.0.0.7:8000", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def items(view: View) -> list[dict[str, Any]]:
    """What is told of every indexed image."""
    from rayssl.pipeline.service.searches import told

    return [told(view, one, row) for row, one in enumerate(view.opened.items.ids.tolist())]
