"""Listing files: in one order everywhere, with every change noticed, and what follows from names kept."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rayssl.pipeline.base.digests import digest
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import open_dataset, open_set, sample_id, storage
from rayssl.pipeline.data.dataset import sample_ids
from rayssl.pipeline.data.storage import File, Files


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))


def found_in(folder: Path) -> Files:
    return storage.find(str(folder))[1]


def test_files_are_sorted_by_their_whole_path(tmp_path: Path) -> None:
    names = ["b", "a/x", "a-b/x", "a.c/y/z", "a.c/y.z", "a0/1", "a/ü", "a/\udcff", "A/x"]
    write(tmp_path, *names)
    assert found_in(tmp_path).paths == sorted(names)
    assert storage.find(f"{tmp_path}/*/x")[1].paths == ["A/x", "a-b/x", "a/x"]


def test_a_long_folder_is_listed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i:02d}" for i in range(25)]
    write(tmp_path, *names)
    monkeypatch.setattr(storage, "_CHUNK", 10)
    files = found_in(tmp_path)
    assert files.paths == names
    assert files.sizes.tolist() == [2] * 25
    assert [int(file.stamp) for file in files] == [os.stat(tmp_path / name).st_mtime_ns for name in names]


def test_columns_are_those_of_single_files(tmp_path: Path) -> None:
    write(tmp_path, "a/one.PNG", "b.jpg", "c.txt")
    files = found_in(tmp_path)
    one = os.stat(tmp_path / "a" / "one.PNG")
    assert files[0] == File("a/one.PNG", 9, str(one.st_mtime_ns))
    assert list(files[1:]) == [files[1], files[2]]
    assert files.ending((".png", ".jpg")).paths == ["a/one.PNG", "b.jpg"]
    assert files.identity() == digest(["a/one.PNG\x009", "b.jpg\x005", "c.txt\x005"])
    assert len(Files.sorted([], [], [])) == 0


@pytest.mark.parametrize("links", [("deep/link", "z"), ("z", "deep/link")])
def test_of_two_ways_to_a_folder_the_shorter_counts(tmp_path: Path, links: tuple[str, str]) -> None:
    write(tmp_path / "elsewhere", "x")
    write(tmp_path / "root", "deep/y")
    for link in links:
        (tmp_path / "root" / link).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "deep" / "loop").symlink_to(tmp_path / "root")
    assert found_in(tmp_path / "root").paths == ["deep/y", "z/x"]


def test_every_change_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, "a/x", "b/y")

    def state() -> tuple[str, str]:
        files = found_in(tmp_path)
        return files.identity(), files.stamp()

    before = state()
    assert state() == before
    seen = {before}
    write(tmp_path, "c")
    seen.add(state())  # added
    (tmp_path / "a" / "x").unlink()
    seen.add(state())  # removed
    (tmp_path / "b" / "y").rename(tmp_path / "b" / "z")
    seen.add(state())  # renamed
    (tmp_path / "c").write_text("longer")
    seen.add(state())  # of another size
    identity, stamp = state()
    status = os.stat(tmp_path / "c")
    os.utime(tmp_path / "c", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert state()[0] == identity
    assert state()[1] != stamp  # of the same size
    assert len(seen) == 5


def test_a_file_that_goes_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a", "b", "c")
    ask = os.stat

    def late(path: Any, **options: Any) -> os.stat_result:
        if path == "b" and (tmp_path / "b").exists():
            (tmp_path / "b").unlink()
        return ask(path, **options)

    monkeypatch.setattr(os, "stat", late)
    assert found_in(tmp_path).paths == ["a", "c"]


@pytest.mark.parametrize("call", ["scandir", "open"])
def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write(tmp_path, "a/x")

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(UserError, match=r"cannot be read: permission denied"):
        found_in(tmp_path)


def test_two_stars_at_the_end_go_into_every_folder(tmp_path: Path) -> None:
    names = ["a/b/x", "a/y", "z"]
    write(tmp_path, *names)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    for pattern in ("**", "**/**", "**/*", "**/**/*"):
        assert storage.find(f"{tmp_path}/{pattern}")[1].paths == names
    assert storage.find(f"{tmp_path}/a/**")[1].paths == ["b/x", "loop/z", "y"]


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a server is asked, which sends no part of an empty file."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/served/x": b"0123456789", "/served/empty": b""})
    asked: list[str] = []
    info, cat = memory.info, memory.cat_file

    def cat_file(path: str, **options: Any) -> Any:
        asked.append("cat")
        if path.endswith("empty"):
            raise RuntimeError("416 Range Not Satisfiable")
        return cat(path, **options)

    monkeypatch.setattr(type(memory), "info", lambda _, path, **options: asked.append("info") or info(path, **options))
    monkeypatch.setattr(type(memory), "cat_file", lambda _, path, **options: cat_file(path, **options))
    yield asked
    memory.rm("/served", recursive=True)


def test_a_remote_file_is_read_by_one_request(remote: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.read("memory://served/x") == b"0123456789"
    assert storage.read("memory://served/x", 2, 5) == b"234"
    assert remote == ["cat", "cat"]
    assert storage.read("memory://served/empty") == b""
    monkeypatch.setenv("RAYSSL_LARGEST_GB", "9e-9")
    with pytest.raises(UserError, match="RAYSSL_LARGEST_GB"):
        storage.read("memory://served/x")
    with pytest.raises(RuntimeError, match="416"):
        storage.read("memory://served/empty", 0, 5)


def test_a_part_that_is_too_large_is_not_asked_for(remote: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_LARGEST_GB", "4e-9")
    with pytest.raises(UserError, match="RAYSSL_LARGEST_GB"):
        storage.read("memory://served/x", 2, 8)
    assert remote == []


def test_a_web_server_is_asked_for_the_size_first(remote: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")  # in place of a server that sends all of a file whatever part it is asked for
    monkeypatch.setattr(storage, "_system", lambda url: (memory, "/served/x"))
    monkeypatch.setenv("RAYSSL_LARGEST_GB", "9e-9")
    with pytest.raises(UserError, match="RAYSSL_LARGEST_GB"):
        storage.read("http://somewhere/x")
    assert remote == ["info"]


def test_ids_of_many_are_those_of_each() -> None:
    keys = ["a/1.png", "ü", "\udcff", ""]
    assert sample_ids(keys).tolist() == [sample_id(key) for key in keys]
    assert sample_id("a/1.png") == 1975447216591569600  # written into embeddings: never another
    assert sample_ids([]).shape == (0,)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.new("L", (4, 4), i).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_ids_are_worked_out_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_dataset(str(photos)).train.ids
    with monkeypatch.context() as patch:
        patch.setattr(open_set, "sample_ids", None)
        assert np.array_equal(open_dataset(str(photos)).train.ids, first)
    Image.new("L", (4, 4), 9).save(photos / "9.png")
    dataset = open_dataset(str(photos))
    assert sorted(dataset.train.ids.tolist()) == sorted(map(sample_id, dataset.train.paths))


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_ids_are_worked_out_again(photos: Path, tmp_path: Path, damage: str) -> None:
    first = open_dataset(str(photos)).train.ids
    facts = (tmp_path / "cache" / "facts").glob("*.npz")
    kept = next(fact for fact in facts if first[0].tobytes() in fact.read_bytes())
    data = bytearray(kept.read_bytes())
    place = data.index(first[0].tobytes())
    data[place] ^= 0xFF
    kept.write_bytes({"cut": data[: len(data) // 2], "changed": data, "empty": b""}[damage])
    assert np.array_equal(open_dataset(str(photos)).train.ids, first)
