"""Tar shards: one image per key, and what the files beside it say."""

import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from data_files import labels_of, listed, png, refused, told, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from rayssl.pipeline.data.shards import split_name

STEMS = st.lists(st.text("ab.-7", min_size=1, max_size=6).filter(lambda s: s[0] != "." and s[-1] != "."), max_size=8)


@settings(max_examples=25)
@given(STEMS, st.sampled_from(["first", "last"]), st.data())
def test_one_image_per_key(stems: list[str], rule: Any, data: st.DataObject) -> None:
    stems = list(dict.fromkeys([*stems, "x"]))
    labels = {stem: data.draw(st.sampled_from(["cat", "dog", None])) for stem in stems}
    members: dict[str, bytes | str] = {f"{stem}.jpg": png(i) for i, stem in enumerate(stems)}
    members |= {f"{stem}.cls": label for stem, label in labels.items() if label is not None}
    with tempfile.TemporaryDirectory() as folder:
        write_tar(Path(folder, "a.tar"), members)
        found = listed(Path(folder), key=rule)
        pixels = [found.store.read(i) for i in range(len(found.keys))]
    by_key: dict[str, list[str]] = {}
    for stem in stems:
        by_key.setdefault(stem if rule == "last" else stem.split(".")[0], []).append(stem)
    assert len(found.keys) == len(by_key)
    shared = len(stems) - len(by_key)
    assert dict(found.passed_over).get("images that share the key of another", 0) == shared
    assert (f"{shared} images share the key of another" in told(found)) == (shared > 0)
    for key, image in zip(found.keys, pixels):
        stem = key.removeprefix("a.tar/").removesuffix(".jpg")
        assert image == png(stems.index(stem))
        name = stem.split(".")[0]
        beside = labels.get(stem) or (labels.get(name) if rule == "last" else None)
        assert labels_of(found)[key] == (labels.get(name) if rule == "first" else beside)


def test_keys() -> None:
    assert split_name("a.b/IMG_2021.05.01.jpg", "first") == ("a.b/IMG_2021", "05.01.jpg")
    assert split_name("a.b/IMG_2021.05.01.jpg", "last") == ("a.b/IMG_2021.05.01", "jpg")
    assert split_name("./.hidden.jpg", "first") == ("", "hidden.jpg")


def test_texts_of_labels_in_other_encodings(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a" / "0.tar", {"0.jpg": png(0), "0.cls": b"\xef\xbb\xbfcat\n", "1.jpg": png(1), "1.cls": "cat"}
    )
    assert set(labels_of(listed(tmp_path / "a")).values()) == {"cat"}
    latin = {"0.jpg": png(0), "0.cls": b"caf\xe9", "1.jpg": png(1), "1.cls": b"caf\xe8"}
    write_tar(tmp_path / "b" / "0.tar", latin)  # two classes, which must not become one
    found = listed(tmp_path / "b")
    assert found.labels is None
    assert "no labels: .cls holds bytes" in told(found)


def test_dots_in_names(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {f"IMG_2021.05.{i:02d}.jpg": png(i) for i in range(40)}
    members |= {f"IMG_2021.05.{i:02d}.cls": f"{i % 2}" for i in range(40)}
    write_tar(tmp_path / "a.tar", members)
    found = listed(tmp_path)
    assert found.keys == ["a.tar/IMG_2021.05.00.jpg"]
    note = found.notes[0]
    assert "39 images share the key of another and are passed over, e.g. IMG_2021.05.01.jpg beside" in note.text
    assert (note.guess, note.flag) == (True, "--data.key")
    assert dict(found.passed_over)["images that share the key of another"] == 39
    whole = listed(tmp_path, key="last")
    assert list(labels_of(whole).values()) == ["0", "1"] * 20
    assert not whole.passed_over
    assert whole.identity != found.identity


def test_left_and_right(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {}
    for i in range(4):
        members |= {f"{i}.left.jpg": png(i), f"{i}.right.jpg": png(10 + i), f"{i}.cls": "ab"[i % 2]}
    write_tar(tmp_path / "a.tar", members)
    assert listed(tmp_path).keys == [f"a.tar/{i}.left.jpg" for i in range(4)]
    right = listed(tmp_path, image_column="right.jpg")
    assert right.keys == [f"a.tar/{i}.right.jpg" for i in range(4)]
    assert right.store.read(3) == png(13)
    both = listed(tmp_path, key="last")
    assert len(both.keys) == 8
    assert list(labels_of(both).values()) == ["a", "a", "b", "b"] * 2
    assert "--data.image-column up.jpg: no image in" in refused(tmp_path, image_column="up.jpg")


def test_the_same_kind_of_image_is_taken_throughout(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {"0.depth.png": png(10), "0.jpg": png(0), "1.jpg": png(1), "1.depth.png": png(11)}
    write_tar(tmp_path / "a.tar", members)
    assert listed(tmp_path).keys == ["a.tar/0.jpg", "a.tar/1.jpg"]


def shard(numbers: range, fields: list[dict[str, Any] | str | None]) -> dict[str, bytes | str]:
    """Images with a .json, a .cls or nothing beside them."""
    members: dict[str, bytes | str] = {f"{i}.png": png(i) for i in numbers}
    for i, said in zip(numbers, fields):
        if said is not None:
            members[f"{i}.cls" if isinstance(said, str) else f"{i}.json"] = (
                said if isinstance(said, str) else json.dumps(said)
            )
    return members


def test_shards_made_at_different_times(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", shard(range(2), [{"label": "cat"}, {"label": "dog"}]))
    write_tar(tmp_path / "b.tar", shard(range(2), ["dog", "cat"]))
    write_tar(tmp_path / "c.tar", shard(range(3), [{"class": "dog", "x": [1]}, {"class": None}, None]))
    assert list(labels_of(listed(tmp_path)).values()) == ["cat", "dog", "dog", "cat", "dog", None, None]
    write_tar(tmp_path / "b.tar", shard(range(2), ["1", "0"]))
    message = refused(tmp_path)
    assert "b.tar has numbers in .cls and" in message
    assert "a.tar has names in 'label' of the .json" in message
    assert listed(tmp_path, labels="none").labels is None
    # What all shards have goes before what one of them has besides.
    write_tar(tmp_path / "a.tar", shard(range(2), [{"label": 0, "class": "cat"}, {"label": 1, "class": "dog"}]))
    (tmp_path / "b.tar").unlink()
    found = listed(tmp_path)
    assert list(labels_of(found).values()) == ["cat", "dog", "dog", None, None]
    assert "labels: 'class' of the .json; there is 'label' of the .json as well" in told(found)


def test_the_field_asked_for(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", shard(range(3), [{"label": 1, "colour": "red"}, {"colour": "blue"}, {"label": 2}]))
    found = listed(tmp_path, label_column="colour")
    assert list(labels_of(found).values()) == ["red", "blue", None]
    assert found.identity != listed(tmp_path).identity
    assert "there is no such field, only colour, label" in refused(tmp_path, label_column="cls")


def test_labels_that_are_no_classes_do_not_block(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", shard(range(2), [{"label": [1, 2]}, {"label": [3]}]))
    assert listed(tmp_path).labels is None
    assert "no labels: 'label' of the .json holds a list" in told(listed(tmp_path))
    assert "--data.label-column label: it holds a list" in refused(tmp_path, label_column="label")
    write_tar(tmp_path / "a.tar", shard(range(200), [str(10**9 + i) for i in range(200)]))
    assert "no labels: .cls has 200 values on 200 images, like an id" in told(listed(tmp_path))
    write_tar(tmp_path / "a.tar", shard(range(2), ["9" * 5000, "1"]))
    assert "no labels: .cls holds a text of 5,000 characters" in told(listed(tmp_path))
    broken: dict[str, bytes | str] = {"0.png": png(0), "0.json": '{"label": ' + "9" * 5000 + "}", "1.png": png(1)}
    write_tar(tmp_path / "a.tar", broken | {"1.json": "[" * 100_000})
    assert listed(tmp_path).labels is None


def test_labels_are_the_values_that_occur(tmp_path: Path) -> None:
    for said, names in [
        (["2000000", "2000777", "-1", "nan"], ("2000000", "2000777")),
        ([{"label": 7}, {"label": 1203}, {"label": -1}, {"label": None}], ("7", "1203")),
        ([{"label": 2**62}, {"label": 3.0}, {"label": ""}, {}], ("3", str(2**62))),
    ]:
        write_tar(tmp_path / "a.tar", shard(range(4), said))
        found = listed(tmp_path)
        assert found.class_names == names
        assert list(labels_of(found).values())[2:] == [None, None]


def test_what_is_no_image_is_counted(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {"0.png": png(0), "0.txt": "a cat", "1.txt": "a dog", "1.cls": "1", "2.mp4": "x"}
    write_tar(tmp_path / "a.tar", members)
    assert dict(listed(tmp_path).passed_over) == {
        "labels of no image": 1,
        "members of tar shards: .txt": 2,
        "members of tar shards: .mp4": 1,
    }


def test_class_folders_in_a_shard_are_offered(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"./set/{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(2)})
    found = listed(tmp_path)
    assert found.labels is None
    assert "no labels; the images lie in 2 folders (cat, dog): `folder` makes them classes" in told(found)
    assert list(labels_of(listed(tmp_path, labels="folder")).values()) == ["cat", "cat", "dog", "dog"]


def test_splits_beside_the_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", shard(range(3), [{"split": "train"}, {"split": "test"}, {"split": "train"}]))
    found = listed(tmp_path)
    assert found.splits == ["train", "test", "train"]
    assert "splits: 'split', test (1), train (2)" in told(found)
    assert set(listed(tmp_path, splits="none").splits) == {""}


def test_folders_of_splits_in_a_shard(tmp_path: Path) -> None:
    names = [f"train/train/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    write_tar(tmp_path / "a.tar", {name: png(i) for i, name in enumerate([*names, "train/test/cat/0.png"])})
    found = listed(tmp_path)
    assert found.splits == ["train"] * 4 + ["test"]
    assert "splits: folders in the shards, test (1), train (4)" in told(found)
    assert "folders (cat, dog): `folder` makes them classes" in told(found)
    assert listed(tmp_path, labels="folder").class_names == ("cat", "dog")
    pooled = listed(tmp_path, splits="none")
    assert set(pooled.splits) == {""}
    assert pooled.identity != found.identity


def test_links_in_a_shard_are_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(0)})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind in (("1.png", tarfile.LNKTYPE), ("2.png", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "0.png"
            tar.addfile(link)
    found = listed(tmp_path)
    assert len(found.keys) == 1
    assert dict(found.passed_over) == {"members of tar shards: links": 2}
