"""Runs beside each other: their figures, what they differ by on the same test images, and how alike they see them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import replacing
from rayssl.pipeline.base.vectors import knn_classify
from rayssl.pipeline.evaluation.metrics import linear_cka
from rayssl.pipeline.report.html import escape
from rayssl.pipeline.report.results import Run, load_runs
from rayssl.pipeline.report.table import format_estimate
from rayssl.pipeline.run.folder import data_name
from rayssl.pipeline.search.choice import paired_error
from rayssl.pipeline.search.described import load_splits
from rayssl.pipeline.search.embeddings import Embeddings

# Metric → whether it is a share, shown in percent.
METRICS = {
    "knn/top1": True, "knn-whitened/top1": True, "search/knn/top1": True, "probe/top1": True, "cluster/acc": True,
    "cluster/nmi": True, "cluster/ami": True, "cluster/silhouette": False, "retrieval/precision@1": True,
    "retrieval/r-precision": True, "retrieval/map@r": True, "retrieval/mrr": True, "health/rankme": False,
}  # fmt: skip
DIFFERENCE, ALIKE = "kNN, difference", "CKA"
SEEN_ALIKE = 2_000  # test images that CKA is measured over
_Z_95 = 1.96  # 97.5 % quantile of the standard normal distribution
_LATEX = {"\\": r"\textbackslash{}", **{letter: f"\\{letter}" for letter in "&%$#_{}"}, "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "±": r"$\pm$", "−": r"$-$", "–": "--"}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """A table of texts: a row a run."""

    header: list[str]
    rows: list[list[str]]
    figures: list[dict[str, Any]]  # the same as numbers


def compare_runs(folders: Sequence[Path]) -> Compared:
    """The figures of runs, and of all but the first the difference of its kNN accuracy and its CKA with the first.

    These two are of the last stage, where both runs have the same test images: the difference with the half-width of
    its 95 % interval over paired images. Raises UserError for fewer than two runs, and where none has been evaluated.
    """
    if len(folders) < 2:
        raise UserError("one run has nothing to be compared with: name two or more")
    runs = load_runs(folders)
    metrics = [metric for metric in METRICS if any(metric in run.flat for run in runs)]
    if not metrics:
        raise UserError(f"none of these runs has figures: `rayssl evaluate {folders[0]}` computes them")
    splits = [_splits_of(run) for run in runs]
    paired = [{}, *(_paired(runs[0], splits[0], other) for other in splits[1:])]
    extra = [name for name in (DIFFERENCE, ALIKE) if any(name in one for one in paired)]
    rows, figures = [], []
    for run, one in zip(runs, paired, strict=True):
        told = [format_estimate(run.estimate(metric), METRICS[metric]) for metric in metrics]
        rows.append([run.name, *told, *(_told(name, one) for name in extra)])
        estimates = {metric: run.flat[metric] for metric in metrics if metric in run.flat}
        figures.append({"run": run.name, "folder": str(run.folder), **estimates, "paired": one or None})
    return Compared(["run", *metrics, *extra], rows, figures)


def _splits_of(run: Run) -> dict[str, Embeddings] | None:
    try:
        return load_splits(run.folder, data_name(run.folder))
    except UserError:
        return None  # there are figures, and no embeddings any more


def _paired(first: Run, one: dict[str, Embeddings] | None, other: dict[str, Embeddings] | None) -> dict[str, Any]:
    """What two runs differ by on the same test images; empty where these are not the same."""
    if one is None or other is None or not _same_images(one, other):
        return {}
    found: dict[str, Any] = {}
    right = [_right(splits, first) for splits in (one, other)]
    if right[0] is not None and right[1] is not None:
        difference = float(right[1].mean() - right[0].mean())
        half = _Z_95 * paired_error(right[1], right[0])
        found[DIFFERENCE] = {
            "value": difference,
            "interval": [difference - half, difference + half],
            "n": len(right[0]),
        }
    rows = np.sort(np.random.default_rng(0).permutation(len(one["test"].ids))[:SEEN_ALIKE])
    if len(rows) >= 4:
        found[ALIKE] = {"value": linear_cka(one["test"].vectors[rows], other["test"].vectors[rows]), "n": len(rows)}
    return found


def _same_images(one: dict[str, Embeddings], other: dict[str, Embeddings]) -> bool:
    same = one["test"].data_fingerprint == other["test"].data_fingerprint
    return same and np.array_equal(one["test"].ids, other["test"].ids)


def _right(splits: dict[str, Embeddings], settings: Run) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """(N,) which labelled test images kNN names rightly, by k and T of one of the runs; None without labels."""
    train, test = splits["train"], splits["test"]
    if train.labels is None or test.labels is None:
        return None
    known, asked = train.labels >= 0, test.labels >= 0
    if not known.any() or not asked.any():
        return None
    evaluate = settings.config.get("evaluate") or {}
    k, temperature = int(evaluate.get("k", 20)), float(evaluate.get("temperature", 0.07))
    labels, classes = train.labels[known], int(max(train.labels.max(), test.labels.max())) + 1
    found = knn_classify(train.vectors[known], labels, test.vectors[asked], min(k, len(labels)), temperature, classes)
    return np.asarray(found == test.labels[asked])


def _told(name: str, paired: dict[str, Any]) -> str:
    if name not in paired:
        return "–"
    value = paired[name]["value"]
    if name == ALIKE:
        return f"{value:.3f}"
    half = (paired[name]["interval"][1] - paired[name]["interval"][0]) / 2
    return f"{'−' if value < 0 else '+'}{100 * abs(value):.1f} ± {100 * half:.1f}"


def save_csv(compared: Compared, path: Path) -> None:
    """The table as it is shown."""
    with replacing(path, noted=False) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([compared.header, *compared.rows])


def save_latex(compared: Compared, path: Path) -> None:
    """A tabular with the rules of the package booktabs."""
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in (compared.header, *compared.rows)]
    columns = "l" + "r" * (len(compared.header) - 1)
    top, bottom = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule"], [r"\bottomrule", r"\end{tabular}"]
    _save(path, "\n".join([*top, lines[0], r"\midrule", *lines[1:], *bottom]) + "\n")


def save_html(compared: Compared, path: Path) -> None:
    """A table by itself."""
    head = "".join(f"<th>{escape(name)}</th>" for name in compared.header)
    rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in compared.rows]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    _save(path, f'<!doctype html>\n<meta charset="utf-8">\n<table>\n<tr>{head}</tr>\n{body}\n</table>\n')


def _save(path: Path, text: str) -> None:
    with replacing(path, noted=False) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
