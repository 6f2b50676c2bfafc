"""A file is whole or not there at all."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from rayssl.pipeline.base.atomic import UNFINISHED
from rayssl.pipeline.base.errors import UserError, outside_fault
from rayssl.pipeline.base.files import delete, listed, move, replacing, sha256, write_json, write_text
from rayssl.pipeline.base.locks import alone, in_turn, share


def test_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    write_text(path, "second")
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with replacing(path) as temporary:
        temporary.write_text("x")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
        assert temporary.suffix not in ("", ".json")  # no reader of what a folder holds takes it for data
    assert path.read_text() == "x"


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    with replacing(path) as living:
        living.write_text("half")
        left = path.with_name(f"{living.name[: -len(UNFINISHED)]}x{UNFINISHED}")
        left.write_text("of one that was killed")
        others = tmp_path / f".a1.json.abc{UNFINISHED}"
        others.write_text("of another file")
        write_text(path, "of a second writer")
        assert living.exists()
        assert not left.exists()
        assert others.exists()
    assert path.read_text() == "half"
    assert sorted(tmp_path.iterdir()) == sorted([path, others])


class AnyBugError(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(errno.EIO, "Input/output error"), OSError),
        (RuntimeError("Error in void faiss::write_index: write error in /t/.x: No space left on device"), OSError),
        (AnyBugError("a bug"), AnyBugError),
        (OSError(errno.ENOENT, "No such file or directory", "/elsewhere"), FileNotFoundError),
    ],
)
def test_what_the_disk_does_names_the_file_that_was_meant(tmp_path: Path, raised: Exception, told: type) -> None:
    path = tmp_path / "file.bin"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path):
            raise raised

    with pytest.raises(told) as caught:
        fail()
    if told is OSError:
        line = outside_fault(caught.value)
        assert line is not None
        assert f": {path}: what is finished is kept; " in line
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"file/deep/x\.json cannot be written: .*: choose another place"):
        write_json(tmp_path / "file/deep/x.json", 1)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder\.json cannot be written: Is a directory"):
        write_json(tmp_path / "folder.json", 1)


def test_a_failed_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": [1, None, "ü"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, None, "ü"]}
    with pytest.raises(ValueError, match="float"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, None, "ü"]}


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_fault_that_stands_for_itself_is_not_the_disks() -> None:
    full = OSError(errno.ENOSPC, "full", "/x")
    for cause, told in ((full, "No space left on device: /x"), (None, None)):
        try:
            try:
                raise full
            except OSError:
                raise KeyError("a bug") from cause
        except KeyError as error:
            found = outside_fault(error)
            assert found is None if told is None else found is not None and found.startswith(told)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOMEM])
def test_what_the_system_refuses_while_a_file_is_written_is_no_fault_of_ours(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError) as caught, replacing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    line = outside_fault(caught.value)
    assert line is not None
    assert line.startswith(f"{os.strerror(number)}: {tmp_path / 'a'}: what is finished is kept; ")
    assert list(tmp_path.iterdir()) == []


def test_listed_moved_and_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert listed(folder) == []
    write_text(folder / "b" / "two.txt", "2")
    write_text(folder / "one.txt", "1")
    assert [path.name for path in listed(folder)] == ["b", "one.txt"]
    assert [path.name for path in listed(folder, "*.txt", below=True)] == ["two.txt", "one.txt"]
    write_text(tmp_path / "taken" / "file.txt", "kept")
    with pytest.raises(FileExistsError):
        move(folder, tmp_path / "taken")
    (tmp_path / "empty").mkdir()
    move(folder, tmp_path / "empty")
    assert not folder.exists()
    assert (tmp_path / "empty" / "b" / "two.txt").read_text() == "2"
    (tmp_path / "link").symlink_to(tmp_path / "taken")
    delete(tmp_path / "link")
    assert (tmp_path / "taken" / "file.txt").read_text() == "kept"
    for path in (tmp_path / "empty", tmp_path / "taken" / "file.txt", tmp_path / "never"):
        delete(path)
        assert not path.exists()


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=tmp_path.name):
        listed(tmp_path)


def test_a_lock_is_free_shared_or_held(tmp_path: Path) -> None:
    path = tmp_path / "file.lock"
    with alone(path) as free:
        assert free  # nobody can hold what is not there
    with in_turn(path), alone(path) as free:
        assert not free
    with alone(path) as free:
        assert free
    handle = os.open(path, os.O_RDONLY)
    share(handle)
    with alone(path) as free:
        assert not free
    os.close(handle)
    with alone(path) as free:
        assert free
