"""Parts of files by a web server that answers as it likes."""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import serving

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import storage, web

CONTENT = bytes(range(200))


class _Server(BaseHTTPRequestHandler):
    """Sends the part that is asked for, but for what a test tells it to do."""

    content = CONTENT
    tag = '"1"'
    told = ""  # in place of the right Content-Range
    body: bytes | None = None  # in place of the right one
    ranges = True

    def do_HEAD(self) -> None:
        self._head(200, {"Content-Length": len(self.content), "ETag": self.tag, "Accept-Ranges": "bytes"})

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not self.ranges:
            body = self.content if self.body is None else self.body
            self._head(200, {"Content-Length": len(body), "ETag": self.tag})
        elif int(asked[1]) >= len(self.content):
            body = b""
            self._head(416, {"Content-Length": 0})
        else:
            first, last = int(asked[1]), min(int(asked[2]), len(self.content) - 1)
            body = self.content[first : last + 1] if self.body is None else self.body
            told = self.told or f"bytes {first}-{last}/{len(self.content)}"
            self._head(206, {"Content-Length": len(body), "Content-Range": told, "ETag": self.tag})
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def served() -> Iterator[tuple[type[_Server], str]]:
    """The server, to be told what it does, and the address of a file."""

    class Own(_Server):
        pass

    with serving(Own) as address:
        yield Own, f"{address}/a.parquet"


@pytest.mark.parametrize("ranges", [True, False])
def test_parts_are_those_that_were_asked_for(served: tuple[type[_Server], str], ranges: bool) -> None:
    server, url = served
    server.ranges = ranges
    assert storage.read(url, 10, 20) == CONTENT[10:20]
    assert storage.read(url, 190, 500) == CONTENT[190:]
    assert storage.read(url, 300, 400) == storage.read(url, 5, 5) == b""
    assert storage.read(url) == CONTENT
    with storage.open_binary(url) as file:
        assert file.read(3) == CONTENT[:3]
        assert file.seek(-5, 2) == 195
        assert file.read() == CONTENT[195:]


@pytest.mark.parametrize(
    "told",
    [
        "bytes 0-9/200",
        "bytes 11-19/200",
        "bytes 10-18/200",
        "bytes 10-25/200",
        "bytes 10-9/200",
        "items 10-19/200",
        "bytes 10-19",
        "bytes 1" + "0" * 40 + "-19/200",
    ],
)
def test_another_part_is_refused(served: tuple[type[_Server], str], told: str) -> None:
    server, url = served
    server.told = told
    with pytest.raises(UserError, match="where bytes 10-19 were asked for") as caught:
        storage.read(url, 10, 20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("body", "sent"), [(b"short", "5 bytes"), (bytes(11), "more bytes"), (b"", "0 bytes")])
def test_a_part_of_another_length_is_refused(served: tuple[type[_Server], str], body: bytes, sent: str) -> None:
    server, url = served
    server.body = body
    with pytest.raises(UserError, match=f"sends {sent} where it says 10"):
        storage.read(url, 10, 20)


def test_a_whole_file_of_another_length_is_refused(served: tuple[type[_Server], str]) -> None:
    server, url = served
    server.body = CONTENT[:50]
    with pytest.raises(UserError, match="sends 50 bytes where it says 200"):
        storage.read(url)


def test_a_file_that_changes_between_its_parts_is_refused(served: tuple[type[_Server], str]) -> None:
    server, url = served
    storage.find(url)
    assert storage.read(url, 0, 10) == CONTENT[:10]
    server.tag = '"2"'
    with pytest.raises(UserError, match="has changed while it was read"):
        storage.read(url, 10, 20)
    storage.find(url)  # listed anew, it is another file
    assert storage.read(url, 10, 20) == CONTENT[10:20]


def test_parquet_is_read_in_parts_and_refused_without_them(
    served: tuple[type[_Server], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = served
    table = pa.table({"number": range(1_000)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    server.content = sink.getvalue().to_pybytes()
    with storage.open_binary(url) as file:
        assert pq.read_table(file).equals(table)
    server.ranges = False
    monkeypatch.setattr(web, "_WHOLE", 100)
    with storage.open_binary(url) as file, pytest.raises(UserError, match="no HTTP ranges"):
        pq.read_table(file)


def test_a_file_that_ends_early_is_refused(served: tuple[type[_Server], str]) -> None:
    server, url = served
    with storage.open_binary(url) as file:
        server.content = CONTENT[:50]
        with pytest.raises(UserError, match="ends at byte 50, not at 200"):
            file.read()
