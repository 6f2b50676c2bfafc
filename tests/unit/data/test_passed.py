"""What lies beside the images: run folders, other kinds of files, names that are two things; all told or refused."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_run import quiet

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import Dataset, open_dataset
from rayssl.pipeline.data.concluded import facts, lines
from rayssl.pipeline.launch.plan import prepare_shown
from rayssl.pipeline.stages.start import announce


def png(seed: int, side: int = 8) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def draw(folder: Path, count: int = 6, start: int = 0, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (folder / f"{i}{suffix}").write_bytes(png(i))


def said(dataset: Dataset) -> str:
    return "\n".join(lines(dataset))


def count(dataset: Dataset) -> int:
    assert dataset.test is not None
    return len(dataset.train) + len(dataset.val) + len(dataset.test)


def write_run(folder: Path) -> None:
    """What marks a run folder, and a picture in it."""
    draw(folder / "samples", 3, start=50)
    (folder / "config.json").write_text(json.dumps({"schema": 1, "recipe": "simclr-folder", "encoder": {}}))
    (folder / "manifest.json").write_text("{}")


def test_run_folders_inside_are_left_out_and_said(tmp_path: Path) -> None:
    draw(tmp_path / "a")
    draw(tmp_path / "b", start=10)
    before = open_dataset(tmp_path)
    write_run(tmp_path / "runs" / "simclr-folder")
    (tmp_path / "race").mkdir()
    (tmp_path / "race" / "race.json").write_text("{}")
    draw(tmp_path / "race" / "frozen", 2, start=70)
    draw(tmp_path / "__MACOSX", 2, start=80)
    after = open_dataset(tmp_path)
    assert (count(after), after.class_names, after.fingerprint) == (12, ("a", "b"), before.fingerprint)
    for folder in ("runs/simclr-folder/", "race/"):
        assert f"{folder} was written by this tool: left out" in said(after)
    assert "__MACOSX/ holds a system's or another tool's files" in said(after)


def test_the_cache_inside_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a")
    draw(tmp_path / "b", start=10)
    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path / "cache"))
    open_dataset("name:digits", limit=20)  # kept as a parquet file with images
    found = open_dataset(tmp_path)
    assert (count(found), found.class_names) == (12, ("a", "b"))
    assert "cache/ was written by this tool: left out" in said(found)


def test_a_run_folder_among_the_images_is_said(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    draw(tmp_path / "a", 8)
    draw(tmp_path / "b", 8, start=10)
    config = tiny_config(changes={"data.path": str(tmp_path)})
    told: list[str] = []
    announce(prepare_shown(config, tmp_path / "runs" / "one", "rayssl pretrain", quiet()), told.append)
    assert any("the run folder lies among the images" in line for line in told)
    again = prepare_shown(config, tmp_path / "runs" / "one", "rayssl pretrain", quiet())
    assert any("runs/one/ was written by this tool" in note.text for note in again.dataset.notes)


def test_others_config_files_are_no_run(tmp_path: Path) -> None:
    draw(tmp_path / "a")
    draw(tmp_path / "b", start=10)
    (tmp_path / "a" / "config.json").write_text('{"model": "other"}')
    (tmp_path / "a" / "manifest.json").write_text("[]")
    assert count(open_dataset(tmp_path)) == 12


def test_what_is_passed_over_is_counted_by_suffix(tmp_path: Path) -> None:
    draw(tmp_path, 10)
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("a label")
    (tmp_path / "notes").write_text("no image")
    (tmp_path / "clip.mp4").write_bytes(b"\0" * 40)
    dataset = open_dataset(tmp_path)
    assert dict(dataset.passed_over) == {".txt": 3, ".mp4": 1, "files without a suffix": 1}
    assert facts(dataset)["left_out"] == {".txt": 3, ".mp4": 1, "files without a suffix": 1}
    assert "3 .txt" in said(dataset)


def test_a_pipe_that_a_pattern_fits_does_not_hang(tmp_path: Path) -> None:
    draw(tmp_path, 8)
    os.mkfifo(tmp_path / "pipe")
    assert count(open_dataset(f"{tmp_path}/*")) == 8


def test_system_folders_at_any_depth_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw(tmp_path / name, 6, start=ord(name))
        draw(tmp_path / name / "@eaDir" / "0.png", 2, start=50)
    dataset = open_dataset(tmp_path)
    assert (count(dataset), dataset.class_names) == (12, ("a", "b"))
    assert "b/@eaDir/ holds a system's or another tool's files" in said(dataset)


def test_images_without_a_known_suffix_are_read(tmp_path: Path) -> None:
    draw(tmp_path, 4)
    draw(tmp_path, 4, start=10, suffix="")
    draw(tmp_path, 4, start=20, suffix=".0")
    assert count(open_dataset(tmp_path)) == 12


def write_parquet(path: Path, images: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [png(i) for i in range(6)] if images else [f"{i}.png" for i in range(6)]
    pq.write_table(pa.table({"image" if images else "name": values}), path)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for i in range(6):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(png(i))
            tar.addfile(info, io.BytesIO(png(i)))


def test_images_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train.parquet", images=True)
    draw(tmp_path / "assets", 4)
    with pytest.raises(UserError) as raised:
        open_dataset(tmp_path)
    for words in ("4 image files (e.g. assets/0.png)", "1 parquet files (e.g. data/train.parquet)", "--data.path"):
        assert words in str(raised.value)
    assert count(open_dataset(tmp_path / "data")) == 6
    assert count(open_dataset(f"{tmp_path}/assets")) == 4


def test_an_index_beside_shards_is_no_data(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar")
    write_parquet(tmp_path / "0.parquet", images=False)
    dataset = open_dataset(tmp_path)
    assert count(dataset) == 6
    assert dict(dataset.passed_over) == {".parquet": 1}


def test_a_name_that_is_a_folder_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "digits", 5)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--data\.path digits: .* give \./digits or name:digits"):
        open_dataset("digits")
    assert count(open_dataset("./digits")) == 5
    named = open_dataset("name:digits")
    assert (count(named), named.name, named.path) == (1797, "digits", "name:digits")
    monkeypatch.chdir("/")
    assert open_dataset("digits").fingerprint == named.fingerprint


def test_what_is_tested_on_without_being_told_to_be_is_said(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 20)):
        draw(tmp_path / "plain" / name, 10, start)
        draw(tmp_path / "split" / "train" / name, 10, start)
    draw(tmp_path / "split" / "test", 5, 50)
    assert "no images are told to be for testing: 4 are drawn for it, the same share" in said(
        open_dataset(tmp_path / "plain")
    )
    told = said(open_dataset(tmp_path / "split"))
    assert "none of the 5 test images has a label: 4 labelled ones for training are tested on as well" in told
    draw(tmp_path / "split" / "test" / "a", 5, 60)
    told = said(open_dataset(tmp_path / "split"))
    assert "tested on as well" not in told
    assert "drawn for it" not in told


def test_values_are_said(tmp_path: Path) -> None:
    draw(tmp_path)
    found = open_dataset(tmp_path)
    assert "seen at 8 px, colour, values 0 to 255" in said(found)
    assert facts(found)["values"] == "0 to 255"


def test_classes_that_are_alike_or_unseen_are_told(tmp_path: Path) -> None:
    for split, names in (("train", ("Fist", "palm")), ("test", ("fist", "palm"))):
        for i, name in enumerate(names):
            draw(tmp_path / split / name, 4, start=100 * i + 10 * (split == "test"))
    told = said(open_dataset(tmp_path))
    assert "'Fist' and 'fist'" in told
    assert "4 test images are of 1 classes that training does not have ('fist')" in told
