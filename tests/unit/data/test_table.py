"""Tables of labels, groups and splits as people write them."""

import csv
import io
import json
import os
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from data_files import labels_of, png, told, write_images, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Dataset, open_dataset
from rayssl.pipeline.data.file_names import offered_by_names
from rayssl.pipeline.data.listing import Listing
from rayssl.pipeline.data.reading import Reading
from rayssl.pipeline.data.sources import find_source
from rayssl.pipeline.data.tables import Tabled, apply_tables

FLAT = [f"{i}.png" for i in range(8)]
DEEP = [f"{name}/{i}.png" for name in ("a", "b") for i in range(4)]


def tabled(folder: Path, table: Path | str = "auto", **said: Any) -> Tabled:
    reading = Reading(labels=str(table), **said)
    source = find_source(str(folder), reading)
    return apply_tables(source.listing, source.path, reading)


def read(folder: Path, table: Path | str = "auto", **said: Any) -> Listing:
    return tabled(folder, table, **said).listing


def refused(folder: Path, table: Path | str = "auto", **said: Any) -> str:
    with pytest.raises(UserError) as error:
        read(folder, table, **said)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    write_images(tmp_path / "set", FLAT)
    return tmp_path / "set"


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    write_images(tmp_path / "deep", DEEP)
    return tmp_path / "deep"


def written(tmp_path: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


SPELLINGS = {
    "same": lambda key, root: key,
    "dot": lambda key, root: f"./{key}",
    "windows": lambda key, root: ".\\" + key.replace("/", "\\"),
    "absolute": lambda key, root: f"{root}/{key}",
    "double": lambda key, root: key.replace("/", "//"),
    "decomposed": lambda key, root: unicodedata.normalize("NFD", key),
    "stem": lambda key, root: key.rpartition(".")[0],
}
ELSEWHERE = {
    "folder": lambda key, root: f"{Path(root).name}/{key}",
    "other machine": lambda key, root: f"C:\\Users\\me\\{key}".replace("/", "\\"),
    "base": lambda key, root: key.rpartition("/")[2],
}
NAMES = ["0.png", "Hände/1.png", "b/2.v1.png", "b/c/3.PNG", "b/4, 5.png", 'b/"6".png', "ß;/7.png"]


@settings(max_examples=40)
@given(st.data())
def test_rows_find_their_images_however_they_are_written(data: st.DataObject) -> None:
    classes = ["cat", "Ünit", "7", "a;b", 'say "x"', None]
    truth = {key: data.draw(st.sampled_from(classes)) for key in NAMES}
    spellings = data.draw(st.sampled_from([SPELLINGS, *({name: spell} for name, spell in ELSEWHERE.items())]))
    separator, encoding = (
        data.draw(st.sampled_from(",;\t")),
        data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
    )
    path, label = (
        data.draw(st.sampled_from(["path", "File_Name ", "image"])),
        data.draw(st.sampled_from(["label", "Class"])),
    )
    with tempfile.TemporaryDirectory() as folder:
        root = f"{folder}/data"
        write_images(Path(root), NAMES)
        rows = [
            [spellings[data.draw(st.sampled_from(sorted(spellings)))](key, root), truth[key] or ""] for key in NAMES
        ]
        text = io.StringIO()
        csv.writer(text, delimiter=separator).writerows([[path, label], *data.draw(st.permutations(rows))])
        Path(folder, "x.csv").write_bytes(text.getvalue().encode(encoding))
        assert labels_of(read(Path(root), f"{folder}/x.csv")) == truth


@pytest.mark.parametrize("rows", ["a/0.png,\nb/1.png,\n", "a/0.png,nan\n"])
def test_a_table_that_labels_no_image_leaves_none(rows: str, tmp_path: Path) -> None:
    write_images(tmp_path / "set", DEEP)
    found = read(tmp_path / "set", written(tmp_path, f"path,label\n{rows}"))
    assert found.labels is None
    assert found.class_names is None
    assert "no labels: column 'label' of" in told(found)


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["train", "Test", "val", "training", ""]), min_size=8, max_size=8))
def test_splits_are_those_of_the_table(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "data"), FLAT)
        lines = [f"{name},{word}" for name, word in zip(FLAT, words) if word]
        table = written(Path(folder), "\n".join(["path,split", *lines]))
        said = [{"Test": "test", "training": "train", "": "outside"}.get(word, word) for word in words]
        if "train" not in said:
            message = refused(Path(folder, "data"), splits=str(table))
            assert "no rows" in message or "says of no image that it is for training" in message
            return
        if "test" not in said:
            said = ["test" if word == "val" else word for word in said]
        assert read(Path(folder, "data"), splits=str(table)).splits == said


def test_splits_of_a_data_set(flat: Path, tmp_path: Path) -> None:
    lines = [f"{i}.png,{['train', 'test'][i % 2]}" for i in range(6)]
    table = written(tmp_path, "\n".join(["path,split", *lines, "9.png,train"]))
    dataset = open_dataset(str(flat), splits=str(table))
    assert dataset.test is not None
    assert sorted(dataset.test.paths) == ["1.png", "3.png", "5.png"]
    assert sorted([*dataset.train.paths, *dataset.val.paths]) == ["0.png", "2.png", "4.png"]
    assert [path for path, _ in dataset.unreadable] == ["6.png", "7.png"]
    assert dataset.idle_rows == ("9.png",)
    assert dataset.fingerprint != open_dataset(str(flat)).fingerprint
    assert ", line 2: 'holdin' is no split" in refused(flat, splits=str(written(tmp_path, "path,split\n0.png,holdin")))
    assert "says two things about 0.png" in refused(
        flat, splits=str(written(tmp_path, "path,split\n0.png,train\n./0.png,test"))
    )
    both = written(tmp_path, "path,split,group,label\n0.png,train,p,a\n1.png,test,p,b")
    assert "--data.splits" in {note.flag for note in read(flat, both).notes}
    assert "has images of the group of 1.png in both train and test" in refused(flat, both, splits=str(both))


@pytest.mark.parametrize("word", ["", "nan", "NaN", "NA", "N/A", "null", "None", "-1", "-1.0", "<NA>", "  "])
def test_one_rule_for_no_label(flat: Path, tmp_path: Path, word: str) -> None:
    found = read(flat, written(tmp_path, f"path,label\n0.png,{word}\n1.png,x\n2.png,y\n"))
    assert found.class_names == ("x", "y")
    assert labels_of(found)["0.png"] is None
    assert ("read as no label" in told(found)) == bool(word.strip())


def test_whole_numbers_that_became_fractions(flat: Path, tmp_path: Path) -> None:
    assert read(flat, written(tmp_path, "path,label\n0.png,1.0\n1.png,10.0\n2.png,\n3.png,2\n")).class_names == (
        "1",
        "2",
        "10",
    )
    found = read(flat, written(tmp_path, "path,label\n0.png,1.0\n1.png,1.5\n"))
    assert found.class_names == ("1.0", "1.5")
    assert "labels are fractions such as 1.0: each value is taken for a class" in told(found)


def test_numbers_beside_names_are_told(flat: Path, tmp_path: Path) -> None:
    rows = [f"{i}.png,{label}\n" for i, label in enumerate(["0", "1", "cat", "dog"])]
    found = read(flat, written(tmp_path, "path,label\n" + "".join(rows)))
    assert "labels are numbers (0, 1 …) and names (cat, dog …)" in told(found)
    assert "labels are numbers" not in told(read(flat, written(tmp_path, "path,label\n" + "".join(rows[1:]))))


def test_where_labels_and_splits_are_from_is_said(flat: Path, tmp_path: Path) -> None:
    table = written(tmp_path, "path,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,test\n")
    assert f"labels: column 'label' of {table}" in told(read(flat, table))
    assert f"which --data.splits {table} uses" in told(read(flat, table))
    both = told(open_dataset(flat, labels=str(table), splits=str(table)))
    assert f"labels: column 'label' of {table}" in both
    assert f"splits: column 'split' of {table}" in both
    assert "uses" not in both


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path,label\n0.png,"cat\n1.png,dog\n', "a quote is not closed, in the row that begins in line 2"),
        ('path,label\n0.png,cat\n1.png,"do"g\n', "in the row that begins in line 3"),
        ("path,label\n0.png,5," + "9" * 5000, "line 2 has 3 values and the first line 2"),
        ("path,label\n0.png," + "9" * 5000, "line 2: 'label' holds a text of 5,000 characters"),
        ("path,label,label\n0.png,a,b", "has 2 columns called 'label'"),
        ("path,class,target\n0.png,a,b", "'class' and 'target' may be the labels: choose with --data.label-column"),
        ("file,image,label\n0.png,1.png,a", "'file' and 'image' both name images: call one of them 'path'"),
        ("path,label\n", "has no rows"),
        ("", "has no rows"),
        ("path,label\n0.png,a\n./0.png,b\n", "says two things about 0.png"),
        ("path,label\n0.png,H\xe4nde\n".encode("latin-1"), "line 2 is not in utf-8, save it as UTF-8"),
        ("path,label\n0.png,a\0b", "it is no text (a NUL in line 2)"),
        (b"\xff\xfep\0a\0t", "line 1 is not in utf-16"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(flat: Path, tmp_path: Path, text: str | bytes, message: str) -> None:
    table = written(tmp_path, text)
    found = refused(flat, table)
    assert str(table) in found
    if not isinstance(text, bytes) or b"\xff" not in text:
        assert message in found


def test_what_is_no_file_does_not_hang(flat: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert "pipe.csv is not a regular file: a CSV with the columns path and label" in refused(
        flat, tmp_path / "pipe.csv"
    )
    assert "set is a folder: a CSV" in refused(flat, flat)


def test_a_long_field_beside_the_label(flat: Path, tmp_path: Path) -> None:
    long = "x" * 200_000
    table = written(tmp_path, f"path,label,text\n0.png,a,{long}\n1.png,b,\n{long}:,b,\n")
    before = csv.field_size_limit()
    assert read(flat, table).class_names == ("a", "b")
    assert csv.field_size_limit() == before


def test_a_path_that_may_be_two_images(deep: Path, tmp_path: Path) -> None:
    table = written(tmp_path, "path,label\n0.png,x\n")
    assert "'0.png' may be a/0.png or b/0.png: write the whole path" in refused(deep, table)
    write_images(deep, ["a/0.jpg"])
    table = written(tmp_path, "path,label\na/0,x\n")
    assert "'a/0' may be a/0.jpg or a/0.png: write the whole path" in refused(deep, table)
    assert labels_of(read(deep, written(tmp_path, "path,label\na/0.png,x\nb/1,y\n")))["b/1.png"] == "y"


def test_a_row_of_no_image_is_idle_and_matches_no_other(deep: Path, tmp_path: Path) -> None:
    write_images(deep, ["9.png"])
    found = tabled(deep, written(tmp_path, "path,label\n9.png,x\n0.png,y\na/1.png,y\nc/0.jpg,z\n"))
    assert found.idle == ["0.png", "c/0.jpg"]
    assert {key for key, label in labels_of(found.listing).items() if label} == {"9.png", "a/1.png"}


def test_messages_tell_unicode_forms_apart(tmp_path: Path) -> None:
    both = [unicodedata.normalize(form, "ä.png") for form in ("NFC", "NFD")]
    write_images(tmp_path / "set", both)
    if len(os.listdir(tmp_path / "set")) < 2:
        pytest.skip("this file system has one Unicode form")
    assert "may be a\\u0308.png or ä.png" in refused(
        tmp_path / "set", written(tmp_path, f"path,label\n./{both[0]},x\n./{both[1]},y\n")
    )
    table = written(tmp_path, f"path,label\n{both[0]},x\n{both[1]},y\n")
    assert labels_of(read(tmp_path / "set", table)) == {both[0]: "x", both[1]: "y"}


def test_tables_that_are_no_csv(flat: Path, tmp_path: Path) -> None:
    lines = [{"file_name": "0.png", "label": 3}, {"file_name": "1.png", "label": None, "box": [1]}]
    jsonl = written(tmp_path, "\n".join(map(json.dumps, lines)) + "\n\n", "x.jsonl")
    listed = written(tmp_path, json.dumps(lines), "x.json")
    write_parquet(tmp_path / "x.parquet", {"path": ["0.png", "1.png"], "label": [3, None], "v": [[1.0], [2.0]]})
    for table in (jsonl, listed, tmp_path / "x.parquet"):
        found = read(flat, table)
        assert {key: label for key, label in labels_of(found).items() if label is not None} == {"0.png": "3"}
    assert "cannot be read as JSON lines: " in refused(flat, written(tmp_path, "{", "x.jsonl"))
    assert "x.jsonl, line 2 is no JSON object" in refused(flat, written(tmp_path, "{}\n3\n", "x.jsonl"))


def test_a_table_without_header(flat: Path, tmp_path: Path) -> None:
    found = read(flat, written(tmp_path, "0.png,Cat\n1.png,Dog\n"))
    assert {label for label in labels_of(found).values() if label} == {"Cat", "Dog"}
    assert "has no header: its columns are taken for path and label" in told(found)
    assert "has the columns 0.png, cat, 3: path and label are needed" in refused(
        flat, written(tmp_path, "0.png,Cat,3\n")
    )


def test_a_line_that_names_the_separator(flat: Path, tmp_path: Path) -> None:
    assert read(flat, written(tmp_path, "sep=;\r\npath;label\r\n0.png;a,b\r\n")).class_names == ("a,b",)


def test_the_column_asked_for(flat: Path, tmp_path: Path) -> None:
    table = written(tmp_path, "path,label,Colour\n0.png,1,red\n1.png,2,blue\n")
    assert read(flat, table).class_names == ("1", "2")
    assert read(flat, table, label_column="Colour").class_names == ("blue", "red")
    assert tabled(flat, table).digest != tabled(flat, table, label_column="Colour").digest
    assert "--data.label-column hue" in refused(flat, table, label_column="hue")


def test_ids_that_are_names_of_images(flat: Path, tmp_path: Path) -> None:
    found = read(flat, written(tmp_path, "id,y\n0,cat\n1,dog\n"))
    assert {key: label for key, label in labels_of(found).items() if label} == {"0.png": "cat", "1.png": "dog"}
    found = read(flat, written(tmp_path, "id,file_name,y\n1,0.png,cat\n0,1.png,dog\n"), label_column="y")
    assert labels_of(found)["0.png"] == "cat"


def test_ids_are_told(tmp_path: Path) -> None:
    names = [f"{i:03d}.png" for i in range(120)]
    write_images(tmp_path / "set", names)
    found = read(tmp_path / "set", written(tmp_path, "path,label\n" + "\n".join(f"{name},{name}" for name in names)))
    assert "'label' has 120 values on 120 images: they may be ids" in told(found)


def test_the_hubs_own_table(flat: Path) -> None:
    written(flat, "file_name,label\n" + "\n".join(f"{name},{i % 2}" for i, name in enumerate(FLAT)), "metadata.csv")
    dataset: Dataset = open_dataset(str(flat))
    assert labels_of(dataset) == {name: str(i % 2) for i, name in enumerate(FLAT)}
    assert any("labels: column 'label' of" in note.text and note.guess for note in dataset.notes)
    assert open_dataset(str(flat), labels="none").class_names is None
    assert open_dataset(str(flat), labels="none").fingerprint != dataset.fingerprint
    written(flat, "file_name,text\n0.png,a cat\n", "metadata.csv")
    assert read(flat).labels is None
    assert "has no column of labels (text)" in told(read(flat))
    written(flat, 'file_name,label\n0.png,"open\n', "metadata.csv")
    assert "is not closed" in told(read(flat))


def test_the_hubs_own_tables_beside_class_folders_and_in_splits(tmp_path: Path) -> None:
    names = [f"{split}/{i}.png" for split in ("train", "test") for i in range(4)]
    write_images(tmp_path / "set", names)
    for split in ("train", "test"):
        rows = [json.dumps({"file_name": f"{i}.png", "label": i % 2}) for i in range(4)]
        written(tmp_path / "set" / split, "\n".join(rows), "metadata.jsonl")
    found = read(tmp_path / "set")
    assert labels_of(found) == {name: str(int(name[-5]) % 2) for name in names}
    assert sorted(set(found.splits)) == ["test", "train"]
    write_images(tmp_path / "deep", DEEP)
    rows = "\n".join(f"{name},{name[0].upper()}" for name in DEEP)
    written(tmp_path / "deep", f"file_name,label\n{rows}", "metadata.csv")
    assert read(tmp_path / "deep").class_names == ("a", "b")
    assert "agrees with the class folders" in told(read(tmp_path / "deep"))
    table = written(tmp_path / "deep", f"file_name,label\n{rows.replace('a/0.png,A', 'a/0.png,B')}", "metadata.csv")
    message = refused(tmp_path / "deep")
    assert "give --data.labels folder or --data.labels " in message
    assert str(table) in message
    assert read(tmp_path / "deep", "folder").class_names == ("a", "b")
    assert read(tmp_path / "deep", table).class_names == ("A", "B")


def test_labels_in_file_names_are_offered(tmp_path: Path) -> None:
    names = [f"{name}{i}.jpg" for name in ("cat.", "dog.", "Great-Dane_00") for i in range(6)]
    note = offered_by_names([f"train/{name}" for name in names])
    assert note is not None
    assert "cat (6), dog (6), great-dane (6)" in note.text
    assert (note.guess, note.flag) == (True, "--data.labels")
    note = offered_by_names([f"{i:03}_{name}.jpg" for name in ("cat", "dog") for i in range(6)])
    assert note is not None
    assert "cat (6), dog (6)" in note.text
    for others in (
        [f"{i}.jpg" for i in range(20)],
        [f"IMG_{i}.jpg" for i in range(20)],
        [f"cat{i}.jpg" for i in range(20)],
        [f"{i}_{name}.jpg" for name in ("img", "mask") for i in range(10)],
        [f"IMG_{i}.jpg" for i in range(10)] + [f"DSC{i}.jpg" for i in range(10)],
        [f"{chr(97 + i)}{i}.jpg" for i in range(20)],
        [f"{name}.jpg" for name in ("cat", "dog")],
        [],
    ):
        assert offered_by_names(others) is None
    write_images(tmp_path, names)
    assert "file names look like labels" in told(read(tmp_path))
    assert read(tmp_path).labels is None


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (["0,5", "1,5"], "labels are fractions such as 0,5"),
        (["a", "a|b"], "labels such as 'a|b' may name several classes"),
        (["['a', 'b']", "['a']"], "may name several classes"),
    ],
)
def test_labels_that_are_hardly_one_class_are_told(flat: Path, tmp_path: Path, labels: list[str], word: str) -> None:
    rows = "".join(f'{key};"{labels[i % 2]}"\n' for i, key in enumerate(read(flat).keys))
    found = read(flat, written(tmp_path, f"path;label\n{rows}"))
    assert word in "\n".join(note.text for note in found.notes)


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["train_1.png", "train_2.png", "TEST-1.png"], "file names look like splits: test (1), train (2)"),
        (["a/1.png", "a/1_mask.png", "a/1_mask_1.png"], "2 images are named like masks of others, e.g. a/1_mask.png"),
        (["trainee_1.png", "test_1.png"], ""),
        (["test_1.png", "test_2.png"], ""),
        (["a_mask.png", "b_mask.png"], ""),
    ],
)
def test_splits_and_masks_in_file_names_are_told(tmp_path: Path, names: list[str], word: str) -> None:
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(i))
    said = told(read(tmp_path))
    assert word in said
    assert bool(word) == ("file names look like splits" in said or "named like masks" in said)
