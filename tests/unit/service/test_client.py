"""The client of a server gives what the index gives; what a server must not do to it is tried on a hostile one."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import OpenerDirector

import pytest

from rayssl.jobs.main import main
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.service.app import create_app
from rayssl.pipeline.service.client import Server, connect
from rayssl.pipeline.service.guard import Names
from rayssl.pipeline.service.opened import Runs, View
from rayssl.pipeline.service.server import listening, server_of
from rayssl.pipeline.service.tokens import Door

TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def url(runs: Runs) -> Iterator[str]:
    """A real server on a port of its own, with a token."""
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        app = create_app(Runs(list(runs.by_name.values())), names=Names("127.0.0.1"), door=Door(TOKEN, port))
        server = server_of(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def test_it_answers_as_the_index_does(url: str, view: View, images: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    asked = [images / "red" / "2.png", broken, (images / "blue" / "2.png").read_bytes()]
    found = connect(url, TOKEN).search(asked, k=4)
    # By bytes, so that the first image finds itself as it does by HTTP.
    expected = view.opened.search([one if isinstance(one, bytes) else one.read_bytes() for one in asked], k=4)
    assert [one["query"] for one in found] == [str(asked[0]), str(broken), "image 3"]
    assert "not an image" in found[1]["error"]
    for one, other in zip(found, expected, strict=True):
        assert column(one, "id") == column(other, "id")
        assert column(one, "score") == pytest.approx(column(other, "score"), abs=1e-6)


def column(answer: Any, name: str) -> list[Any]:
    return [one[name] for one in answer["neighbors"]]


def test_it_asks_by_ids_and_filters(url: str, view: View) -> None:
    first, second = view.opened.items.ids[:2].tolist()
    (found,) = connect(url, TOKEN).search(like=[first], unlike=[str(second)], k=5, labels=["red"], splits=["train"])
    assert {one["label"] for one in found["neighbors"]} == {"red"}
    assert {first, second}.isdisjoint(one["id"] for one in found["neighbors"])


def test_the_command_asks_a_server(
    url: str, view: View, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(images / "green" / "2.png")
    words = ["query", "--server", url, file, "-k", "3", "--json"]
    assert main(words) == 2
    assert "401" in capsys.readouterr().err
    monkeypatch.setenv("RAYSSL_TOKEN", TOKEN)
    assert main(words) == 0
    (found,) = json.loads(capsys.readouterr().out)
    expected = view.opened.search((images / "green" / "2.png").read_bytes(), k=3)[0]["neighbors"]
    assert [one["id"] for one in found["neighbors"]] == [one["id"] for one in expected]
    assert main([*words, "--save", "a.png"]) == 2
    assert main([*words, "--run", "nowhere"]) == 2


@pytest.mark.parametrize(
    "address",
    ["ftp://h", "127.0.0.1:8000", "http://", "http://a:b@h", "http://h/?token=x", "", "http://[::1", "http://h:99999"],
)
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(UserError, match="no address"):
        connect(address)


def test_nobody_there_and_the_token_is_not_told() -> None:
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UserError, match="does not answer") as told:
        connect(f"http://127.0.0.1:{port}", TOKEN).runs()
    assert TOKEN not in str(told.value)
    assert TOKEN not in repr(connect("http://h", TOKEN))


class Hostile(BaseHTTPRequestHandler):
    """Leads elsewhere, answers nonsense."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.path.endswith("/api/runs"):
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()

    def do_POST(self) -> None:
        self.send_response(400)
        self.end_headers()
        self.wfile.write(b'{"error": "\\u001b[31mred"}')

    def log_message(self, *_: object) -> None:
        pass


def test_a_redirect_does_not_carry_the_token_away_and_words_steer_nothing() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever).start()
        client = connect(f"http://127.0.0.1:{server.server_port}", TOKEN, run="one")
        with pytest.raises(UserError, match="302"):
            client.runs()
        with pytest.raises(UserError) as told:
            client.search(like=["1"])
        server.shutdown()
    assert Hostile.seen == ["/api/runs"]
    assert "\x1b" not in str(told.value)


@pytest.mark.parametrize("answer", ["null", "{}", "[]", "3", '["a"]', "[{}]", "[" * 100_000, "<html>"])
def test_another_server_is_told_as_one(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not answer as rayssl does"):
        _asked_of(answer, monkeypatch).search([b"an image"])


@pytest.mark.parametrize(
    "neighbour",
    [
        {"id": "a"},
        {"score": "high"},
        {"rank": None},
        {"path": None},
        {"label": ["a"]},
    ],
)
def test_answers_without_what_an_answer_tells_are_refused(
    neighbour: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"id": "1", "rank": 1, "score": 0.5, "path": "a.png", "label": None}
    (found,) = _asked_of(json.dumps({"neighbors": [right]}), monkeypatch, run="one").search([b"an image"])
    assert found["neighbors"] == [{**right, "id": 1, "id_str": "1"}]
    for other in ([{**right, **neighbour}], ["a"], 3, [{}]):
        with pytest.raises(UserError, match="does not answer as rayssl does"):
            _asked_of(json.dumps({"neighbors": other}), monkeypatch, run="one").search([b"an image"])


def _asked_of(answer: str, monkeypatch: pytest.MonkeyPatch, run: str | None = None) -> Server:
    """A client whose server answers with this, whatever is asked."""
    monkeypatch.setattr(OpenerDirector, "open", lambda *_, **__: io.BytesIO(answer.encode()))
    return connect("http://127.0.0.1:8000", run=run)
