"""Parquet files are put together by what they mean; which column is the image and which the label."""

import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_files import labels_of, listed, png, refused, told, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from rayssl.pipeline.data import open_dataset
from rayssl.pipeline.data.columns import open_part
from rayssl.pipeline.data.parquet import _Content

Labelled = list[tuple[int, str | None]]  # number of the image, class


def images(numbers: range | list[int]) -> list[bytes]:
    return [png(number) for number in numbers]


def structs(numbers: range | list[int]) -> list[dict[str, Any]]:
    return [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]


@settings(max_examples=25)
@given(st.data())
def test_files_that_number_their_classes_differently_agree_by_name(data: st.DataObject) -> None:
    classes = data.draw(st.lists(st.sampled_from(["ant", "bee", "cat", "7", "10", "Ünit"]), min_size=2, unique=True))
    labels = st.lists(st.sampled_from([*classes, None]), min_size=1, max_size=4)
    contents: list[list[str | None]] = data.draw(st.lists(labels, min_size=1, max_size=3))
    contents[0].append(classes[0])
    truth: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n, own in enumerate(contents):
            names = data.draw(st.permutations(classes))
            kind = data.draw(st.sampled_from(["numbers", "texts"])) if n else "numbers"  # else 7 may be a number
            minus = data.draw(st.sampled_from([None, -1]))
            values: list[Any] = [minus if label is None else names.index(label) for label in own]
            if kind == "texts":  # the other Unicode form
                values = [label and unicodedata.normalize("NFD", label) for label in own]
            struct = data.draw(st.booleans())
            columns: dict[str, Any] = {"image": (structs if struct else images)(range(10 * n, 10 * n + len(own)))}
            columns = {"label": values, **columns} if data.draw(st.booleans()) else {**columns, "label": values}
            write_parquet(Path(folder, f"{n}.parquet"), columns, {"label": list(names)} if kind == "numbers" else None)
            truth |= {f"{n}.parquet/{10 * n + i if struct else i}{'.png' * struct}": own[i] for i in range(len(own))}
        found = listed(Path(folder))
        assert found.store.read(0) == png(0)
    assert labels_of(found) == truth


def test_classes_with_names_stay_as_they_are(tmp_path: Path) -> None:
    names = ["z", "a", "m", "a"]  # as in ImageNet, where two classes are called "crane"
    write_parquet(tmp_path / "train.parquet", {"image": images(range(4)), "label": [0, 1, 3, 0]}, {"label": names})
    found = listed(tmp_path)
    assert found.class_names == ("z", "a", "m", "a")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 3, 0]
    assert "1 of 4 classes that are named have no image" in told(found)
    write_parquet(tmp_path / "test.parquet", {"image": images(range(2)), "label": [0, 1]}, {"label": ["a", "z", "m"]})
    assert "number the classes of 'label' differently, and two are called 'a'" in refused(tmp_path)


def test_labels_that_are_ids_are_as_many_classes_as_occur(tmp_path: Path) -> None:
    for values, names in [
        ([2_000_000, 2_000_777] * 3, ("2000000", "2000777")),
        ([1203, 7] * 3, ("7", "1203")),
        ([2**62, 5] * 3, ("5", str(2**62))),
        ([2.0, None] * 3, ("2",)),
        (["9" * 900, "10"] * 3, ("10", "9" * 900)),
        ([True, False] * 3, ("False", "True")),
    ]:
        write_parquet(tmp_path / "a.parquet", {"image": images(range(6)), "label": values})
        found = listed(tmp_path)
        assert found.class_names == names
        spelt = [None if value is None else str(int(value) if isinstance(value, float) else value) for value in values]
        assert list(labels_of(found).values()) == spelt


def test_a_number_beyond_the_names_is_its_own_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": images(range(3)), "label": [0, 1203, 1]}, {"label": ["x", "y"]})
    found = listed(tmp_path)
    assert list(labels_of(found).values()) == ["x", "1203", "y"]
    assert "labels 1203 of column 'label' have no name in the metadata" in told(found)
    write_parquet(tmp_path / "a.parquet", {"image": images(range(3)), "label": [1, 2, 3]}, {"label": ["1", "2", "3"]})
    assert "label 3 is beyond the 3 names of classes in the metadata, one of which is '3'" in refused(tmp_path)


def test_numbers_in_one_file_and_names_in_another(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": images(range(2)), "label": [0, 1]})
    write_parquet(tmp_path / "b.parquet", {"image": images(range(2)), "label": ["cat", "dog"]})
    message = refused(tmp_path)
    assert "column 'label' holds numbers in" in message
    assert "a.parquet and names in" in message
    assert "b.parquet" in message
    assert listed(tmp_path, labels="none").labels is None
    write_parquet(tmp_path / "b.parquet", {"image": images(range(2)), "label": ["1", "0"]})
    assert list(labels_of(listed(tmp_path)).values()) == ["0", "1", "1", "0"]
    write_parquet(tmp_path / "b.parquet", {"image": images(range(2)), "label": [1, 0]}, {"label": ["cat", "dog"]})
    found = listed(tmp_path)
    assert list(labels_of(found).values()) == ["cat", "dog", "dog", "cat"]
    assert "a.parquet does not name its classes: its numbers are taken for those of b.parquet" in told(found)
    assert any(note.guess and "does not name its classes" in note.text for note in found.notes)
    write_parquet(tmp_path / "c.parquet", {"image": images(range(2)), "label": [1, 0]}, {"label": ["dog", "cat"]})
    assert "does not say which of them its numbers are" in refused(tmp_path)


def test_a_file_without_the_column_of_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", {"image": images(range(4)), "label": [0, 1, 0, 1]})
    write_parquet(tmp_path / "test.parquet", {"image": images(range(3))})
    found = listed(tmp_path)
    assert list(labels_of(found).values()) == [None] * 3 + ["0", "1", "0", "1"]
    assert "3 images without a label: test.parquet has no column 'label'" in told(found)
    write_parquet(tmp_path / "test.parquet", {"image": images(range(3)), "target": [0, 1, 0]})
    message = refused(tmp_path)
    assert "train.parquet has labels in column 'label' and" in message
    assert "test.parquet in 'target'" in message
    assert listed(tmp_path, label_column="label").labels is not None


def test_files_without_a_common_column_of_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": images(range(2))})
    write_parquet(tmp_path / "b.parquet", {"photo": images(range(2))})
    message = refused(tmp_path)
    assert "a.parquet has images in 'image' and" in message
    assert "b.parquet in 'photo'" in message
    write_parquet(tmp_path / "b.parquet", {"text": ["x"]})
    assert "b.parquet in none, only text" in refused(tmp_path)


def test_bytes_that_are_no_image_are_not_taken_for_one(tmp_path: Path) -> None:
    ids = [bytes([i]) * 16 for i in range(4)]
    write_parquet(tmp_path / "a.parquet", {"id": ids, "picture of it": images(range(4)), "hash": ids})
    found = listed(tmp_path)
    assert found.store.read(2) == png(2)
    assert "images: column 'picture of it'" in told(found)
    write_parquet(tmp_path / "a.parquet", {"id": ids, "hash": ids})
    message = refused(tmp_path)
    assert "a.parquet: no column holds images" in message
    assert "--data.image-column takes one all the same: 'id', 'hash'" in message
    write_parquet(tmp_path / "a.parquet", {"left": images(range(4)), "right": structs(range(4))})
    assert "has images in 'left', 'right': choose one with --data.image-column" in refused(tmp_path)
    assert list(labels_of(listed(tmp_path, image_column="right"))) == [f"a.parquet/{i}.png" for i in range(4)]
    assert "--data.image-column nose" in refused(tmp_path, image_column="nose")
    write_parquet(tmp_path / "a.parquet", {"mask": images(range(5, 9)), "image": images(range(4))})
    found = listed(tmp_path)
    assert found.store.read(0) == png(0)
    assert "images: column 'image'; 'mask' may be images as well" in told(found)


def test_the_columns_asked_for_are_part_of_what_the_data_are(tmp_path: Path) -> None:
    columns = {"image": images(range(4)), "thumb": images(range(4, 8)), "label": [0, 1] * 2, "colour": [0, 0, 1, 1]}
    write_parquet(tmp_path / "a.parquet", columns)
    plain = listed(tmp_path)
    assert listed(tmp_path, image_column="image", label_column="label").identity == plain.identity
    others = [listed(tmp_path, image_column="thumb"), listed(tmp_path, label_column="colour")]
    assert len({plain.identity, *(other.identity for other in others)}) == 3
    assert others[0].store.read(0) == png(4)
    assert list(labels_of(others[1]).values()) == ["0", "0", "1", "1"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([[1, 2], [3]] * 3, "list"),
        ([0.5, 1.5] * 3, "the fraction 0.5"),
        ([b"x", b"y"] * 3, "binary"),
        (["word " * 1000, "x"] * 3, "a text of 4,999 characters"),
    ],
)
def test_labels_that_are_no_classes_do_not_block(tmp_path: Path, values: list[Any], why: str) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": images(range(6)), "label": values})
    dataset = open_dataset(str(tmp_path))
    assert dataset.class_names is None
    note = next(note for note in dataset.notes if "'label'" in note.text)
    assert why in note.text
    assert (note.guess, note.flag) == (True, "--data.label-column")
    message = refused(tmp_path, label_column="label")
    assert "--data.label-column label" in message
    assert why in message
    assert "--data.label-column nose" in refused(tmp_path, label_column="nose")


def test_one_class_per_image_is_an_id(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": images([1] * 200), "label": [10**12 + i for i in range(200)]})
    found = listed(tmp_path)
    assert found.labels is None
    assert "no labels: column 'label' has 200 values on 200 images, like an id" in told(found)
    asked = listed(tmp_path, label_column="label")
    assert asked.class_names is not None
    assert len(asked.class_names) == 200


def test_what_stands_for_no_label_is_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": images(range(6)), "label": ["NA", "-1", "nan", "", " x ", "none"]})
    found = listed(tmp_path)
    assert list(labels_of(found).values()) == [None] * 4 + ["x", "none"]
    assert "column 'label': '-1' (1), 'NA' (1), 'nan' (1) read as no label" in told(found)
    assert "'none' is taken for a class" in told(found)


def test_splits_of_files_can_be_left_aside(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", {"image": images(range(2))})
    assert set(listed(tmp_path).splits) == {"train", "test"}
    assert set(listed(tmp_path, splits="none").splits) == {""}


def test_a_column_of_splits(tmp_path: Path) -> None:
    columns = {"image": images(range(6)), "split": ["train", "test", "train", "Validation", None, "train"]}
    write_parquet(tmp_path / "a.parquet", columns)
    found = listed(tmp_path)
    assert found.splits == ["train", "test", "train", "val", "outside", "train"]
    assert "splits: 'split', Validation (1), test (1), train (3)" in told(found)
    pooled = listed(tmp_path, splits="none")
    assert set(pooled.splits) == {""}
    assert pooled.identity != found.identity
    write_parquet(tmp_path / "a.parquet", columns | {"split": ["train", "test", "fold 3"] * 2})
    assert set(listed(tmp_path).splits) == {""}
    assert "'split' (fold 3 (2), test (2), train (2)) is not used" in told(listed(tmp_path))
    (tmp_path / "a.parquet").unlink()
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", columns)
    assert listed(tmp_path).splits == ["test"] * 6 + ["train"] * 6
    assert "'split' (Validation (2), test (2), train (6)) is not used" in told(listed(tmp_path))


def test_columns_of_labels_in_capitals_and_others_like_them(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": images(range(6)), "Label": ["a", "b"] * 3})
    assert listed(tmp_path).class_names == ("a", "b")
    both = {"image": images(range(6)), "coarse_label": [0, 1] * 3, "fine_label": [0, 1, 2] * 2}
    write_parquet(tmp_path / "a.parquet", both)
    found = listed(tmp_path)
    assert found.class_names == ("0", "1", "2")
    assert "labels: column 'fine_label'; there are 'coarse_label' as well" in told(found)


def test_labels_are_read_by_the_footer_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [png(i) for i in range(8)], "label": [0, 1] * 4})
    part = open_part(str(tmp_path / "a.parquet"), "a.parquet")
    footers: list[Any] = []
    real = pq.ParquetFile

    def opened(*given: Any, metadata: Any = None, **more: Any) -> Any:
        footers.append(metadata)
        return real(*given, metadata=metadata, **more)

    monkeypatch.setattr(pq, "ParquetFile", opened)
    assert _Content(part, "image", "label", None).values == [0, 1] * 4
    assert footers
    assert None not in footers
