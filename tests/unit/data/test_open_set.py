"""Options of open_dataset, and what it says when they or the data are wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Dataset, Images, open_dataset


def save(path: Path, shape: tuple[int, ...] = (6, 6, 3), value: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for i in range(20):
            save(tmp_path / "pets" / name / f"{i}.png", value=i)
    return tmp_path / "pets"


def all_parts(dataset: Dataset) -> list[Images]:
    assert dataset.test is not None
    return [dataset.train, dataset.val, dataset.test]


def test_test_is_fixed_and_validation_follows_the_seed(pets: Path) -> None:
    first, second = open_dataset(str(pets), seed=0), open_dataset(str(pets), seed=1)
    assert first.fingerprint == second.fingerprint
    assert all_parts(first)[2].paths == all_parts(second)[2].paths
    assert first.val.paths != second.val.paths
    assert open_dataset(str(pets), seed=1).val.paths == second.val.paths
    paths = [path for images in all_parts(first) for path in images.paths]
    assert len(paths) == len(set(paths)) == 40


def test_limit_takes_train_alone(pets: Path) -> None:
    whole, part = open_dataset(str(pets)), open_dataset(str(pets), limit=10, val_fraction=0.2)
    assert [len(images) for images in all_parts(part)] == [8, 2, 8]
    assert all_parts(part)[2].paths == all_parts(whole)[2].paths
    for images in (part.train, part.val):
        assert images.labels is not None
        assert np.ptp(np.bincount(images.labels)) == 0
    assert open_dataset(str(pets), limit=10, seed=1).train.paths != part.train.paths


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_small_sets_work(tmp_path: Path, n: int) -> None:
    for i in range(n):
        save(tmp_path / f"{i}.png")
    sizes = [len(images) for images in all_parts(open_dataset(str(tmp_path)))]
    assert sum(sizes) == n
    assert sizes[0] >= 1


def test_the_only_readable_image_is_trained_on(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_text("broken")
    for good in range(6):
        save(tmp_path / f"{good}.png")
        dataset = open_dataset(str(tmp_path))
        assert len(dataset.train) >= 1
        (tmp_path / f"{good}.png").write_text("broken")


def test_size_and_channels_follow_the_images(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "same" / f"{i}.png", (20, 30))
        save(tmp_path / "mixed" / f"{i}.png", (20 + i, 30))
        save(tmp_path / "large" / f"{i}.png", (300, 300))
        save(tmp_path / "colour" / f"{i}.png", (20, 30, 3) if i == 2 else (20, 30))
    found = {name: open_dataset(str(tmp_path / name)) for name in ("same", "mixed", "large", "colour")}
    assert {name: (d.image_size, d.channels) for name, d in found.items()} == {
        "same": (20, 1),
        "mixed": (224, 1),
        "large": (224, 1),
        "colour": (20, 3),
    }
    assert found["large"].train[0].shape == (256, 256, 1)
    asked = open_dataset(str(tmp_path / "colour"), image_size=7, channels=1)
    assert (asked.image_size, asked.channels) == (7, 1)
    assert asked.train.square([0], 7).shape == (1, 7, 7, 1)
    assert asked.fingerprint != found["colour"].fingerprint


def test_select(pets: Path) -> None:
    train = open_dataset(str(pets)).train
    some = train.select([4, 1])
    assert some.paths == [train.paths[4], train.paths[1]]
    assert np.array_equal(some[1], train[1])
    assert train.labels is not None
    assert some.labels is not None
    assert some.labels.tolist() == train.labels[[4, 1]].tolist()
    assert some.select(np.array([False, True])).ids.tolist() == [train.ids[1]]
    assert len(train.select([])) == 0
    assert train.select([]).square([], 6).shape == (0, 6, 6, 3)


def test_csv_gives_labels_and_groups(tmp_path: Path) -> None:
    for i in range(60):
        save(tmp_path / "data" / f"{i}.png")
    lines = ["path,label,group", *(f"./{i}.png,{[2, 10][i // 6 % 2]},{i // 3}" for i in range(59)), "59.png,,19"]
    (tmp_path / "labels.csv").write_text("\ufeff" + "\n".join(lines))
    dataset = open_dataset(str(tmp_path / "data"), labels=str(tmp_path / "labels.csv"), val_fraction=0.2)
    assert dataset.class_names == ("2", "10")
    assert dataset.unreadable == ()
    assert dataset.count_labelled() == (59, 60)
    groups = [{int(Path(path).stem) // 3 for path in images.paths} for images in all_parts(dataset)]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    for images in all_parts(dataset):
        assert images.labels is not None
        expected = [-1 if path == "59.png" else int(Path(path).stem) // 6 % 2 for path in images.paths]
        assert images.labels.tolist() == expected
    assert dataset.fingerprint != open_dataset(str(tmp_path / "data")).fingerprint


def test_test_and_validation_are_cut_from_the_labelled_images(pets: Path, tmp_path: Path) -> None:
    rows = [f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(10)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    dataset = open_dataset(str(pets), labels=str(tmp_path / "labels.csv"), val_fraction=0.25)
    assert dataset.unreadable == ()
    assert dataset.count_labelled() == (20, 40)
    assert [len(images) for images in all_parts(dataset)] == [32, 4, 4]
    train, val, test = all_parts(dataset)
    for images in (val, test):
        assert images.labels is not None
        assert np.bincount(images.labels).tolist() == [2, 2]
    positions, labels = train.labelled()
    named = [train.paths[i].split("/") for i in positions]
    assert [["cat", "dog"][label] for label in labels] == [name for name, _ in named]
    assert all(int(Path(number).stem) < 10 for _, number in named)
    assert len(positions) == 12
    fewer = open_dataset(str(pets), labels=str(tmp_path / "labels.csv"), limit=18, val_fraction=0.25)
    assert fewer.count_labelled() == (12, 22)


def test_one_group_with_and_without_labels_stays_whole(pets: Path, tmp_path: Path) -> None:
    rows = [f"{name}/{i}.png,{name if i % 2 else ''},{name}{i // 2}" for name in ("cat", "dog") for i in range(20)]
    (tmp_path / "labels.csv").write_text("path,label,group\n" + "\n".join(rows))
    dataset = open_dataset(str(pets), labels=str(tmp_path / "labels.csv"), val_fraction=0.25)
    assert dataset.count_labelled() == (20, 40)
    for images in all_parts(dataset):
        assert len(images.labelled()[0]) * 2 == len(images) > 0


def test_a_test_part_without_labels_gets_some_from_train(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog"):
        for i in range(20):
            save(tmp_path / name / f"{i}.png", value=i)
    for i in range(5):
        save(tmp_path / "test" / f"{i}.png")
    dataset = open_dataset(str(tmp_path))
    train, val, test = all_parts(dataset)
    assert dataset.class_names == ("cat", "dog")
    assert (len(train), len(val), len(test)) == (29, 3, 13)
    assert {path for path in test.paths if path.startswith("test/")} == {f"test/{i}.png" for i in range(5)}
    assert np.bincount(test.labelled()[1]).tolist() == [4, 4]
    assert not any(path.startswith("test/") for path in train.paths + val.paths)
    save(tmp_path / "test" / "cat" / "1.png")  # one label is enough for a test part of its own
    assert all(path.startswith("test/") for path in all_parts(open_dataset(str(tmp_path)))[2].paths)


def test_csv_with_groups_alone_keeps_the_folders_classes(pets: Path, tmp_path: Path) -> None:
    rows = [f"{name}/{i}.png,{name}{i // 4}" for name in ("cat", "dog") for i in range(20)]
    (tmp_path / "groups.csv").write_text("path,group\n" + "\n".join(rows))
    dataset = open_dataset(str(pets), labels=str(tmp_path / "groups.csv"))
    assert dataset.class_names == ("cat", "dog")
    assert len(all_parts(dataset)[2]) == 8


def error_of(path: Path | str, **options: object) -> str:
    with pytest.raises(UserError) as error:
        open_dataset(str(path), **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_errors_about_the_path(tmp_path: Path) -> None:
    names = "digits, scattered-digits, cifar10"
    assert f"does not exist (did you mean 'cifar10'?): give a folder, or one of {names}" in error_of("CIFAR-10")
    assert f"{tmp_path}/no does not exist: give a folder" in error_of(tmp_path / "no")
    assert f"{tmp_path}/*.tar does not exist: nothing matches" in error_of(tmp_path / "*.tar")
    assert f"{tmp_path} holds no images (0 files): JPEG, PNG" in error_of(tmp_path)
    save(tmp_path / "one.png")
    assert "one.png is one image: give a folder of images" in error_of(tmp_path / "one.png")


def test_errors_about_the_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        save(tmp_path / name)
        (tmp_path / name).write_text("no image")
    for loader in ("resident", "stream"):
        message = error_of(tmp_path, loader=loader)
        assert message == f"{tmp_path}: none of 2 images can be read, e.g. a.png: not an image, or damaged"
    (tmp_path / "x.parquet").write_text("no table")
    (tmp_path / "x.tar").write_text("no archive")
    assert "x.parquet cannot be read as parquet: " in error_of(tmp_path / "x.parquet")
    assert "x.tar cannot be read as a tar file: " in error_of(tmp_path / "x.tar")


def test_errors_about_parquet_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "x.parquet")
    assert "x.parquet has no column of images (image: struct<bytes, path> or binary), only text, label" in error_of(
        tmp_path / "x.parquet"
    )
    pq.write_table(pa.table({"image": [b"x"], "label": [0.5]}), tmp_path / "x.parquet")
    assert "--data.label-column label: the column holds the fraction 0.5, whole numbers or texts" in error_of(
        tmp_path / "x.parquet", label_column="label"
    )


def test_errors_about_options(pets: Path) -> None:
    assert error_of(pets, limit=1) == "limit is 1: at least 2 images are needed"
    assert error_of(pets, image_size=0) == "image_size is 0: at least 1 pixel"
    assert error_of(pets, channels=0) == "channels is 0: at least 1"
    assert error_of(pets, loader="fast") == "loader is 'fast': auto, resident or stream"
    assert error_of(pets, val_fraction=1.0) == "val_fraction is 1.0: at least 0 and less than 1"
    assert error_of(pets, channels=5) == f"channels is 5: the images in {pets} have 3 (1 and 3 are converted to)"


def test_errors_about_the_csv(pets: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    assert f"{table} does not exist: a CSV" in error_of(pets, labels=str(table))
    table.write_text("name,label\ncat/0.png,1\n")
    assert f"{table} has the columns name, label: path and label are needed" in error_of(pets, labels=str(table))
    table.write_text("path,colour\ncat/0.png,1\n")
    assert "has the columns path, colour: path and label" in error_of(pets, labels=str(table))
    table.write_text("path,label\npets/cow/0.png,1\n")
    assert (
        "names none of the 40 images: its paths look like 'pets/cow/0.png', the images' like 'cat/0.png'"
        in error_of(pets, labels=str(table))
    )
    table.write_text("path,label\ncat/0.png,1\n./cat/0.png,1\ncat/1.png,1\ncat/1.png,2\n")
    assert f"{table} says two things about cat/1.png: keep one of its rows" in error_of(pets, labels=str(table))
    table.write_text("path,label,x\ncat/0.png,1,3\ncat/0.png,1,5\ncat/1.png,2,1\n")  # a table of boxes
    assert open_dataset(str(pets), labels=str(table)).class_names == ("1", "2")
    for name in ("train/a", "test/a", "train/b"):
        save(tmp_path / "given" / f"{name}.png")
    table.write_text("path,label,group\ntrain/a.png,1,p7\ntest/a.png,1,p7\ntrain/b.png,2,p8\n")
    assert "has images of group 'p7' in both train and test" in error_of(tmp_path / "given", labels=str(table))


def test_a_name_that_is_no_text_is_told_by_its_bytes(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png")
    try:
        (tmp_path / "0.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    assert open_dataset(str(tmp_path)).unreadable == (("bad\\xff.png", "its name is not valid UTF-8"),)
