"""Every kind of source gives the same images: folders, parquet, tar shards, URLs, names."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Dataset, Images, cache_dir, open_dataset, sample_id
from rayssl.pipeline.data.named import HANDED, NAMED, Made


def pixels(number: int, height: int = 6, width: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(number: int, height: int = 6, width: int = 6) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels(number, height, width)).save(data, "PNG")
    return data.getvalue()


def write(path: Path, number: int = 0, height: int = 6, width: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number, height, width))


def write_classes(folder: Path, n: int = 10, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for c, name in enumerate(classes):
        for i in range(n):
            write(folder / name / f"{i}.png", c * 100 + i)


def write_parquet(path: Path, numbers: range, labels: list[Any], names: list[str] | None, struct: bool = True) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images: list[Any] = [png(number) for number in numbers]
    if struct:
        images = [{"bytes": data, "path": f"{number}.png"} for data, number in zip(images, numbers)]
    table = pa.table({"image": images, "label": labels})
    if names is not None:
        features = {"label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def parts(dataset: Dataset) -> tuple[Images, Images, Images]:
    assert dataset.test is not None
    return dataset.train, dataset.val, dataset.test


def contents(dataset: Dataset) -> dict[str, tuple[str | None, bytes]]:
    """File name → (class name, pixels) over all parts."""
    found = {}
    for images in parts(dataset):
        for i, path in enumerate(images.paths):
            names = dataset.class_names
            name = names[images.labels[i]] if names is not None and images.labels is not None else None
            found[path.rsplit("/", 1)[-1]] = (name, images[i].tobytes())
    return found


def test_class_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets")
    dataset = open_dataset(str(tmp_path / "pets"))
    train, val, test = parts(dataset)
    assert (dataset.name, dataset.class_names, dataset.channels, dataset.image_size) == ("pets", ("cat", "dog"), 3, 6)
    assert (len(train), len(val), len(test)) == (14, 2, 4)
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [2, 2]
    for images in (train, val, test):
        assert images.labels is not None
        for i, path in enumerate(images.paths):
            name, number = path.removesuffix(".png").split("/")
            assert dataset.class_names is not None
            assert dataset.class_names[images.labels[i]] == name
            assert np.array_equal(images[i], pixels(100 * (name == "dog") + int(number)))
            assert images.ids[i] == sample_id(path) > 0
            assert images.file(i) == tmp_path / "pets" / path


def test_given_train_and_test(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", n=3)
    write(tmp_path / "cover.png")
    dataset = open_dataset(str(tmp_path))
    train, val, test = parts(dataset)
    assert (len(train), len(val), len(test)) == (18, 2, 6)
    assert all(path.startswith("test/") for path in test.paths)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.unreadable == (("cover.png", "in no split"),)


def test_validation_serves_as_test_or_stays(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "validation", n=3)
    assert {path.split("/")[0] for path in parts(open_dataset(str(tmp_path)))[2].paths} == {"validation"}
    write_classes(tmp_path / "test", n=1)
    train, val, test = parts(open_dataset(str(tmp_path)))
    assert (len(train), len(val), len(test)) == (20, 6, 2)
    assert all(path.startswith("validation/") for path in val.paths)


def test_flat_nested_and_one_class_are_unlabelled(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "flat" / f"{i}.png", i)
        write(tmp_path / "one" / "a" / "b" / f"{i}.png", i)
    for name in ("flat", "one"):
        dataset = open_dataset(str(tmp_path / name))
        assert dataset.class_names is None
        assert [images.labels for images in parts(dataset)] == [None] * 3
        assert len(parts(dataset)[2]) == 1


def test_images_outside_of_the_class_folders_have_no_label(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets")
    write(tmp_path / "pets" / "loose.png", 7)
    write_classes(tmp_path / "given" / "train")
    write_classes(tmp_path / "given" / "test", n=3)
    write(tmp_path / "given" / "train" / "loose.png", 7)
    for name in ("pets", "given"):
        dataset = open_dataset(str(tmp_path / name))
        assert dataset.class_names == ("cat", "dog")
        assert dataset.unreadable == ()
        assert dataset.train.labels is not None
        unlabelled = [path for path, label in zip(dataset.train.paths, dataset.train.labels) if label < 0]
        assert [path.rsplit("/")[-1] for path in unlabelled] == ["loose.png"]


def test_hidden_files_and_links(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", n=2)
    write(tmp_path / "pets" / ".trash" / "x.png")
    write(tmp_path / "pets" / "cat" / "._0.png")
    (tmp_path / "pets" / "dog" / "again").symlink_to(tmp_path / "pets")  # a loop
    (tmp_path / "pets" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert sum(len(images) for images in parts(open_dataset(str(tmp_path / "pets")))) == 4


def test_ids_and_parts_survive_added_files(tmp_path: Path) -> None:
    write_classes(tmp_path, n=20)
    before = {path: i for images in parts(open_dataset(str(tmp_path))) for path, i in zip(images.paths, images.ids)}
    write_classes(tmp_path, n=1, classes=("ant",))
    after = {path: i for images in parts(open_dataset(str(tmp_path))) for path, i in zip(images.paths, images.ids)}
    assert len(before) == 40
    assert len(after) == 41
    assert before.items() <= after.items()


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_files(tmp_path: Path, struct: bool) -> None:
    folder = tmp_path / "hub" / "data"
    write_parquet(folder / "train-00000-of-00002.parquet", range(7), [0, 1] * 3 + [0], ["ant", "bee"], struct)
    write_parquet(folder / "train-00001-of-00002.parquet", range(7, 10), [1, 0, 1], ["ant", "bee"], struct)
    write_parquet(folder / "test-00000-of-00001.parquet", range(10, 14), [0, 1, 0, 1], ["ant", "bee"], struct)
    dataset = open_dataset(str(tmp_path / "hub"))
    train, val, test = parts(dataset)
    assert (len(train), len(val), len(test)) == (9, 1, 4)
    assert dataset.class_names == ("ant", "bee")
    assert test.labels is not None
    assert test.labels.tolist() == [0, 1, 0, 1]
    assert [np.array_equal(test[i], pixels(10 + i)) for i in range(4)] == [True] * 4
    assert test.paths[2] == "data/test-00000-of-00001.parquet/" + ("12.png" if struct else "2")
    assert test.file(0) is None
    one = open_dataset(str(folder / "train-00000-of-00002.parquet"), loader="stream")
    assert one.name == "data-train-00000-of-00002"
    assert sum(len(images) for images in parts(one)) == 7


def test_parquet_with_text_labels_and_hidden_ones(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", range(6), ["x", "y", "x", None, "x", "y"], None)
    dataset = open_dataset(str(tmp_path))
    assert dataset.class_names == ("x", "y")
    assert dataset.unreadable == ()
    assert dataset.count_labelled() == (5, 6)
    assert "a.parquet/3.png" in dataset.train.paths
    for labels in ([-1] * 3 + [1, 2, 1], [None] * 3 + [1.0, 2.0, 1.0], [float("nan")] * 3 + [1.0, 2.0, 1.0]):
        write_parquet(tmp_path / "a.parquet", range(6), labels, None)
        dataset = open_dataset(str(tmp_path))
        assert dataset.class_names == ("1", "2")
        assert dataset.count_labelled() == (3, 6)
    for labels in ([-1] * 6, [None] * 6):
        write_parquet(tmp_path / "a.parquet", range(6), labels, ["x", "y"])
        dataset = open_dataset(str(tmp_path))
        assert dataset.class_names is None
        assert [images.labels for images in parts(dataset)] == [None] * 3


def test_tar_shards(tmp_path: Path) -> None:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(5):
            key = f"{shard}{i}"
            members[f"{key}.PNG" if i else f"{key}.png"] = png(10 * shard + i)
            members[f"{key}.cls" if shard else f"{key}.json"] = (
                str(i % 2).encode() if shard else json.dumps({"label": i % 2}).encode()
            )
        write_tar(tmp_path / f"train-{shard:03d}.tar", members)
    patterns = [str(tmp_path), f"{tmp_path}/train-*.tar", f"{tmp_path}/train-{{000..001}}.tar"]
    for pattern, loader in zip(patterns, ["resident", "stream", "auto"]):
        dataset = open_dataset(pattern, loader=loader)
        expected = {
            f"{s}{i}.{'PNG' if i else 'png'}": (str(i % 2), pixels(10 * s + i).tobytes())
            for s in range(2)
            for i in range(5)
        }
        assert contents(dataset) == expected
    members = {f"{i}.png": png(i) for i in range(12)} | {f"{i}.cls": str(i % 2).encode() for i in range(10)}
    write_tar(tmp_path / "some.tar", members)
    dataset = open_dataset(f"{tmp_path}/some.tar")
    assert dataset.unreadable == ()
    assert dataset.count_labelled() == (10, 12)
    assert {"some.tar/10.png", "some.tar/11.png"} <= set(dataset.train.paths)
    with pytest.raises(UserError, match=r"train-00\{1,7\}\.tar|train-007\.tar does not exist"):
        open_dataset(f"{tmp_path}/train-00{{1,7}}.tar")


def test_urls_read_like_the_folder(tmp_path: Path) -> None:
    import fsspec

    write_classes(tmp_path / "pets", n=4)
    write_parquet(tmp_path / "p.parquet", range(6), [0, 1] * 3, ["ant", "bee"])
    write_tar(tmp_path / "s.tar", {f"{i}.png": png(i) for i in range(5)})
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/bucket", recursive=True)
    try:
        for name in ("pets", "p.parquet", "s.tar", "*.tar"):
            local = open_dataset(str(tmp_path / name))
            for url in (f"memory://bucket/{name}", f"file://{tmp_path}/{name}"):
                for loader in ("resident", "stream"):
                    remote = open_dataset(url, loader=loader)
                    assert remote.fingerprint == local.fingerprint
                    assert contents(remote) == contents(local)
                    assert remote.train.ids.tolist() == local.train.ids.tolist()
        assert open_dataset("memory://bucket/pets").train.file(0) is None
        with pytest.raises(UserError, match="memory://bucket/nothing does not exist"):
            open_dataset("memory://bucket/nothing")
    finally:
        memory.rm("/bucket", recursive=True)
    with pytest.raises(UserError, match="nosuch://x cannot be opened"):
        open_dataset("nosuch://x")


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    dataset = open_dataset("digits")
    train, val, test = parts(dataset)
    assert (dataset.name, dataset.path, dataset.channels, dataset.image_size) == ("digits", "digits", 1, 8)
    assert (len(train), len(val), len(test)) == (1294, 144, 359)
    original = load_digits()
    for images in (train, val, test):
        rows = [int(Path(path).stem) for path in images.paths]
        assert images.labels is not None
        assert np.array_equal(images.labels, original.target[rows])
        values = images.square(range(len(images)), 8)[..., 0] * (16 / 255)
        assert np.abs(values - original.images[rows]).max() < 0.04
    assert test.ids.tolist() == parts(open_dataset("digits", seed=5))[2].ids.tolist()
    assert val.ids.tolist() != open_dataset("digits", seed=5).val.ids.tolist()


def test_named_sets_are_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path))
    calls = []

    def make(download: Path) -> Made:
        calls.append(download)
        examples = [(Image.fromarray(pixels(i)), i % 2) for i in range(12)]
        return Made({"train": examples[:8], "test": examples[8:]}, ["a/b", "c"])

    monkeypatch.setitem(NAMED, "toys", make)
    first, second = open_dataset("toys"), open_dataset("toys")
    assert len(calls) == 1
    assert len(parts(first)[2]) == 4
    assert first.class_names == ("a/b", "c")
    assert contents(first) == contents(second)
    assert list((tmp_path / "named").iterdir()) == [tmp_path / "named" / "toys-1"]


def test_failing_download_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torchvision

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no network\nand a long story")

    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(UserError, match=r"^CIFAR10 cannot be downloaded \(no network\): look at the network, or give"):
        open_dataset("cifar10")
    assert not list((tmp_path / "named").iterdir())


def test_torchvision_sets_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torchvision

    def fake(root: str, train: bool, download: bool) -> Any:
        made = torchvision.datasets.FakeData(size=20 if train else 5, image_size=(3, 8, 8), num_classes=10)
        made.classes = [f"c{i}" for i in range(10)]
        return made

    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    dataset = open_dataset("cifar10")
    original = fake("", train=False, download=True)
    test = parts(dataset)[2]
    assert len(test) == 5
    for i in range(5):
        assert np.array_equal(test[i], np.asarray(original[i][0]))


def test_every_named_set_exists_in_torchvision() -> None:
    import torchvision

    for make in NAMED.values():
        if hasattr(make, "args"):
            assert hasattr(torchvision.datasets, make.args[0])


def test_handed_sets_are_named_sets() -> None:
    assert set(NAMED) > HANDED


def test_real_parquet(shared_data: Path) -> None:
    dataset = open_dataset(str(shared_data / "mnist"), limit=200)
    train, val, test = parts(dataset)
    assert (len(train), len(val), len(test)) == (180, 20, 10000)
    assert (dataset.channels, dataset.image_size) == (1, 28)
    assert dataset.class_names == tuple("0123456789")
    assert train.labels is not None
    assert [path.split("/")[1] for path in train.paths] == [str(label) for label in train.labels]
    # Published mean and deviation of MNIST's pixels, from the whole train part; the test part is close to it.
    values = test.square(range(10000), 28) / 255
    assert abs(values.mean() - 0.1307) < 0.005
    assert abs(values.std() - 0.3081) < 0.005


def test_images_pickle_small_and_read_the_same(shared_data: Path) -> None:
    test = open_dataset(str(shared_data / "mnist"), limit=200).test
    assert test is not None
    data = pickle.dumps(test)
    assert len(data) < 1e6 < test.square(range(len(test)), 28).nbytes
    again: Images = pickle.loads(data)
    assert np.array_equal(again[77], test[77])
    assert again.paths == test.paths


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYSSL_CACHE", str(tmp_path / "a"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("RAYSSL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "rayssl"
    assert os.listdir(tmp_path / "a") == []


FOLDER, PARQUET, TAR = "folder", "a.parquet", "a.tar"


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """Four images as a folder, a parquet file and a tar shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {f"{kind}{i}.png": png(i) for i, kind in enumerate(("cat", "cat", "dog", "dog"))}
    (tmp_path / FOLDER).mkdir()
    for name, data in files.items():
        (tmp_path / FOLDER / name).write_bytes(data)
    pq.write_table(pa.table({"image": list(files.values()), "label": [0, 0, 1, 1]}), tmp_path / PARQUET)
    with tarfile.open(tmp_path / TAR, "w") as shard:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    (tmp_path / "labels.csv").write_text("path,kind\n" + "".join(f"{name},{name[:3]}\n" for name in files))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        (FOLDER, {"label_column": "kind"}, "--data.label-column kind says nothing about .* give a table"),
        (FOLDER, {"image_column": "kind"}, "--data.image-column kind says nothing about"),
        (FOLDER, {"key": "last"}, "--data.key last says nothing about"),
        (PARQUET, {"key": "last"}, "--data.key last says nothing about"),
        ("digits", {"key": "last"}, "--data.key last says nothing about the data set 'digits'"),
        ("digits", {"image_column": "a"}, "--data.image-column a says nothing"),
        ("digits", {"label_column": "a"}, "--data.label-column a says nothing"),
        ("digits", {"labels": "folder"}, "--data.labels folder says nothing"),
        ("digits", {"splits": "folder"}, "--data.splits folder says nothing"),
        (PARQUET, {"label_column": "label", "labels": "none"}, "--data.labels none: give one of them"),
        (TAR, {"label_column": "a", "labels": "folder"}, "--data.labels folder: give one of them"),
    ],
)
def test_what_would_be_ignored_is_refused(kinds: Path, source: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(source if source == "digits" else str(kinds / source), **given)
    assert "\n" not in str(caught.value)


def test_what_a_run_of_before_ignored_is_ignored(kinds: Path) -> None:
    run = {"key": "last", "label_column": "kind"}  # as its config.json has it
    assert (
        open_dataset(str(kinds / FOLDER), strict=False, **run).fingerprint == open_dataset(kinds / FOLDER).fingerprint
    )


def test_the_column_of_a_table_means_something_everywhere(kinds: Path) -> None:
    found = open_dataset(str(kinds / FOLDER), labels=kinds / "labels.csv", label_column="kind", val_fraction=0)
    assert found.class_names == ("cat", "dog")


def test_a_named_data_set_is_read_without_labels_and_splits() -> None:
    found = open_dataset("digits", labels="none", splits="none", limit=50)
    assert found.class_names is None
    assert found.train.labels is None
    assert "no labels, as asked" in [note.text for note in found.notes]
