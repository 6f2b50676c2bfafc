"""Embeddings as parquet: round trip, readable by others, damage noticed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.search.embeddings import Embeddings, load_embeddings, save_embeddings


def make(n: int = 7, labelled: bool = True) -> Embeddings:
    rng = np.random.default_rng(0)
    return Embeddings(
        ids=2**62 + np.arange(n, dtype=np.int64),
        paths=[f"train/ä {i}.jpg" for i in range(n)],
        labels=np.arange(n, dtype=np.int64) % 3 if labelled else None,
        vectors=rng.normal(size=(n, 5)).astype(np.float32),
        class_names=("a", "b", "c") if labelled else None,
        encoder_hash="e" * 64,
        data_fingerprint="d" * 64,
        split="train",
        data="pets",
        data_path="/data/pets",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "embeddings" / "pets" / "train.parquet"


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("n", [7, 0])
def test_round_trip(path: Path, n: int, labelled: bool) -> None:
    written = make(n, labelled)
    save_embeddings(written, path)
    read = load_embeddings(path)
    np.testing.assert_array_equal(read.ids, written.ids)
    np.testing.assert_array_equal(read.vectors, written.vectors)
    assert read.vectors.dtype == np.float32
    assert read.vectors.shape == (n, 5)
    if written.labels is not None and n:
        np.testing.assert_array_equal(read.labels, written.labels)
    else:
        assert read.labels is None or len(read.labels) == 0
    for name in ("paths", "class_names", "encoder_hash", "data_fingerprint", "split", "data", "data_path"):
        assert getattr(read, name) == getattr(written, name)


def test_some_images_without_a_label(path: Path) -> None:
    written = make()
    assert written.labels is not None
    written.labels[[1, 4]] = -1
    save_embeddings(written, path)
    assert pq.read_table(path)["label"].to_pylist() == [0, None, 2, 0, None, 2, 0]
    np.testing.assert_array_equal(load_embeddings(path).labels, written.labels)


def test_readable_without_this_project(path: Path) -> None:
    save_embeddings(make(), path)
    table = pq.read_table(path)
    assert table.schema.names == ["id", "path", "label", "embedding"]
    assert table.schema.types == [pa.int64(), pa.string(), pa.int64(), pa.list_(pa.float32(), 5)]


def test_missing_says_which_command(path: Path) -> None:
    with pytest.raises(UserError, match=r"train.parquet does not exist: `rayssl embed .*/run` writes it"):
        load_embeddings(path)


def test_damage_is_noticed_wherever_it_is(path: Path) -> None:
    """Any flipped byte is an error or changes nothing (it lay in what the reader skips): never other values."""
    save_embeddings(make(50), path)
    whole, written = path.read_bytes(), load_embeddings(path)
    noticed = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            read = load_embeddings(path)
        except UserError:
            noticed += 1
        else:
            np.testing.assert_array_equal(read.vectors, written.vectors)
            np.testing.assert_array_equal(read.ids, written.ids)
    assert noticed > len(whole) / 7 / 2


def test_cut_off_file(path: Path) -> None:
    save_embeddings(make(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_embeddings(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["path", "label"]), "lacks the columns path, label"),
        (lambda t: t.replace_schema_metadata(None), "does not tell its encoder"),
        (lambda t: t.replace_schema_metadata({"rayssl": '{"schema": 9}'}), "schema 9"),
        (lambda t: t.replace_schema_metadata({"rayssl": "[]"}), "is damaged .not JSON of ours: no object"),
        (lambda t: t.replace_schema_metadata({"rayssl": '{"schema": 1}'}), "it lacks class_names, enc"),
        (lambda t: t.set_column(3, "embedding", pa.array([[1.0]] * 7)), "not a fixed-size list of float32"),
        (lambda t: t.set_column(0, "id", pa.array(["x"] * 7)), "id is string"),
        (lambda t: t.set_column(3, "embedding", pa.nulls(7, pa.list_(pa.float32(), 5))), "without an embedding"),
    ],
)
def test_wrong_content(path: Path, change: object, message: str) -> None:
    save_embeddings(make(), path)
    pq.write_table(change(pq.read_table(path)), path)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as error:
        load_embeddings(path)
    assert "\n" not in str(error.value)


def test_a_failing_write_leaves_the_old_file(path: Path) -> None:
    save_embeddings(make(), path)
    before = path.read_bytes()
    broken = make()
    object.__setattr__(broken, "paths", ["too", "few"])
    with pytest.raises(pa.ArrowInvalid):
        save_embeddings(broken, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["train.parquet"]
