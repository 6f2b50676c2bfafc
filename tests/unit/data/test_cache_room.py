"""The cache stays within its limit: what was not used for the longest time goes, what a process uses stays."""

import errno
import fcntl
import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rayssl.jobs.main import main
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.data.cache import Pack, open_pack, remembered
from rayssl.pipeline.data.cache_room import Kept, clean, hold, limit, list_kept, make_room

SIDE = 100  # of the one image of a pack, which has SIDE² bytes
DAY = 86400


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAYSSL_CACHE_GB", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the limit, in packs; some bytes of a pack are not pixels."""
    return lambda packs: monkeypatch.setenv("RAYSSL_CACHE_GB", str(packs * (SIDE * SIDE + 1000) / 1e9))


def build(key: str, value: int = 7) -> Pack:
    def images() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]] | str]:
        yield np.full((SIDE, SIDE, 1), value, np.uint8)

    return open_pack(key, 1, 1, images, lambda done: None, data=f"/photos/{key}", expected=SIDE * SIDE)


def used(root: Path, key: str, days: float) -> None:
    """Make a pack look as if it had last been used so many days ago."""
    for path in (root / "packs" / f"{key}-2" / "pack.json", root / "packs" / f"{key}-2"):
        then = path.stat().st_mtime - days * DAY
        os.utime(path, (then, then))


def keys(root: Path) -> list[str]:
    return sorted(path.name.removesuffix("-2") for path in (root / "packs").iterdir() if path.is_dir())


def test_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs(tmp_path)
    assert limit(tmp_path) == min(64e9, disk.f_blocks * disk.f_frsize / 4)
    monkeypatch.setenv("RAYSSL_CACHE_GB", "1.5")
    assert limit(tmp_path) == 1.5e9
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("RAYSSL_CACHE_GB", wrong)
        with pytest.raises(UserError, match=f"RAYSSL_CACHE_GB is '{wrong}': a number of gigabytes"):
            limit(tmp_path)


def test_the_least_recently_used_goes_first(root: Path, allow: Callable[[float], None]) -> None:
    for key, days in (("a", 3), ("b", 2), ("c", 1)):
        build(key)
        used(root, key, days)
    build("a")  # used again
    allow(3)
    build("d")
    assert keys(root) == ["a", "c", "d"]
    allow(1)
    build("e")
    assert keys(root) == ["e"]
    make_room(root, 0)
    assert keys(root) == ["e"]


def test_what_is_too_large_by_itself_is_kept_while_it_is_used(root: Path, allow: Callable[[float], None]) -> None:
    allow(0.5)
    pack = build("a")
    assert keys(root) == ["a"]
    assert pack.read(0).max() == 7
    del pack
    gc.collect()
    build("b")
    assert keys(root) == ["b"]


def test_a_pack_in_use_stays(root: Path, allow: Callable[[float], None]) -> None:
    first, again = build("a"), None
    used(root, "a", 9)
    allow(1)
    build("b")
    assert keys(root) == ["a", "b"]
    again = pickle.loads(pickle.dumps(first))  # as a loader process has it
    del first
    gc.collect()
    make_room(root, 0)
    assert keys(root) == ["a"]
    assert again.read(0).max() == 7


def test_a_pack_that_another_process_uses_stays(root: Path, allow: Callable[[float], None]) -> None:
    build("a")
    allow(0)
    code = "import sys\nfrom rayssl.pipeline.data.cache import Pack\nfrom pathlib import Path\n"
    code += "p = Pack(Path(sys.argv[1]), 1)\n"
    call = [sys.executable, "-c", code + "print('open', flush=True)\nsys.stdin.read()", str(root / "packs" / "a-2")]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        make_room(root, 0)
        assert clean(root, None) == []
        assert keys(root) == ["a"]
        process.kill()  # a lock is gone with its process
    make_room(root, 0)
    assert keys(root) == []


def test_what_went_is_built_again(root: Path, allow: Callable[[float], None]) -> None:
    build("a", 1)
    allow(0)
    make_room(root, 0)
    with pytest.raises(FileNotFoundError):
        Pack(root / "packs" / "a-2", 1)
    assert build("a", 2).read(0).max() == 2


def test_a_file_that_is_replaced_while_it_is_opened_counts_as_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pack.json"
    path.write_text("old")
    lock = fcntl.flock

    def replace_first(*words: Any) -> None:
        (tmp_path / "new").write_text("new")
        os.replace(tmp_path / "new", path)
        lock(*words)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    with pytest.raises(FileNotFoundError):
        hold(path)


def test_where_files_cannot_be_locked_nothing_goes(
    root: Path, allow: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    build("a")
    allow(0)
    build("b")
    assert clean(root, None) == []
    assert keys(root) == ["a", "b"]


def test_left_overs_are_swept_but_not_those_of_a_live_builder(root: Path) -> None:
    build("a")
    for name in (".a-2-killed", ".b-2-alive", ".c-2-12-34"):
        (root / "packs" / name).mkdir()
    with (root / "packs" / "b-2.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        make_room(root, 0)
        assert keys(root) == [".b-2-alive", "a"]
    make_room(root, 0)
    assert keys(root) == ["a"]


def test_clean_keeps_what_was_used_lately_and_downloads(root: Path) -> None:
    for key, days in (("a", 10), ("b", 1)):
        build(key)
        used(root, key, days)
    remembered("old", lambda: 1)
    os.utime(root / "facts" / "old-2.json", (0, 0))
    remembered("new", lambda: 1)
    (root / "named" / "toys-1").mkdir(parents=True)
    assert [kept.place.name for kept in clean(root, 5)] == ["a-2", "old-2.json"]
    assert keys(root) == ["b"]
    assert [kept.place.name for kept in clean(root, None)] == ["b-2", "new-2.json"]
    assert [kept.kind for kept in list_kept(root)] == ["download"]


def test_facts_that_are_used_stay_young(root: Path) -> None:
    for _ in range(2):
        remembered("key", lambda: 1)
        os.utime(root / "facts" / "key-2.json", (0, 0))
    assert remembered("key", lambda: 2) == 1
    assert clean(root, 1) == []


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("L", (8, 8), i).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_auto_streams_what_would_exceed_the_limit(photos: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_CACHE_GB", "0")
    open_dataset(str(photos))
    assert not (root / "packs").exists()


def test_the_verb_lists_and_cleans(photos: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: str) -> str:
        assert main(["cache", *words]) == 0
        return capsys.readouterr().out

    assert json.loads(command("--json"))["kept"] == []
    dataset = open_dataset(str(photos), loader="resident")
    shown = json.loads(command("--json"))
    pack = next(kept for kept in shown["kept"] if kept["kind"] == "images")
    assert (shown["folder"], shown["removed"]) == (str(root), [])
    assert (pack["data"], pack["in_use"]) == (str(photos), True)
    assert pack["bytes"] >= 4 * 64
    assert f"{photos} (in use)" in command()
    assert keys(root) == [Path(pack["path"]).name.removesuffix("-2")]
    command("--clean")
    assert len(keys(root)) == 1
    assert dataset.train[0].shape == (8, 8, 1)
    del dataset
    gc.collect()
    open_dataset(str(photos), loader="resident")
    assert json.loads(command("--clean", "--older-than", "1", "--json"))["removed"] == []
    # What is known of a file is kept as soon as the file has settled, so the number of facts depends on the time.
    packs = [place for place in (root / "packs").glob("[!.]*") if place.is_dir()]
    kept = [*packs, *(root / "facts").glob("[!.]*")]
    assert {place.parent.name for place in kept} == {"packs", "facts"}
    assert command("--clean").splitlines()[-1].startswith(f"removed {len(kept)} files and folders, ")
    assert keys(root) == []
    assert json.loads(command("--json"))["kept"] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--older-than", "3"], "--older-than needs --clean"),
        (["--clean", "--older-than", "soon"], "'soon'"),
        (["--clean", "--older-than", "-1"], "-1"),
        (["--data.path", "x"], "unknown option --data.path"),
    ],
)
def test_wrong_words_remove_nothing(
    words: list[str], says: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build("a")
    assert main(["cache", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert keys(root) == ["a"]


def test_a_pack_says_whose_it_is(root: Path) -> None:
    build("a")
    (pack,) = list_kept(root)
    assert pack == Kept("images", root / "packs" / "a-2", "/photos/a", pack.bytes, pack.used, in_use=False)
    assert pack.bytes == sum(path.stat().st_size for path in pack.place.iterdir())
