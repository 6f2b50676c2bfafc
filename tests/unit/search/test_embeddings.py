"""Embeddings as parquet: round trip, readable by others, damage noticed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.search.embeddings import Embeddings, load_embeddings, save_embeddings

PAIRS = pa.list_(pa.float32(), 2)
NO_TEXTS = pa.Array.from_buffers(pa.string(), 7, pa.array([b"\xff"] * 7, pa.binary()).buffers())


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
        (lambda t: t.set_column(3, "embedding", pa.array([[1.0, None]] * 7, PAIRS)), "without an embedding"),
        (lambda t: t.set_column(0, "id", pa.array([3] * 7)), "an id twice"),
        (lambda t: t.set_column(2, "label", pa.array([-2] * 7)), "a label below zero"),
        (lambda t: t.set_column(1, "path", NO_TEXTS), "a path is not UTF-8"),
        (lambda t: t.append_column("id", t["id"]), "a column twice"),
    ],
)
def test_wrong_content(path: Path, change: object, message: str) -> None:
    save_embeddings(make(), path)
    pq.write_table(change(pq.read_table(path)), path)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as error:
        load_embeddings(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["path", "embedding"])
def test_what_grows_when_it_is_read_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch, column: str) -> None:
    """A dictionary holds once what stands in every row."""
    rows = 2_000
    columns = {
        "id": pa.array(range(rows)),
        "path": pa.array(["a" * (5_000 if column == "path" else 1)] * rows),
        "label": pa.nulls(rows, pa.int64()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 1_000, np.float32)), 1_000),
    }
    if column == "path":
        columns["embedding"] = pa.array([[0.0, 0.0]] * rows, PAIRS)
    save_embeddings(make(), path)
    pq.write_table(pa.table(columns).replace_schema_metadata(pq.read_schema(path).metadata), path)
    assert path.stat().st_size < 100_000
    monkeypatch.setenv("RAYSSL_LARGEST_GB", "0.001")
    with pytest.raises(UserError, match=r"decompressed, has .* GB: RAYSSL_LARGEST_GB says how much"):
        load_embeddings(path)
    monkeypatch.setenv("RAYSSL_LARGEST_GB", "1")
    assert len(load_embeddings(path).ids) == rows


def test_more_rows_than_bytes_are_refused(path: Path) -> None:
    save_embeddings(make(), path)
    rows = {"id": pa.nulls(100_000, pa.int64()), "path": pa.nulls(100_000, pa.string())}
    rows |= {"label": rows["id"], "embedding": pa.nulls(100_000, PAIRS)}
    pq.write_table(pa.table(rows).replace_schema_metadata(pq.read_schema(path).metadata), path)
    with pytest.raises(UserError, match="100,000 rows in"):
        load_embeddings(path)


def test_a_failing_write_leaves_the_old_file(path: Path) -> None:
    save_embeddings(make(), path)
    before = path.read_bytes()
    broken = make()
    object.__setattr__(broken, "paths", ["too", "few"])
    with pytest.raises(pa.ArrowInvalid):
        save_embeddings(broken, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["train.parquet"]
