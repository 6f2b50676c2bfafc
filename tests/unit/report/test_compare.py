"""Runs beside each other: the table, its forms, and what is paired."""

import csv
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rayssl.jobs.main import main
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import knn_classify
from rayssl.pipeline.report.compare import ALIKE, DIFFERENCE, compare_runs, save_csv, save_html, save_latex
from rayssl.pipeline.search.embeddings import load_embeddings, save_embeddings


@pytest.fixture
def other(finished: Path, tmp_path: Path) -> Path:
    """The same run with other embeddings, whose name would be LaTeX and HTML if it could."""
    run = tmp_path / "a_b&<i>50%"
    shutil.copytree(finished, run)
    rng = np.random.default_rng(0)
    for path in (run / "embeddings").glob("*/*.parquet"):
        one = load_embeddings(path)
        noise = rng.standard_normal(one.vectors.shape).astype(np.float32)
        save_embeddings(replace(one, vectors=one.vectors + 2 * one.vectors.std() * noise), path)
    return run


def test_the_difference_is_of_the_same_images(finished: Path, other: Path) -> None:
    paired = compare_runs([finished, other]).figures[1]["paired"]
    right = []
    for run in (finished, other):
        (folder,) = (run / "embeddings").glob("*")
        train, test = (load_embeddings(folder / f"{split}.parquet") for split in ("train", "test"))
        right.append(knn_classify(train.vectors, train.labels, test.vectors, 20, 0.07, 3) == test.labels)
    difference = right[1].astype(float) - right[0]
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    assert paired[DIFFERENCE]["value"] == pytest.approx(difference.mean())
    assert paired[DIFFERENCE]["interval"] == pytest.approx([difference.mean() - half, difference.mean() + half])
    assert paired[ALIKE]["value"] < 0.9
    same = compare_runs([finished, finished]).figures[1]["paired"]
    assert same[DIFFERENCE]["value"] == 0
    assert same[ALIKE]["value"] == pytest.approx(1)


def test_other_test_images_are_not_paired(finished: Path, other: Path) -> None:
    (path,) = (other / "embeddings").glob("*/test.parquet")
    one = load_embeddings(path)
    save_embeddings(replace(one, ids=one.ids + 1), path)
    compared = compare_runs([finished, other])
    assert compared.figures[1]["paired"] is None
    assert DIFFERENCE not in compared.header
    assert len({len(row) for row in (compared.header, *compared.rows)}) == 1


class Cells(HTMLParser):
    """The texts of a table and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts += [data] if data.strip() else []


def test_every_form_has_the_same_table(finished: Path, other: Path, tmp_path: Path) -> None:
    compared = compare_runs([finished, other])
    flat = [cell for row in (compared.header, *compared.rows) for cell in row]
    save_csv(compared, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        assert [cell for row in csv.reader(file) for cell in row] == flat
    save_html(compared, tmp_path / "t.html")
    page = Cells((tmp_path / "t.html").read_text(encoding="utf-8"))
    assert page.texts == flat
    assert page.names == {"meta", "table", "tr", "th", "td"}  # no name of a run became one
    save_latex(compared, tmp_path / "t.tex")
    lines = (tmp_path / "t.tex").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(r"a\_b\&<i>50\% & ") for line in lines)
    rows = [line for line in lines if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {len(compared.header) - 1}


def test_compare_as_a_user_calls_it(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "table.csv"
    assert main(["compare", str(finished), str(finished), "--csv", str(target), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [one["folder"] for one in json.loads(out)] == [str(finished)] * 2
    assert "knn/top1" in err
    assert target.exists()
    for words, says in (([str(finished)], "name two or more"), ([str(finished), str(tmp_path)], "not a run folder")):
        assert main(["compare", *words]) == 2
        assert says in capsys.readouterr().err


def test_runs_without_figures(finished: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(finished, bare)
    (bare / "evaluation.json").unlink()
    with pytest.raises(UserError, match="rayssl evaluate"):
        compare_runs([bare, bare])


def test_two_forms_in_one_file_are_refused(
    finished: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "table")
    assert main(["compare", str(finished), str(other), "--csv", file, "--html", file]) == 2
    assert "each needs a file of its own" in capsys.readouterr().err
    assert not Path(file).exists()


@pytest.mark.parametrize("verb", ["duplicates", "outliers", "cluster", "mislabelled"])
def test_out_that_is_a_file_is_refused_before_images_are_read(
    verb: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "file"
    out.write_text("mine")
    assert main([verb, str(finished), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"rayssl: {out} is not a folder: give --out a folder, or a new name\n"
    assert out.read_text() == "mine"
