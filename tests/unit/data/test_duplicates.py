"""Images that are there twice are counted by their pixels, and told beside the figures that they flatter."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rayssl.pipeline.data import Dataset, of_classes, open_dataset, open_set
from rayssl.pipeline.data.duplicates import Duplicates, count_duplicates, pixel_hash
from rayssl.pipeline.evaluation.measure import Record, flattered, read_evaluation, write_evaluation
from rayssl.pipeline.report.results import load_runs
from rayssl.pipeline.report.table import remarks
from rayssl.pipeline.run.folder import update_manifest

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """20 training images of two classes; of 12 test images 5 are among them, in other files."""
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 6)):
        for name in ("cat", "dog"):
            folder = tmp_path / "twins" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    for name, count in (("cat", 2), ("dog", 3)):
        for i in range(count):
            picture = Image.open(tmp_path / "twins" / "train" / name / f"{i}.png")
            picture.save(tmp_path / "twins" / "test" / name / f"{i}.png", optimize=True, compress_level=0)
    return tmp_path / "twins"


def found_in(dataset: Dataset) -> Duplicates:
    found = dataset.count_duplicates()
    assert found is not None
    return found


@pytest.mark.parametrize("loader", ["resident", "stream"])
def test_test_images_that_are_in_training_are_told(loader: str, twins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for again in range(3):
        if again == 2:  # remembered
            monkeypatch.setattr(open_set, "decode_all", None)
        dataset = open_dataset(str(twins), loader=loader, val_fraction=0)
        found = found_in(dataset)
        assert (found.train, found.val, found.test) == (20, 0, 12)
        assert (found.test_in_train, found.val_in_train, found.in_test, found.repeated) == (5, 0, 0, 5)
        assert len(dataset.train) + len(dataset.test or ()) == 32  # none is dropped
        (note,) = [note for note in dataset.notes if "also in training" in note.text]
        assert note.text.startswith("5 of 12 test images are also in training")
        assert "flattered" in note.text


def test_copies_of_another_class_are_told(twins: Path) -> None:
    assert not any("one class" in note.text for note in open_dataset(str(twins)).notes)
    shutil.copy(twins / "train" / "cat" / "7.png", twins / "train" / "dog" / "cat.png")
    (note,) = [note for note in open_dataset(str(twins)).notes if "one class" in note.text]
    assert note.text.startswith("2 images are of one class and show the same as images of another")
    assert not any("one class" in note.text for note in open_dataset(str(twins), labels="none").notes)


def test_a_pack_of_before_tells_them_too(twins: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = found_in(open_dataset(str(twins), loader="resident"))
    shutil.rmtree(cache / "facts")
    monkeypatch.setattr(open_set, "decode_all", None)
    monkeypatch.setattr(open_set, "_look", lambda *given: open_set.Look(9, False, (3,), 81.0))
    assert found_in(open_dataset(str(twins), loader="resident")) == first


def test_held_out_images_count_as_well(tmp_path: Path) -> None:
    for i in range(40):  # every image twice
        path = tmp_path / "photos" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), i // 2, np.uint8)).save(path)
    dataset = open_dataset(str(tmp_path / "photos"), val_fraction=0.3)
    train, val, test = ({path: int(Path(path).stem) // 2 for path in part.paths} for part in every(dataset))
    found = found_in(dataset)
    assert found.val_in_train == sum(one in train.values() for one in val.values()) > 0
    known = {*train.values(), *val.values()}
    assert found.test_in_train == sum(one in known for one in test.values())
    assert found.repeated == 20
    assert any("validation images are also in training" in note.text for note in dataset.notes)


def every(dataset: Dataset) -> tuple[object, ...]:
    assert dataset.test is not None
    return dataset.train, dataset.val, dataset.test


def test_without_copies_nothing_is_told(twins: Path) -> None:
    shutil.rmtree(twins / "test")
    dataset = open_dataset(str(twins))
    assert found_in(dataset).repeated == 0
    assert not any("pixel by pixel" in note.text for note in dataset.notes)


def test_of_some_classes_their_copies_are_told(twins: Path) -> None:
    dataset = of_classes(open_dataset(str(twins), val_fraction=0), ["cat"])
    assert found_in(dataset).test_in_train == 2
    assert [note.text[:15] for note in dataset.notes if "also in training" in note.text] == ["2 of 12 test im"]


small = st.lists(st.integers(1, 9), max_size=12)


@given(train=small, val=small, test=small)
def test_counts_are_those_of_sets(train: list[int], val: list[int], test: list[int]) -> None:
    found = count_duplicates(*(np.array(part, dtype=np.int64) for part in (train, val, test)))
    assert found.test_in_train == sum(one in train + val for one in test)
    assert found.val_in_train == sum(one in train for one in val)
    assert found.test_in_val == sum(one in val for one in test)
    assert found.in_test == sum(test.count(one) > 1 for one in test)
    assert found.repeated == len(train + val + test) - len({*train, *val, *test})


def test_a_hash_is_of_pixels_and_shape() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixel_hash(image) == pixel_hash(np.ascontiguousarray(image[:, ::-1])[:, ::-1]) > 0
    assert pixel_hash(image) != pixel_hash(image.reshape(4, 2, 3))
    assert pixel_hash(image) != pixel_hash(image + 1)
    assert pixel_hash("damaged") == pixel_hash(image[:0]) == 0


def record(metric: str, split: str = "test", data: str = "photos") -> Record:
    return {
        "metric": metric, "value": 0.5, "protocol": "as it is", "data": data, "split": split, "checkpoint": "c",
        "seed": 0, "n": 12, "interval": None,
    }  # fmt: skip


COUNTS = {"train": 20, "val": 4, "test": 12, "val_in_train": 1, "test_in_train": 5, "in_test": 2, "repeated": 6}


def test_protocols_say_what_flatters_a_figure(tmp_path: Path) -> None:
    sizes = {"train": 20, "val": 4, "test": 12, "image_size": 8, "channels": 3, "classes": None}
    update_manifest(tmp_path, {"data": {"name": "photos", "fingerprint": "f", **sizes, "duplicates": COUNTS}})
    says = {
        one["metric"]: one["protocol"].removeprefix("as it is")
        for one in flattered(
            [
                *map(record, ("knn/top1", "baseline/hog/probe/top1", "retrieval/map@r", "health/std", "cluster/acc")),
                record("choice/x", "val"),
                record("search/knn/top1", data="others"),
            ],
            tmp_path,
        )
    }
    five = "; flattered: 5 of 12 test images are also in training"
    assert says == {
        "knn/top1": five,
        "baseline/hog/probe/top1": five,
        "retrieval/map@r": "; flattered: 2 test images are there twice",
        "health/std": "",
        "cluster/acc": "",
        "choice/x": "; flattered: 1 of 4 validation images are also in training",
        "search/knn/top1": "",
    }
    for records in ([record("knn/top1")], flattered([record("knn/top1")], tmp_path)):  # said once
        write_evaluation(tmp_path, records)
        assert read_evaluation(tmp_path)["records"][0]["protocol"] == f"as it is{five}"


def test_the_report_says_so_beside_the_figures(finished_copy: Path) -> None:
    (run,) = load_runs([finished_copy])
    assert not any("flattered" in text for text in remarks([run]))
    assert run.manifest["data"]["duplicates"]["test"] == 12
    update_manifest(finished_copy, {"data": {**run.manifest["data"], "duplicates": COUNTS}})
    told = remarks(load_runs([finished_copy]))
    assert any(text.startswith("5 of 12 test images are also in training") for text in told)
