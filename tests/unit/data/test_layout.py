"""What folders mean: the table of docs/data.md, and trees drawn at random with known truth."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_files import write_images
from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.data.layout import alike, file_splits, read_layout, split_words
from rayssl.pipeline.data.listing import NONE, OUTSIDE, TEST, TRAIN, VAL
from rayssl.pipeline.data.reading import Reading


def read(*folders: str, **reading: Any) -> dict[str, tuple[str, str | None]]:
    """Folder → (split, class), of folders with ten images each; "name*N" has N."""
    counts = {}
    for folder in folders:
        name, _, images = folder.partition("*")
        counts[name] = int(images or 10)
    layout = read_layout("/data", counts, Reading(**reading))
    return {folder: (layout.split_of[folder], layout.class_of[folder]) for folder in counts}


def notes(*folders: str, **reading: Any) -> str:
    found = read_layout("/data", dict.fromkeys(folders, 10), Reading(**reading)).notes
    return "\n".join(f"{'guess: ' * note.guess}{note.text}" for note in found)


CASES: list[tuple[str, list[str], dict[str, tuple[str, str | None]]]] = [
    ("flat", [""], {"": (NONE, None)}),
    ("classes", ["cat", "dog"], {"cat": (NONE, "cat"), "dog": (NONE, "dog")}),
    ("splits", ["train/a", "train/b", "test/a", "test/b"], {"train/a": (TRAIN, "a"), "test/b": (TEST, "b")}),
    ("splits without classes", ["train", "test"], {"train": (TRAIN, None), "test": (TEST, None)}),
    ("compound names", ["training_set/fist", "training_set/palm", "test_set/fist", "test_set/palm"],
     {"training_set/fist": (TRAIN, "fist"), "test_set/palm": (TEST, "palm")}),
    ("years in names", ["train2017", "val2017"], {"train2017": (TRAIN, None), "val2017": (TEST, None)}),
    ("one word", ["trainset/a", "trainset/b", "testset/a", "testset/b"], {"testset/a": (TEST, "a")}),
    ("capitals", ["Train/a", "Train/b", "TEST/a", "TEST/b"], {"Train/a": (TRAIN, "a"), "TEST/a": (TEST, "a")}),
    ("letters", ["trainA", "trainB", "testA", "testB"], {"trainA": (TRAIN, None), "testB": (TEST, None)}),
    ("a shared rest", ["cats-train", "cats-test"], {"cats-train": (TRAIN, None), "cats-test": (TEST, None)}),
    ("three splits", ["train/a", "train/b", "valid/a", "valid/b", "test/a", "test/b"], {"valid/a": (VAL, "a")}),
    ("a wrapper", ["photos/train/a", "photos/train/b", "photos/test/a", "photos/test/b"],
     {"photos/train/a": (TRAIN, "a"), "photos/test/b": (TEST, "b")}),
    ("two wrappers", ["x/y/cat", "x/y/dog"], {"x/y/cat": (NONE, "cat")}),
    ("a wrapper inside the splits", ["train/images/a", "train/images/b", "val/images/a", "val/images/b"],
     {"train/images/a": (TRAIN, "a"), "val/images/b": (TEST, "b")}),
    ("splits twice", ["train/train/a", "train/train/b", "test/test/a", "test/test/b"],
     {"train/train/a": (TRAIN, "a"), "test/test/b": (TEST, "b")}),
    ("some splits twice", ["seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test", "seg_pred/seg_pred"],
     {"seg_train/seg_train/a": (TRAIN, "a"), "seg_test/seg_test": (TEST, None), "seg_pred/seg_pred": (OUTSIDE, None)}),
    ("images of two splits in a folder each", ["train/a", "train/b", "val/images", "test/images"],
     {"val/images": (VAL, None), "test/images": (TEST, None)}),
    ("images of one split in a folder", ["train/a", "train/b", "test/images"],
     {"train/a": (TRAIN, "a"), "test/images": (TEST, None)}),
    ("a class that says nothing", ["train/old", "train/new", "test/old"], {"test/old": (TEST, "old")}),
    ("training and validation in one", ["trainval/a", "trainval/b", "test/a", "test/b"], {"trainval/a": (TRAIN, "a")}),
    ("images of splits in a folder each", ["train/images", "test/images"], {"train/images": (TRAIN, None)}),
    ("splits below classes", ["cat/train", "cat/test", "dog/train", "dog/test"],
     {"cat/train": (TRAIN, "cat"), "dog/test": (TEST, "dog")}),
    ("a class of the name of a split", ["bus", "car", "train", "bicycle"],
     {"train": (NONE, "train"), "bus": (NONE, "bus")}),
    ("a class with a split's word in it", ["test_tube", "beaker"], {"test_tube": (NONE, "test_tube")}),
    ("two of them", ["test_tube", "train_station", "car"], {"test_tube": (NONE, "test_tube")}),
    ("more beside the splits", ["train/a", "train/b", "test/a", "test/b", "extra"],
     {"train/a": (TRAIN, "a"), "extra": (OUTSIDE, None)}),
    ("a cover beside the splits", ["", "train/a", "train/b", "test/a", "test/b"], {"": (OUTSIDE, None)}),
    ("a cover beside the wrapper", ["", "p/train/a", "p/train/b", "p/test/a"], {"": (OUTSIDE, None)}),
    ("a cover beside the folder of classes", ["*1", "p/q/a", "p/q/b"], {"": (NONE, None), "p/q/a": (NONE, "a")}),
    ("loose images beside classes", ["", "a", "b"], {"": (NONE, None), "a": (NONE, "a")}),
    ("loose images in a split", ["train", "train/a", "train/b", "test/a"], {"train": (TRAIN, None)}),
    ("train alone", ["train/cat", "train/dog"], {"train/cat": (NONE, "cat")}),
    ("parts of one kind", ["train1/a", "train1/b", "train2/a", "train2/b"], {"train2/a": (NONE, "a")}),
    ("years", ["2021", "2022"], {"2021": (NONE, None)}),
    ("dates", ["2021-05-01", "2021-05-02 party"], {"2021-05-01": (NONE, None)}),
    ("months", ["January", "February 2022"], {"January": (NONE, None)}),
    ("a camera's folders", ["100CANON", "101CANON"], {"100CANON": (NONE, None)}),
    ("batches", ["batch_1", "batch_2"], {"batch_1": (NONE, None)}),
    ("folds", ["fold_0/a", "fold_0/b", "fold_1/a", "fold_1/b"], {"fold_0/a": (NONE, "a")}),
    ("all folders once more", ["x/a", "x/b", "x/x/a", "x/x/b"], {"x/a": (NONE, "a"), "x/x/a": (OUTSIDE, None)}),
    ("digits", [*"0123456789"], {"7": (NONE, "7")}),
    ("hashes", ["0a", "1b", "c3", "d4", "e5", "f6", "77", "88"], {"0a": (NONE, None)}),
    ("an image per folder", [f"item{chr(97 + i)}*1" for i in range(20)], {"itema": (NONE, None)}),
    ("deeper folders", ["fruit/apple", "fruit/pear", "milk"], {"fruit/apple": (NONE, "fruit"), "milk": (NONE, "milk")}),
    ("data beside examples", ["Dataset/0", "Dataset/1", "Examples"],
     {"Dataset/0": (NONE, "0"), "Examples": (OUTSIDE, None)}),
    ("unlabelled beside splits", ["train/a", "train/b", "test/a", "test/b", "unlabeled/x"],
     {"unlabeled/x": (TRAIN, None), "test/b": (TEST, "b")}),
    ("labelled and unlabelled", ["labeled/a", "labeled/b", "unlabeled"],
     {"labeled/a": (NONE, "a"), "unlabeled": (NONE, None)}),
    ("classes within years", ["2023/cat", "2023/dog", "2024/cat", "2024/dog"],
     {"2023/cat": (NONE, "cat"), "2024/dog": (NONE, "dog")}),
    ("years within classes", ["cat/2023", "cat/2024", "dog/2023", "dog/2024"],
     {"cat/2023": (NONE, "cat"), "dog/2024": (NONE, "dog")}),
    ("batches within classes of splits", [f"{s}/{c}/batch_{b}" for s in ("train", "test") for c in "xy" for b in "12"],
     {"train/x/batch_1": (TRAIN, "x"), "test/y/batch_2": (TEST, "y")}),
    ("images beside the years", [f"{s}{y}" for s in ("train", "test") for y in ("", "/2023/a", "/2023/b", "/2024/a",
     "/2024/b")], {"train": (TRAIN, None), "test": (TEST, None), "train/2023/a": (TRAIN, "a")}),
    ("classes within batches of splits", [f"{s}/batch_{b}/{c}" for s in ("train", "test") for b in "12" for c in "xy"],
     {"train/batch_1/x": (TRAIN, "x"), "test/batch_2/y": (TEST, "y")}),
    ("names for no label", ["cat", "dog", "nan", "-1"],
     {"cat": (NONE, "cat"), "nan": (NONE, None), "-1": (NONE, None)}),
    ("unseen in training", ["train/good", "test/good", "test/broken"], {"test/broken": (TEST, "broken")}),
]  # fmt: skip


@pytest.mark.parametrize(("folders", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_layouts(folders: list[str], expected: dict[str, tuple[str, str | None]]) -> None:
    found = read(*folders)
    assert {folder: found[folder] for folder in expected} == expected


FILES: list[tuple[list[str], list[str]]] = [
    (["train-00000-of-00002-0a1b2c3d.parquet", "train-00001-of-00002-9f8e7d6c.parquet",
      "test-00000-of-00001-aaaaaaaa.parquet"], [TRAIN, TRAIN, TEST]),
    (["data/train.parquet", "data/validation.parquet"], [TRAIN, TEST]),
    (["imagenet-train-000.tar", "imagenet-train-001.tar", "imagenet-val-000.tar"], [TRAIN, TRAIN, TEST]),
    (["train/0.tar", "train/1.tar", "test/0.tar"], [TRAIN, TRAIN, TEST]),
    (["000.tar", "001.tar"], [NONE, NONE]),
    (["set.train.parquet", "set.test.parquet"], [TRAIN, TEST]),
    (["train.snappy.parquet", "test.snappy.parquet"], [TRAIN, TEST]),
    (["train.parquet"], [NONE]),
    (["train_station.parquet", "bus.parquet"], [NONE, NONE]),
    (["train.parquet", "test.parquet", "extra.parquet"], [TRAIN, TEST, OUTSIDE]),
]  # fmt: skip


@pytest.mark.parametrize(("paths", "expected"), FILES)
def test_files_named_like_splits(paths: list[str], expected: list[str]) -> None:
    assert file_splits("/data", paths, Reading())[0] == expected
    assert set(file_splits("/data", paths, Reading(splits="none"))[0]) == {NONE}


def test_files_named_by_splits_and_other_words() -> None:
    paths = ["train_day-0.tar", "test_night-0.tar"]
    with pytest.raises(
        UserError, match=r"files named test-night, train-day.*--data\.splits folder.*--data\.splits none"
    ):
        file_splits("/data", paths, Reading())
    assert file_splits("/data", paths, Reading(splits="folder"))[0] == [TRAIN, TEST]
    assert file_splits("/data", paths, Reading(splits="none"))[0] == [NONE, NONE]


def test_files_without_a_training_part_are_refused() -> None:
    with pytest.raises(UserError, match=r"none for training: give --data\.splits none"):
        file_splits("/data", ["val.parquet", "test.parquet"], Reading())


def test_one_unicode_form() -> None:
    found = read("train/Hände", "train/Fuß", "test/Hände", "test/Fuß")
    assert found["train/Hände"][1] == found["test/Hände"][1] == "Hände"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["val/a", "val/b", "test/a", "test/b"], ["none for training", "--data.splits none", "--data.labels folder"]),
        (["train", "test", "bus"], ["train, test", "beside bus", "--data.splits folder", "--data.splits none"]),
        (["train/a", "train/b", "extras"], ["train", "beside extras", "--data.splits folder", "--data.splits none"]),
        (["cat/train", "cat/test", "dog"], ["'cat' holds train, test", "'dog' does not", "--data.splits none"]),
        (["cat/train/a", "cat/test/a", "cat/ground_truth/a", "dog/train/a", "dog/test/a"],
         ["'cat' holds train, test beside ground_truth", "--data.path '/data/cat'", "--data.splits none"]),
        (["x/train/a", "x/train/b", "x/test/a", "x/test/b", "y/train/a", "y/train/b", "y/test/a", "y/test/b"],
         ["x, y has its own", "with a, b in it", "--data.path '/data/x'", "--data.labels folder"]),
        (["real_train", "real_test", "fake_train", "fake_test"], ["path and split", "--data.splits none"]),
        (["plate_A/x", "plate_A/y", "plate_B/x", "plate_B/y"],
         ["each of plate_A, plate_B holds x, y", "--data.labels folder", "a CSV"]),
        (["train_day/a", "train_day/b", "test_night/a", "test_night/b"],
         ["train_day, test_night", "--data.splits folder", "--data.splits none"]),
        (["train-clean", "test-noisy"], ["train-clean, test-noisy", "--data.splits folder", "--data.splits none"]),
        (["", "test"], ["10 images beside the folders test", "--data.splits none", "--data.path '/data/test'"]),
        (["cat", "dog", "test/cat", "test/dog"], ["test beside cat, dog", "--data.splits folder"]),
        (["images", "masks"], ["pictures and their masks", "--data.path '/data/**/images/*'", "--data.labels folder"]),
    ],
)  # fmt: skip
def test_two_sensible_readings_are_refused(folders: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        read(*folders)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_the_options_settle_them() -> None:
    pooled = read("val/a", "val/b", "test/a", "test/b", splits="none")
    assert set(pooled.values()) == {(NONE, "a"), (NONE, "b")}
    classes = read("val/a", "test/a", splits="none", labels="folder")
    assert classes == {"val/a": (NONE, "val"), "test/a": (NONE, "test")}
    assert read("train", "test", "bus", splits="none")["train"] == (NONE, "train")
    assert read("train", "test", "bus", splits="folder")["bus"] == (OUTSIDE, None)
    assert read("train_day", "test_night", splits="folder")["test_night"] == (TEST, None)
    assert read("train", "test", "test_tube", splits="folder")["test_tube"] == (OUTSIDE, None)
    assert read("train_day", "test_night", splits="none")["test_night"] == (NONE, "test_night")
    assert read("2021", "2022", labels="folder")["2021"] == (NONE, "2021")
    assert read("cat", "dog", "nan", labels="folder")["nan"] == (NONE, "nan")
    assert read("cat", "dog", labels="none")["cat"] == (NONE, None)
    with pytest.raises(UserError, match=r"--data\.labels folder: /data has 0 class folders"):
        read("", labels="folder")
    with pytest.raises(UserError, match=r"--data\.splits folder: none of the folders"):
        read("cat", "dog", splits="folder")


GROUPS = [f"{kind}/{camera}" for kind in ("ok", "defect") for camera in ("cam1", "cam2")]
SIDES = [f"train/{kind}/{side}" for kind in ("ok", "defect") for side in ("left", "right")]


@pytest.mark.parametrize("folders", [GROUPS, SIDES])
def test_groups_that_may_be_classes_are_settled_by_what_the_refusal_names(folders: list[str], tmp_path: Path) -> None:
    names = [f"{folder}/{i}.png" for folder in folders for i in range(4)]
    write_images(tmp_path / "set", names)
    inner = [name.split("/")[-2] for name in names]
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in zip(names, inner)))
    with pytest.raises(UserError) as raised:
        open_dataset(tmp_path / "set")
    for word in ("--data.labels folder where the former", "--data.labels FILE, a CSV", "or --data.labels none"):
        assert word in str(raised.value)
    assert open_dataset(tmp_path / "set", labels="folder").class_names == ("defect", "ok")
    assert open_dataset(tmp_path / "set", labels=str(table)).class_names == tuple(sorted(set(inner)))
    assert open_dataset(tmp_path / "set", labels="none").class_names is None


def test_what_was_concluded_is_said() -> None:
    assert "guess: 2 classes are the names of folders" in notes("cat", "dog")
    assert "guess: the 2 folders (2021, 2022) look like dates" in notes("2021", "2022")
    assert "guess: 'train' is taken for a class, beside bus, car" in notes("bus", "car", "train")
    told = notes("train/a", "train/b", "test/a", "test/b", "extra")
    assert "splits are the folders train/, test/" in told
    assert "10 images in no split are left out (extra)" in told
    assert "guess: the folders in p/ are looked at; 10 images beside it are used without a label" in notes(
        "", "p/a", "p/b"
    )
    assert "guess: folders called nan read as no label: 10 images" in notes("cat", "dog", "nan")
    assert "guess: 'unknown' is taken for a class" in notes("cat", "dog", "unknown")
    told = notes("", "a/train", "a/test", "b/train", "b/test")
    assert "guess: 10 images in no split are left out (beside the folders)" in told
    assert "left out" not in notes("a/train", "a/test", "b/train", "b/test")
    assert "2 folders below the class folders are parts of these classes" in notes("a/x", "a/y", "b")


def test_names_that_are_alike() -> None:
    names = [
        "Fist",
        "fist",
        "01",
        "1",
        "Hände",
        "Hande",
        "10",
        "palm",
        "ice cream",
        "ice_cream",
        "cup",
        "cup\u200b",
        "कि",
        "क",
    ]
    assert alike(names) == [
        ("Fist", "fist"),
        ("01", "1"),
        ("Hände", "Hande"),
        ("ice cream", "ice_cream"),
        ("cup", "cup\u200b"),
    ]


WORDS = st.sampled_from(["apple", "beetle", "cup", "door", "egg", "fern", "gate", "house"])
SPLIT_NAMES = {
    TRAIN: st.sampled_from(["train", "Training", "train_set", "TRAIN-images", "train2017", "trainset"]),
    VAL: st.sampled_from(["val", "valid", "validation_set", "val2017", "dev"]),
    TEST: st.sampled_from(["test", "Testing", "test_set", "TEST", "test2017", "testdata"]),
}


@st.composite
def trees(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, tuple[str, str | None]]]:
    """Folders with their images, and what they mean."""
    classes = draw(st.lists(WORDS, min_size=2, max_size=5, unique=True))
    splits = draw(st.sampled_from([(), (TRAIN, TEST), (TRAIN, VAL), (TRAIN, VAL, TEST)]))
    wrapper = draw(st.sampled_from(["", "photos/", "a/b/"]))
    deeper = draw(st.sampled_from(["", "/raw"]))
    counts, meant = {}, {}
    for split in splits or (NONE,):
        name = f"{draw(SPLIT_NAMES[split])}/" if split else ""
        for kind in classes:
            folder = f"{wrapper}{name}{kind}{deeper}"
            counts[folder] = draw(st.integers(3, 9))
            meant[folder] = (TEST if split == VAL and TEST not in splits else split, kind)
    return counts, meant


@given(trees())
def test_random_trees(tree: tuple[dict[str, int], dict[str, tuple[str, str | None]]]) -> None:
    counts, meant = tree
    layout = read_layout("/data", counts, Reading())
    assert {folder: (layout.split_of[folder], layout.class_of[folder]) for folder in counts} == meant


@given(st.lists(WORDS, min_size=2, max_size=6, unique=True))
def test_plain_words_are_no_splits(names: list[str]) -> None:
    assert split_words(names) == {}
    assert Counter(class_of for _, class_of in read(*names).values()) == Counter(names)
