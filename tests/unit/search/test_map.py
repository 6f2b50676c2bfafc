"""Maps: images that are alike lie together, all have a place, and a map that is of another index is not read."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.seals import rewriting
from rayssl.pipeline.search import map as maps
from rayssl.pipeline.search.map import FILE, Map, laid_out, made_of, make_map, read_map
from rayssl.pipeline.search.query import OpenIndex, open_index


def clusters(n: int, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of three kinds that are far apart, in any order."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, n)
    return (10 * np.eye(3, dim)[kinds] + rng.normal(size=(n, dim))).astype(np.float32), kinds


def nearest_is_of_its_kind(places: np.ndarray, kinds: np.ndarray) -> float:
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(len(places), np.inf))
    return float((kinds[distances.argmin(axis=1)] == kinds).mean())


@pytest.mark.parametrize("fitted", [200, 120])
def test_what_is_alike_lies_together_also_what_is_placed_later(monkeypatch: pytest.MonkeyPatch, fitted: int) -> None:
    monkeypatch.setattr(maps, "FITTED", fitted)
    vectors, kinds = clusters(200)
    places = laid_out(vectors)
    assert nearest_is_of_its_kind(places, kinds) > 0.99


@settings(max_examples=6)
@given(st.integers(1, 12), st.integers(1, 5))
def test_every_image_has_a_place_however_few_there_are(n: int, dim: int) -> None:
    vectors = np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)
    for points in (vectors, np.ones_like(vectors)):  # all of them alike
        places = laid_out(points)
        assert places.shape == (n, 2)
        assert np.isfinite(places).all()
        assert np.abs(places).max() <= 1


@pytest.fixture
def opened(finished_copy: Path) -> OpenIndex:
    """The tiny run's index, without a map."""
    return open_index(finished_copy)


@pytest.fixture
def made(opened: OpenIndex) -> Map:
    """Its map, which is kept."""
    return make_map(opened)


def test_a_map_is_kept_and_read(opened: OpenIndex, made: Map) -> None:
    found = read_map(opened)
    assert found is not None
    assert np.array_equal(found.ids, made.ids)
    assert np.array_equal(found.places, made.places)
    assert set(found.ids.tolist()) == set(opened.items.ids.tolist())


def test_while_another_writes_the_run_nothing_is_written(opened: OpenIndex) -> None:
    with writer_lock(opened.run):
        assert len(make_map(opened).ids) == len(opened)
    assert read_map(opened) is None


@pytest.mark.parametrize("what", ["bytes", "other index", "an id", "a place", "no facts", "a folder"])
def test_what_does_not_fit_is_not_read(opened: OpenIndex, made: Map, what: str) -> None:
    path = opened.run / "index" / opened.name / FILE
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"rayssl"])
    if what == "bytes":
        content = bytearray(path.read_bytes())
        content[40] ^= 1
        path.write_bytes(bytes(content))
        assert read_map(opened) is None
        return
    if what == "a folder":
        path.unlink()
        path.mkdir()
        assert read_map(opened) is None
        return
    columns = {name: np.asarray(table[name]).copy() for name in ("id", "x", "y")}
    if what == "an id":
        columns["id"][0] += 1
    elif what == "a place":
        columns["x"][0] = np.nan
    elif what == "other index":
        facts["made_of"] = "0" * 64
    found = Map(columns["id"], np.stack([columns["x"], columns["y"]], axis=1))
    written = made_of(opened) if what != "other index" else facts["made_of"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "made_of", lambda _: written)
        maps._write(found, opened)
    if what == "no facts":
        with rewriting(path):
            pq.write_table(table.replace_schema_metadata({}), path)
    assert read_map(opened) is None
