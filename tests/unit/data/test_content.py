"""A data set is known by what its files hold, not by their names, sizes and times."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from data_files import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Dataset, content, open_dataset, storage
from rayssl.pipeline.data.content import Contents, blocks_of, file_digests
from rayssl.pipeline.data.storage import Files

pytestmark = pytest.mark.usefixtures("cache")


def picture(value: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(data, "BMP")  # of one size whatever it shows
    return data.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02d}.bmp").write_bytes(picture(i))
    return folder


def tar_of(values: list[int], path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for i, value in enumerate(values):
            info = tarfile.TarInfo(f"{i:02d}.bmp")
            info.size = len(picture(value))
            tar.addfile(info, io.BytesIO(picture(value)))


def parquet_of(values: list[int], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image": {"bytes": picture(value), "path": f"{i}.bmp"}} for i, value in enumerate(values)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False, write_statistics=False)


def replace_in_place(path: Path, write: Callable[[], object]) -> None:
    """Change a file without changing its size, its time of last change or, as far as that goes, its inode."""
    before = path.stat()
    write()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def pixel_sum(dataset: Dataset) -> int:
    parts = [part for part in (dataset.train, dataset.val, dataset.test) if part is not None]
    return sum(int(part[i].astype(np.int64).sum()) for part in parts for i in range(len(part)))


@pytest.mark.parametrize("loader", ["resident", "stream"])
@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_changed_content_of_equal_size_and_time_is_another_set(kind: str, loader: str, photos: Path) -> None:
    values = list(range(20))
    if kind == "folder":
        place, file = photos, photos / "07.bmp"
        write: Callable[[], object] = lambda: file.write_bytes(picture(200))  # noqa: E731
    elif kind == "tar":
        place = file = photos.parent / "x.tar"
        tar_of(values, file)
        write = lambda: tar_of([*values[:7], 200, *values[8:]], file)  # noqa: E731
    else:
        place = file = photos.parent / "x.parquet"
        parquet_of(values, file)
        write = lambda: parquet_of([*values[:7], 200, *values[8:]], file)  # noqa: E731
    before = open_dataset(str(place), loader=loader)
    total = pixel_sum(before)
    replace_in_place(file, write)
    after = open_dataset(str(place), loader=loader)
    assert after.fingerprint != before.fingerprint
    assert after.by_names == before.by_names
    assert pixel_sum(after) - total == 193 * 8 * 8 * (after.channels)


def test_the_same_content_has_one_fingerprint_wherever_and_whenever_it_lies(photos: Path, tmp_path: Path) -> None:
    first = open_dataset(str(photos))
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(photos, copy, copy_function=shutil.copyfile)
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    assert open_dataset(str(copy)).fingerprint == first.fingerprint
    assert first.fingerprint.startswith("2:")
    (copy / "00.bmp").rename(copy / "99.bmp")
    assert open_dataset(str(copy)).fingerprint != first.fingerprint


def test_a_fingerprint_of_before_is_compared_by_names_and_sizes(photos: Path) -> None:
    dataset = open_dataset(str(photos))
    old = dataset.known_as(dataset.by_names)
    assert old is not None
    assert old.fingerprint == dataset.by_names
    assert old.cached_as() == dataset.fingerprint  # what is kept of its images still goes by content
    assert old.known_as(dataset.by_names) == old
    assert dataset.known_as(dataset.fingerprint) == dataset
    for other in ("", "2:", "f" * 64, f"2:{dataset.by_names}", dataset.fingerprint.removeprefix("2:")):
        assert dataset.known_as(other) is None


def digests_of(folder: Path) -> dict[str, bytes]:
    root, files = storage.find(str(folder))
    return {path: one.tobytes() for path, one in zip(files.paths, file_digests(root, files))}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read, as they are; files count as settled at once."""
    monkeypatch.setattr(content, "_SETTLED", -60_000_000_000)
    found: list[str] = []
    read = content._local

    def watched(root: str, files: Files) -> Callable[[int], bytes]:
        digest_of = read(root, files)

        def noted(row: int) -> bytes:
            found.append(files.paths[row])
            return digest_of(row)

        return noted

    monkeypatch.setattr(content, "_local", watched)
    return found


def test_a_file_is_read_again_only_where_its_marks_changed(photos: Path, reads: list[str]) -> None:
    first = digests_of(photos)
    assert sorted(reads) == sorted(first)
    reads.clear()
    assert digests_of(photos) == first
    assert reads == []
    os.utime(photos / "03.bmp", (5, 5))  # mtime
    (photos / "04.bmp").chmod(0o600)  # ctime alone
    shutil.copy2(photos / "05.bmp", photos / "new")
    os.replace(photos / "new", photos / "05.bmp")  # inode
    (photos / "06.bmp").write_bytes(picture(1) + b"x")  # size
    (photos / "50.bmp").write_bytes(picture(9))  # added
    (photos / "07.bmp").unlink()
    second = digests_of(photos)
    assert sorted(reads) == ["03.bmp", "04.bmp", "05.bmp", "06.bmp", "50.bmp"]
    assert {name for name in second if second[name] != first.get(name)} == {"06.bmp", "50.bmp"}
    reads.clear()
    assert digests_of(photos) == second
    assert reads == []


def test_parts_of_one_folder_do_not_forget_each_other(photos: Path, reads: list[str]) -> None:
    root, files = storage.find(str(photos))
    whole = file_digests(root, files)
    reads.clear()
    assert np.array_equal(file_digests(root, files[:5]), whole[:5])
    assert np.array_equal(file_digests(root, files.take([19, 3])), whole[[19, 3]])
    assert np.array_equal(file_digests(root, files), whole)
    assert reads == []
    assert file_digests(root, files[:0]).shape == (0, 16)


def test_what_changed_just_now_is_not_remembered(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests_of(photos)  # written within the last two seconds: its next change might not show in its times
    assert not list((cache / "facts").glob("content-*"))


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "text", "other"])
def test_a_damaged_table_is_made_anew(damage: str, photos: Path, cache: Path, reads: list[str]) -> None:
    expected = digests_of(photos)
    (table,) = (cache / "facts").glob("content-*")
    data = table.read_bytes()
    if damage == "changed":
        table.write_bytes(data[:200] + bytes(255 - byte for byte in data[200:400]) + data[400:])
    elif damage == "other":
        np.savez(table, names=np.array("x"), count=np.array(9), ids=np.zeros(3), marks=np.zeros(2), digests=np.ones(1))
    else:
        table.write_bytes({"cut": data[:300], "empty": b"", "text": b"no table"}[damage])
    reads.clear()
    assert digests_of(photos) == expected
    assert len(reads) == 20
    reads.clear()
    assert digests_of(photos) == expected
    assert reads == []


def test_what_cannot_be_read_is_somebody_elses_error(photos: Path) -> None:
    root, files = storage.find(str(photos))
    (photos / "00.bmp").unlink()
    assert file_digests(root, files).shape == (20, 16)


@given(size=st.integers(0, 1 << 34), shard=st.booleans())
def test_blocks_lie_in_the_file_and_hold_its_ends(size: int, shard: bool) -> None:
    blocks = list(blocks_of("x.TAR" if shard else "x.png", size))
    ends = [start + length for start, length in blocks]
    assert blocks[0][0] == 0
    assert ends[-1] == size
    assert all(start >= end for (start, _), end in zip(blocks[1:], ends))
    assert sum(length for _, length in blocks) <= (64 << 20 if shard else 1 << 20)
    if size <= (64 << 20 if shard else 1 << 20):
        assert blocks == [(0, size)]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_change_of_a_sampled_byte_counts(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    size = data.draw(st.sampled_from([1, 100, 1 << 20, (1 << 20) + 1, 5 << 20]))
    folder = tmp_path_factory.mktemp("file")
    file = folder / "x.png"
    file.write_bytes(bytes(size))
    before = digests_of(folder)
    start, length = data.draw(st.sampled_from(list(blocks_of("x.png", size))))
    place = start + data.draw(st.integers(0, length - 1))
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(b"\1")
    assert digests_of(folder) != before


@pytest.mark.parametrize("key", ["ETag", "etag"])
def test_an_etag_stands_for_the_content(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def files(tag: str, changed: str) -> Files:
        info = {key: tag, "LastModified": changed, "size": 3}
        return Files.sorted(["a.png"], [3], [storage._remote_stamp(info)])

    monkeypatch.setattr(storage, "read", None)  # nothing is read
    first = Contents("s3://bucket", files('"1"', "today")).digest()
    assert Contents("s3://other", files('"1"', "yesterday")).digest() == first
    assert Contents("s3://bucket", files('"2"', "today")).digest() != first


class _Untold(BaseHTTPRequestHandler):
    """A web server that tells neither sizes nor tags nor times."""

    content = b""
    endless = False

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)
        with suppress(OSError):  # the reader has gone
            while self.endless:
                self.wfile.write(bytes(1 << 16))

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def untold() -> Iterator[tuple[type[_Untold], str]]:
    """The server, to be told what it sends, and its address."""

    class Own(_Untold):
        pass

    with serving(Own) as address:
        yield Own, address


def test_a_server_that_tells_nothing_is_read_each_time(untold: tuple[type[_Untold], str], cache: Path) -> None:
    server, address = untold

    def digest_now() -> str:
        return Contents(*storage.find(f"{address}/a.png")).digest()

    server.content = b"one"
    first = digest_now()
    assert digest_now() == first
    server.content = b"two"
    assert digest_now() != first


def test_what_a_server_sends_without_end_is_refused(
    untold: tuple[type[_Untold], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, address = untold
    server.endless = True
    monkeypatch.setenv("RAYSSL_LARGEST_GB", "0.001")
    with pytest.raises(UserError, match="RAYSSL_LARGEST_GB"):
        storage.read(f"{address}/a.png")


def test_a_time_of_change_that_a_server_tells_is_trusted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {"Last-Modified": "today"}
    monkeypatch.setattr(storage, "read", lambda *_: b"one")

    def digest_now() -> str:
        return Contents("http://x", Files.sorted(["a.png"], [3], [storage._remote_stamp(sent)])).digest()

    first = digest_now()
    monkeypatch.setattr(storage, "read", lambda *_: b"two")
    assert digest_now() == first
    sent["Last-Modified"] = "tomorrow"
    assert digest_now() != first
