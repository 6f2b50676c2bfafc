"""duplicates, outliers, mislabelled and cluster as a user calls them, on photographs with planted copies."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from photographs import KINDS
from PIL import Image

from rayssl.jobs.main import main
from rayssl.pipeline.curation import subject as subjects
from rayssl.pipeline.search.ingest import add_images, remove_images
from rayssl.pipeline.search.query import open_index
from rayssl.pipeline.stages.index import run_index
from rayssl.pipeline.verify import verify

Capture = pytest.CaptureFixture[str]
VERBS = ("duplicates", "outliers", "mislabelled", "cluster")


def call(words: list[str], capsys: Capture) -> tuple[dict[str, Any], str]:
    """What a verb prints with --json, and what it says to people."""
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


def fails(words: list[str], capsys: Capture) -> str:
    assert main(words) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def seen(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that several tests look at: its graphs are made once."""
    copy = tmp_path_factory.mktemp("seen") / "run"
    shutil.copytree(embedded, copy)
    return copy


@pytest.fixture
def run(embedded: Path, tmp_path: Path) -> Path:
    shutil.copytree(embedded, tmp_path / "run")
    return tmp_path / "run"


def test_planted_copies_are_found_and_nothing_else(seen: Path, planted: Path, tmp_path: Path, capsys: Capture):
    found, said = call(["duplicates", str(seen), "--out", str(tmp_path)], capsys)
    rows = pq.read_table(tmp_path / "duplicates.parquet").to_pylist()
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    expected = {
        frozenset({f"{name}/{number * 3:02d}.png", f"{name}/{number * 3:02d}-{kind}{ending}"})
        for name in ("china", "flower")
        for number, kind in enumerate(KINDS)
        for ending in ["jpg" if kind == "jpeg" else "png"]
        for ending in [f".{ending}"]
    } | {frozenset({"china/16.png", "china/16-exact.png"})}
    large = frozenset({"flower/16.png", "flower/large.png"})
    assert {frozenset(row["path"] for row in group) for group in groups.values()} == expected | {large}
    assert {row["path"] for row in rows if row["exact"]} == {"china/16.png", "china/16-exact.png"}
    assert (found["groups"], found["copies"], found["drop"], found["exact"]) == (10, 20, 10, 2)
    for group in groups.values():
        assert [row["action"] for row in group] == ["keep", "drop"]
        assert group[0]["height"] * group[0]["width"] >= group[1]["height"] * group[1]["width"]
        assert group[0]["leak"] == (len({row["split"] for row in group}) > 1)
    assert next(group for group in groups.values() if "large" in group[0]["path"])
    leaks = [group[0]["leak"] for group in groups.values()]
    assert leaks == sorted(leaks, reverse=True)
    assert sum(found["leaks"].values()) == sum(leaks) > 0
    assert said.index("leak: ") < said.index("images have a copy")
    with (tmp_path / "keep-drop.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [(row["path"], row["action"]) for row in listed] == [(row["path"], row["action"]) for row in rows]
    assert all((planted / row["path"]).exists() for row in rows)  # nothing was carried out
    assert Image.open(tmp_path / "duplicates.png").height > 10 * 100


def test_a_threshold_of_ones_own(seen: Path, tmp_path: Path, capsys: Capture) -> None:
    found, _ = call(["duplicates", str(seen), "--threshold", "1", "--out", str(tmp_path)], capsys)
    assert (found["threshold"], found["threshold_by"]) == (1, "given")
    assert found["exact"] == 2
    pairs = [row["pairs"] for row in found["curve"]]
    assert pairs == sorted(pairs)
    assert [row["threshold"] for row in found["curve"]] == sorted({row["threshold"] for row in found["curve"]})[::-1]


def test_pictures_that_are_wrong_are_flagged(seen: Path, tmp_path: Path, capsys: Capture) -> None:
    found, said = call(["outliers", str(seen), "--out", str(tmp_path)], capsys)
    rows = pq.read_table(tmp_path / "outliers.parquet").to_pylist()
    flags = {row["path"]: row["flags"] for row in rows if row["flags"]}
    assert flags["flower/flat.png"] == ["flat"]
    assert "dark" in flags["flower/dark.png"]
    assert flags["flower/large.png"] == ["size"]
    assert not [path for path, which in flags.items() if "size" in which and "large" not in path]
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["distance"] for row in rows] == sorted((row["distance"] for row in rows), reverse=True)
    assert found["first"][0]["path"] == rows[0]["path"]
    assert "pictures: " in said
    assert (tmp_path / "outliers.png").exists()


def test_what_came_to_the_index_and_went_from_it_since_is_told(
    run: Path, tmp_path: Path, photographs: dict[str, list[Image.Image]], capsys: Capture
) -> None:
    out = ["--out", str(tmp_path / "out")]
    run_index(run)
    assert "the index" not in call(["outliers", str(run), *out], capsys)[1]
    photographs["china"][0].save(tmp_path / "new.png")
    add_images(open_index(run), [tmp_path / "new.png"])
    remove_images(open_index(run), ["china/01.png"])
    said = call(["outliers", str(run), *out], capsys)[1]
    assert "left out, because they came to the index or went from it: 1 and 1" in said
    assert "china/01.png" not in pq.read_table(tmp_path / "out" / "outliers.parquet")["path"].to_pylist()


def test_a_folder_that_changed_is_looked_at_as_far_as_it_was_embedded(
    run: Path, planted: Path, tmp_path: Path, photographs: dict[str, list[Image.Image]], capsys: Capture
) -> None:
    here, out = tmp_path / "photographs", ["--out", str(tmp_path / "out")]
    shutil.copytree(planted, here)
    run_index(run)
    call(["outliers", str(run), "--data.path", str(here), *out], capsys)
    photographs["china"][2].save(here / "china" / "new.png")
    os.unlink(here / "china" / "01.png")
    assert "1 of " in (line := fails(["outliers", str(run), *out], capsys))
    assert f"`rayssl sync {run}`" in line
    assert main(["sync", str(run)]) == 0
    said = call(["outliers", str(run), *out], capsys)[1]
    assert "has changed since" in said
    assert "went from it: 1 and 1" in said
    looked_at = set(pq.read_table(tmp_path / "out" / "outliers.parquet")["path"].to_pylist())
    assert not looked_at & {"china/01.png", "china/new.png"}


def test_labels_are_doubted(seen: Path, tmp_path: Path, capsys: Capture) -> None:
    found, _ = call(["mislabelled", str(seen), "--out", str(tmp_path)], capsys)
    rows = pq.read_table(tmp_path / "mislabelled.parquet").to_pylist()
    assert found["labelled"] == len(rows) == found["images"]
    assert found["doubted"] == sum(row["doubted"] for row in rows)
    assert all(row["label"] != row["suggested"] for row in rows)
    assert [row["doubt"] for row in rows] == sorted((row["doubt"] for row in rows), reverse=True)


def test_clusters_are_a_column_and_a_sheet_each(run: Path, capsys: Capture) -> None:
    call(["cluster", str(run), "--clusters", "5"], capsys)
    found, said = call(["cluster", str(run), "--clusters", "3"], capsys)
    rows = pq.read_table(run / "cluster" / "clusters.parquet").to_pylist()
    sizes = [sum(row["cluster"] == number for row in rows) for number in range(3)]
    assert sizes == sorted(sizes, reverse=True) == [one["images"] for one in found["largest"]]
    assert sorted(path.name for path in (run / "cluster" / "sheets").iterdir()) == ["0000.png", "0001.png", "0002.png"]
    for one in found["largest"]:
        members = [row for row in rows if row["cluster"] == one["cluster"]]
        assert max(members, key=lambda row: row["centrality"])["path"] == one["central"]
    assert 0.5 <= found["purity"] <= 1
    assert "3 clusters" in said
    assert [finding.fault for finding in verify(run) if finding.fault] == []


@pytest.mark.parametrize("method", ["hdbscan", "dbscan", "meanshift"])
def test_other_ways_to_cluster(method: str, seen: Path, tmp_path: Path, capsys: Capture) -> None:
    found, _ = call(["cluster", str(seen), "--method", method, "--out", str(tmp_path)], capsys)
    rows = pq.read_table(tmp_path / "clusters.parquet").to_pylist()
    assert found["in_none"] == sum(row["cluster"] is None for row in rows)
    assert found["clusters"] == len({row["cluster"] for row in rows} - {None})


def test_the_graph_is_made_once_and_again_when_it_is_not_of_these_embeddings(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = subjects.make_graph
    monkeypatch.setattr(subjects, "make_graph", lambda vectors, ids: made.append(1) or real(vectors, ids))
    for verb in ("cluster", "mislabelled"):
        call([verb, str(run)], capsys)
    assert len(made) == 1
    (graph,) = (run / "index").rglob("graph.parquet")
    kept = graph.read_bytes()
    assert [finding.fault for finding in verify(run) if finding.path == graph] == [None]
    graph.write_bytes(b"damaged")
    (fault,) = [finding.fault for finding in verify(run) if finding.path == graph]
    assert "`rayssl duplicates" in str(fault)
    call(["mislabelled", str(run)], capsys)
    assert len(made) == 2
    assert graph.read_bytes() == kept
    folder = run / "embeddings" / graph.parent.name
    shutil.copy(folder / "test.parquet", folder / "again.parquet")  # another file of embeddings
    call(["mislabelled", str(run)], capsys)
    assert len(made) == 3


@pytest.mark.parametrize("verb", ["duplicates", "outliers"])
def test_a_run_that_cannot_be_written_is_looked_at_all_the_same(
    verb: str, run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(run))

    monkeypatch.setattr(subjects, "writer_lock", refused)
    before = sorted(path for path in run.rglob("*"))
    _, said = call([verb, str(run), "--out", str(tmp_path / "out")], capsys)
    assert "the graph of neighbours is not kept" in said
    assert sorted(path for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["duplicates", "--threshold", "high"], "--threshold is 'high'"),
        (["duplicates", "--threshold", "1.5"], "--threshold is '1.5'"),
        (["duplicates", "--threshold", "nan"], "--threshold is 'nan'"),
        (["cluster", "--clusters", "0"], "--clusters is '0'"),
        (["cluster", "--clusters", "2", "--method", "hdbscan"], "leave it out"),
        (["cluster", "--clusters", "100000"], "clusters is 100000"),
        (["cluster", "--method", "magic"], "'magic'"),
        *([[verb, "--data", "nosuch"], "nosuch"] for verb in VERBS),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(words: list[str], says: str, run: Path, capsys: Capture) -> None:
    before = files_but_graphs(run)
    assert says in fails([words[0], str(run), *words[1:]], capsys)
    assert files_but_graphs(run) == before


def files_but_graphs(run: Path) -> list[Path]:
    """What is in a run, without the graphs of neighbours, which may be made before a number is known to be wrong."""
    found = (path for path in run.rglob("*") if path.is_file())
    return sorted(path for path in found if "graph" not in path.name and path.name != ".lock")


def test_images_without_labels_have_none_to_doubt(planted: Path, run: Path, capsys: Capture) -> None:
    for path in (run / "embeddings").rglob("*.parquet"):
        from dataclasses import replace

        from rayssl.pipeline.search.embeddings import load_embeddings, save_embeddings

        save_embeddings(replace(load_embeddings(path), labels=None), path)
    assert "--data.labels" in fails(["mislabelled", str(run)], capsys)
    found, _ = call(["cluster", str(run), "--clusters", "2"], capsys)
    assert "purity" not in found


def test_an_image_that_is_gone_is_one_line(run: Path, planted: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(planted, tmp_path / "photographs")
    os.unlink(tmp_path / "photographs" / "china" / "00.png")
    line = fails(["duplicates", str(run), "--data.path", str(tmp_path / "photographs")], capsys)
    assert "other images" in line


def test_names_do_not_steer_the_terminal(capsys: Capture) -> None:
    from rayssl.jobs.curation import table_of
    from rayssl.pipeline.base.progress import PlainConsole

    PlainConsole().print(
        table_of([{"path": "a\x1b[31m[red]b", "score": np.float64(0.5)}], {"path": "", "score": ".2f"})
    )
    said = capsys.readouterr().err
    assert "\x1b[31m" not in said
    assert "[red]b" in said
