"""The graph of nearest neighbours against comparing everything with everything, and as a file that is not trusted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.search import graph as graphs
from rayssl.pipeline.search.graph import load_graph, make_graph, save_graph

MADE_FROM = {"embeddings/pets/train.parquet": "0" * 64}


def drawn(n: int, dim: int, seed: int, copies: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    vectors[:copies] = vectors[0]
    return vectors


def cosines_of(vectors: np.ndarray) -> np.ndarray:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines


@given(n=st.integers(2, 60), k=st.integers(1, 25), copies=st.integers(0, 60), seed=st.integers(0, 9))
def test_all_are_compared_with_all(n: int, k: int, copies: int, seed: int) -> None:
    vectors = drawn(n, 5, seed, min(copies, n))
    found, cosines = make_graph(vectors, np.arange(n) * 7 + 1, k), cosines_of(vectors)
    assert found.k == min(k, n - 1)
    assert not (found.neighbors == np.arange(n)[:, None]).any()
    assert all(len(set(row)) == found.k for row in found.neighbors.tolist())
    np.testing.assert_allclose(found.cosines, np.take_along_axis(cosines, found.neighbors, axis=1), atol=1e-5)
    np.testing.assert_allclose(found.cosines, -np.sort(-cosines, axis=1)[:, : found.k], atol=1e-5)
    assert (found.recall, found.exact) == (1.0, True)


def test_blocks_do_not_change_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = drawn(100, 8, 0)
    whole = make_graph(vectors, np.arange(100))
    monkeypatch.setattr(graphs, "WORKSPACE", 5000)  # a few rows a block
    assert len(list(graphs._blocks(100, 4 * 8 + 24 * 21))) > 10
    parts = make_graph(vectors, np.arange(100))
    np.testing.assert_array_equal(whole.neighbors, parts.neighbors)


def test_the_recall_of_inverted_lists_is_what_is_told() -> None:
    vectors = drawn(3000, 16, 0)
    vectors[:2000] += 4 * np.eye(16, dtype=np.float32)[np.arange(2000) % 16]  # clusters, and what is in none
    exact, found = make_graph(vectors, np.arange(3000)), make_graph(vectors, np.arange(3000), exact=1000)
    shared = [len(set(a) & set(b)) / found.k for a, b in zip(exact.neighbors.tolist(), found.neighbors.tolist())]
    assert not found.exact
    assert found.recall == pytest.approx(np.mean(shared), abs=0.01)
    assert np.mean(shared) >= 0.97
    assert (found.neighbors >= 0).all()
    assert not (found.neighbors == np.arange(3000)[:, None]).any()


def test_what_has_no_neighbours_is_one_line() -> None:
    with pytest.raises(UserError, match="at least 2"):
        make_graph(drawn(1, 3, 0), np.arange(1))
    with pytest.raises(UserError, match="NaN"):
        make_graph(np.full((3, 3), np.nan, np.float32), np.arange(3))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    graph = make_graph(drawn(12, 4, 0), np.arange(12) * 1000 + 5, 3)
    save_graph(graph, tmp_path / "graph.parquet", MADE_FROM)
    return tmp_path / "graph.parquet"


def test_a_graph_is_read_as_it_was_written(saved: Path) -> None:
    graph, facts = load_graph(saved)
    expected = make_graph(drawn(12, 4, 0), np.arange(12) * 1000 + 5, 3)
    for name in ("ids", "neighbors", "cosines"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(expected, name))
    assert facts["embeddings"] == MADE_FROM
    neighbors = pq.read_table(saved)["neighbor"].to_pylist()  # as anyone reads it: ids
    assert neighbors[0] == expected.ids[expected.neighbors[0]].tolist()


def rewrite(path: Path, change: Callable[[dict], dict], facts: dict | None = None) -> None:
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[b"rayssl"]) | (facts or {})
    columns = change({name: table[name].to_pylist() for name in table.column_names})
    k = 3
    kinds = {"id": pa.int64(), "neighbor": pa.list_(pa.int64(), k), "cosine": pa.list_(pa.float32(), k)}
    made = pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})
    pq.write_table(made.replace_schema_metadata({"rayssl": json.dumps(told)}), path)


def first(columns: dict, name: str, value: object) -> dict:
    return {**columns, name: [value, *columns[name][1:]]}


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda c: first(c, "neighbor", [77, *c["neighbor"][0][1:]]), {}),
        (lambda c: first(c, "neighbor", [c["id"][0], *c["neighbor"][0][1:]]), {}),
        (lambda c: first(c, "neighbor", None), {}),
        (lambda c: first(c, "id", c["id"][1]), {}),
        (lambda c: first(c, "cosine", [1.5, 0, 0]), {}),
        (lambda c: first(c, "cosine", [float("nan"), 0, 0]), {}),
        (lambda c: {name: values[:3] for name, values in c.items()}, {}),
        (lambda c: c, {"k": 4}),
        (lambda c: c, {"k": 10**9}),
        (lambda c: c, {"schema": 2}),
        (lambda c: c, {"recall": 2.0}),
        (lambda c: c, {"embeddings": {"../x": "0" * 64}}),
        (lambda c: {name: values for name, values in c.items() if name != "cosine"}, {}),
    ],
)
def test_what_is_no_graph_is_refused(saved: Path, change: Callable[[dict], dict], facts: dict) -> None:
    rewrite(saved, change, facts)
    with pytest.raises(UserError, match=r"graph.parquet is damaged|reads schema 1"):
        load_graph(saved)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 1000])
def test_a_file_that_is_no_parquet(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_graph(saved)
