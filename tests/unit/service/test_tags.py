"""Tags are kept in the run folder, whole, and given out as labels."""

import csv
import io
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from rayssl.jobs.main import main
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.service import tags
from rayssl.pipeline.service.app import create_app
from rayssl.pipeline.service.guard import Names
from rayssl.pipeline.service.opened import Runs, open_runs

API = "/api/runs/copied-run"


@pytest.fixture
def runs(finished_copy: Path) -> Runs:
    """A run of the test's own."""
    return open_runs([finished_copy])


@pytest.fixture
def client(runs: Runs) -> TestClient:
    """Somebody who tags; not entered: nothing here needs the encoder."""
    return TestClient(create_app(runs, names=Names("127.0.0.1")), base_url="http://127.0.0.1")


@pytest.fixture
def ids(runs: Runs) -> list[str]:
    """Of all images."""
    return list(map(str, runs["copied-run"].opened.items.ids.tolist()))


def test_tags_are_kept_replaced_and_taken_away(client: TestClient, ids: list[str], finished_copy: Path) -> None:
    client.put(f"{API}/tags", json={"ids": ids[:3], "tag": "cat"})
    client.put(f"{API}/tags", json={"ids": ids[1:2], "tag": "dog"})
    told = client.put(f"{API}/tags", json={"ids": ids[2:3], "tag": None}).json()
    assert told == {"tags": {ids[0]: "cat", ids[1]: "dog"}}
    again = TestClient(create_app(open_runs([finished_copy]), names=Names("127.0.0.1")), base_url="http://127.0.0.1")
    assert again.get(f"{API}/tags").json() == told
    assert main(["verify", str(finished_copy)]) == 0


def test_the_csv_is_read_as_labels(
    client: TestClient, runs: Runs, ids: list[str], images: Path, tmp_path: Path
) -> None:
    names = ["with, comma", 'with "quotes"', "=1+1"]
    for place, one in enumerate(ids):
        client.put(f"{API}/tags", json={"ids": [one], "tag": names[place % 3]})
    answer = client.get(f"{API}/tags.csv")
    assert answer.headers["content-disposition"].startswith("attachment")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    items = runs["copied-run"].opened.items
    assert {row["path"]: row["label"] for row in rows} == {
        items.path(place): names[place % 3] for place in range(len(ids))
    }
    file = tmp_path / "tags.csv"
    file.write_bytes(answer.content)
    assert open_dataset(images, labels=file).class_names == tuple(sorted(names))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"ids": ["5"], "tag": "x"}, 404),
        ({"ids": [], "tag": "x"}, 422),
        ({"ids": ["1"], "tag": ""}, 422),
        ({"ids": ["1"], "tag": "a\nb"}, 422),
        ({"ids": ["1"], "tag": "x" * 201}, 422),
        ({"ids": ["1"]}, 422),
    ],
)
def test_what_is_no_tag_is_refused_and_nothing_written(
    client: TestClient, finished_copy: Path, body: object, status: int
) -> None:
    answer = client.put(f"{API}/tags", json=body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert not (finished_copy / "tags").exists()


def test_while_another_writes_the_run_a_tag_is_refused(
    client: TestClient, ids: list[str], finished_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "WAIT", 0.0)
    with writer_lock(finished_copy):
        assert client.put(f"{API}/tags", json={"ids": ids[:1], "tag": "x"}).status_code == 400
    assert client.put(f"{API}/tags", json={"ids": ids[:1], "tag": "x"}).status_code == 200


def test_a_damaged_file_is_told_and_left(client: TestClient, ids: list[str], finished_copy: Path) -> None:
    client.put(f"{API}/tags", json={"ids": ids[:1], "tag": "x"})
    (path,) = (finished_copy / "tags").iterdir()
    path.write_text('{"schema": 1, "tags": {"../../etc": "x"}}')
    for answer in (client.get(f"{API}/tags"), client.put(f"{API}/tags", json={"ids": ids[:1], "tag": "y"})):
        assert answer.status_code == 400
        assert "damaged" in answer.json()["error"]
