"""A run's images may move, be added to or change: each is told, and each has a way on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rayssl.jobs.main import main
from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.config import Config
from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.launch.plan import prepare_shown
from rayssl.pipeline.run.folder import as_recorded, read_manifest, update_manifest
from rayssl.pipeline.search.embeddings import load_embeddings
from rayssl.pipeline.search.query import query
from rayssl.pipeline.stages.start import Prepared


@pytest.fixture
def photos(images: Path, tmp_path: Path) -> Path:
    """The images of the finished run, one's own to change."""
    shutil.copytree(images, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def run(finished_copy: Path, photos: Path) -> Path:
    """The finished run, started with `photos`."""
    config = json.loads((finished_copy / "config.json").read_text())
    config["data"]["path"] = str(photos)
    write_json(finished_copy / "config.json", config)
    data = read_manifest(finished_copy)["data"]
    update_manifest(finished_copy, {"data": {**data, "path": str(photos)}})
    return finished_copy


@pytest.fixture
def moved(run: Path, photos: Path, tmp_path: Path) -> Path:
    """Where the images are now: of other times and inodes."""
    new = tmp_path / "archive" / "pictures"
    shutil.copytree(photos, new, copy_function=shutil.copyfile)
    shutil.rmtree(photos)
    return new


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


def stages(run: Path) -> dict[str, Any]:
    return {name: stage["finished"] for name, stage in read_manifest(run)["stages"].items()}


@pytest.mark.parametrize("verb", ["evaluate", "embed", "query", "report", "index"])
def test_images_that_moved_are_accepted_told_and_recorded(
    verb: str, run: Path, moved: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stages(run)
    image = [moved / "red" / "3.png"] if verb == "query" else []
    code, _, told = command(capsys, verb, run, *image, "--data.path", moved)
    assert code == 0
    assert f"are at {moved} now (they were at {photos}), and unchanged" in told
    assert configuration.load(run / "config.json").data.path == str(moved)
    data = read_manifest(run)["data"]
    assert (data["path"], data["name"], data["started"]["data.path"]) == (str(moved), "colours", str(photos))
    assert {name: stages(run)[name] for name in before} == before  # it is the same run: nothing is done again
    code, _, told = command(capsys, "embed", run)  # from now on it knows
    assert (code, "now (they were" in told) == (0, False)


@pytest.mark.parametrize("verb", ["evaluate", "embed", "probe", "finetune", "report"])
def test_without_the_new_place_the_error_names_it(
    verb: str, run: Path, moved: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "report.html").write_text("with pictures")
    if verb == "evaluate":
        (run / "evaluation.json").unlink()
    code, _, told = command(capsys, verb, run)
    assert code == 2
    assert str(photos) in told
    assert "--data.path NEW" in told
    assert (run / "report.html").read_text() == "with pictures"


def test_other_images_are_not_taken_for_those_that_moved(
    run: Path, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = moved / "red" / "0.png"
    size = file.stat().st_size
    file.write_bytes((moved / "blue" / "0.png").read_bytes()[:size].ljust(size, b"\0"))
    code, _, told = command(capsys, "evaluate", run, "--data.path", moved)
    assert code == 2
    assert "holds other images, or other labels, than" in told
    assert configuration.load(run / "config.json").data.path != str(moved)


def test_a_run_goes_on_with_images_that_moved(
    prepared: Callable[..., Prepared], tiny_config: Callable[..., Config], photos: Path, tmp_path: Path
) -> None:
    from small_run import quiet

    from rayssl.pipeline.stages.done import key_of

    first = prepared("run", changes={"data.path": str(photos)})
    key = key_of("pretrain", first.run, first.config, first.dataset)
    new = tmp_path / "new" / "other-name"
    shutil.copytree(photos, new)
    shutil.rmtree(photos)
    with pytest.raises(UserError, match=r"does not exist: bring it back, or say where it is now with --data\.path NEW"):
        prepared("run", changes={"data.path": str(photos)})
    config = tiny_config("simclr", {"data.path": str(new)})
    for _ in range(2):
        second = prepare_shown(config, tmp_path / "run", "rayssl pretrain", quiet())
        assert second.dataset.name == "photos"
        assert key_of("pretrain", second.run, second.config, second.dataset) == key
        assert read_manifest(second.run)["data"]["started"]["data.path"] == str(photos)
    shutil.copytree(new, photos)
    back = prepared("run", changes={"data.path": str(photos)})
    assert key_of("pretrain", back.run, back.config, back.dataset) == key
    assert "started" not in read_manifest(back.run)["data"]


def test_labels_are_no_place(prepared: Callable[..., Prepared]) -> None:
    prepared("run")
    with pytest.raises(UserError, match=r"holds another run: data\.labels is 'auto' there and 'folder' here"):
        prepared("run", changes={"data.labels": "folder"})


def test_a_table_among_the_images_moves_with_them(
    prepared: Callable[..., Prepared], photos: Path, tmp_path: Path
) -> None:
    from rayssl.pipeline.run.own_images import move_images

    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.glob("*/*.png"))]
    (photos / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    first = prepared("run", changes={"data.path": str(photos), "data.labels": str(photos / "labels.csv")})
    photos.rename(tmp_path / "elsewhere")
    said: list[str] = []
    move_images(first.run, str(tmp_path / "elsewhere"), said.append)
    assert len(said) == 1
    assert configuration.load(first.run / "config.json").data.labels == str(tmp_path / "elsewhere" / "labels.csv")


def test_a_run_of_before_is_compared_as_it_was(run: Path, photos: Path) -> None:
    data = read_manifest(run)["data"]
    config = configuration.load(run / "config.json").data
    dataset = open_dataset(str(photos), image_size=config.image_size, channels=config.channels)
    assert as_recorded(run, dataset).fingerprint == data["fingerprint"] == dataset.fingerprint
    update_manifest(run, {"data": {**data, "fingerprint": dataset.by_names}})
    known = as_recorded(run, dataset)
    assert (known.fingerprint, known.name) == (dataset.by_names, "colours")
    update_manifest(run, {"data": {**data, "fingerprint": "0" * 64}})
    with pytest.raises(UserError, match="has changed since"):
        as_recorded(run, dataset)


def add_image(photos: Path) -> None:
    Image.fromarray(np.full((16, 16, 3), 7, np.uint8)).save(photos / "red" / "new.png")


def test_images_that_were_added_have_a_way(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_image(photos)
    code, _, told = command(capsys, "embed", run)
    assert code == 2
    way = f"rayssl embed {run} --data.path {photos}"
    assert f"`{way}` embeds what is there now, as data of its own" in told
    code, _, told = command(capsys, *way.split()[1:])  # and it does
    assert code == 0
    (folder,) = (path for path in (run / "embeddings").glob("photos*"))
    assert folder.name == "photos"  # the run's own images are called otherwise
    assert "red/new.png" in {
        one for split in ("train", "test") for one in load_embeddings(folder / f"{split}.parquet").paths
    }
    assert (
        load_embeddings(run / "embeddings" / "colours" / "train.parquet").data_fingerprint
        != load_embeddings(folder / "train.parquet").data_fingerprint
    )
    assert command(capsys, "index", run)[0] == 0
    (found,) = query(run, [photos / "red" / "3.png"], 80 - 20, data="photos")
    assert "red/new.png" in [one["path"] for one in found["neighbors"]]


def test_how_other_images_are_read_can_be_said_and_is_kept(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, name in (("val", "red"), ("test", "blue")):  # which the refusal says --data.splits none of
        shutil.copytree(photos / name, tmp_path / "more" / split)
    words = ["embed", run, "--data.path", tmp_path / "more"]
    code, _, told = command(capsys, *words)
    assert code == 2
    assert "--data.splits none" in told
    code, out, _ = command(capsys, *words, "--data.splits", "none", "--json")
    assert code == 0
    kept = read_manifest(run)["others"]["more"]
    assert kept["reading"] == {"splits": "none"}
    assert json.loads(out.splitlines()[-1])["data"] == kept["concluded"]
    assert sum(kept["concluded"]["images"].values()) == 40
    assert command(capsys, "index", run)[0] == 0
    asked = ["query", run, photos / "green" / "3.png", "--data", "more", "-k", "2", "--save", tmp_path / "found.png"]
    assert command(capsys, *asked)[0] == 0  # whose pictures are read in the same way
    assert command(capsys, "anomalies", run, *words[2:], "--data.splits", "none")[0] == 0
    code, _, told = command(capsys, "embed", run, "--data.splits", "none")
    assert code == 2
    assert "--data.splits says how other images are read: name them with --data.path" in told


def test_a_changed_folder_of_the_runs_own_name_gets_another(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read_manifest(run)["data"]
    (run / "embeddings" / "colours").rename(run / "embeddings" / "photos")
    update_manifest(run, {"data": {**data, "name": "photos"}})
    add_image(photos)
    for _ in range(2):
        code, _, told = command(capsys, "embed", run, "--data.path", photos)
        assert (code, f"those at {photos} are photos-" in told) == (0, True)
        assert len(list((run / "embeddings").iterdir())) == 2
        add_image(photos / ".." / "photos")


def site(folder: Path, value: int, n: int = 6) -> Path:
    folder.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(np.full((16, 16, 3), value + i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_name_is_not_a_data_set(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [site(tmp_path / "a" / "new", 10), site(tmp_path / "b" / "new", 100), site(tmp_path / "a" / "猫", 30)]
    places.append(site(tmp_path / "a" / "犬", 60))
    for place in places * 2:  # the second time each replaces its own
        assert command(capsys, "embed", run, "--data.path", place)[0] == 0
    found = {path.parent.name: load_embeddings(path).data_path for path in (run / "embeddings").glob("*/train.parquet")}
    other = next(name for name, where in found.items() if where == str(places[1]))
    assert len(other.removeprefix("new-")) == 6
    del found["colours"]
    assert found == {"new": str(places[0]), other: str(places[1]), "猫": str(places[2]), "犬": str(places[3])}
    Image.new("RGB", (16, 16)).save(places[1] / "more.png")  # same path, other content: replaced
    code, _, told = command(capsys, "embed", run, "--data.path", places[1])
    assert (code, f"those at {places[1]} are {other} there" in told) == (0, True)
    assert (
        len(load_embeddings(run / "embeddings" / other / "train.parquet").ids)
        + len(load_embeddings(run / "embeddings" / other / "test.parquet").ids)
        == 7
    )
    assert command(capsys, "index", run)[0] == 0
    code, out, _ = command(capsys, "query", run, places[1] / "2.png", "-k", "3", "--data", other, "--json")
    assert code == 0
    assert all(one["path"] != "2.png" for one in json.loads(out)[0]["neighbors"])


@pytest.mark.parametrize("way", ["folder", "file", "hard", "run"])
def test_an_image_does_not_find_itself_through_a_link(way: str, run: Path, photos: Path, tmp_path: Path) -> None:
    image = photos / "red" / "3.png"
    asked = tmp_path / "link"
    if way == "folder":
        asked.symlink_to(photos)
        asked = asked / "red" / "3.png"
    elif way == "file":
        asked.symlink_to(image)
    elif way == "hard":
        os.link(image, asked)
    else:  # the run was given a link
        asked.symlink_to(photos)
        update_manifest(run, {"data": {**read_manifest(run)["data"], "path": str(asked)}})
        asked = image
    (found,) = query(run, [asked], 59)
    assert len(found["neighbors"]) == 59
    assert "red/3.png" not in [one["path"] for one in found["neighbors"]]
