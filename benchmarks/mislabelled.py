"""Which rule finds planted wrong labels: a vote of neighbours, or confident learning as in cleanlab?

    python benchmarks/mislabelled.py RUN … --peer PYTHON --seeds 3 --out FILE

In every labelled run 5 % of the labels are replaced by those of other classes, drawn at random. Each rule sees the
same vectors and the same wrong labels. By probabilities of `vote` (k nearest others, weights exp(s / T)) and, with
`--regression`, which takes minutes, of a logistic regression in 5-fold cross-validation: the rule of `rayssl
mislabelled`, and cleanlab's filter and label quality (Northcutt et al., JAIR 2021) where `--peer` names a Python that
has it. Average precision is that of the ranking; precision and recall those of what is flagged. Labels that were wrong
before count as right.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from runs import facts

from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.curation.mislabelled import suspects, vote
from rayssl.pipeline.run.folder import data_name
from rayssl.pipeline.search.described import searched_splits
from rayssl.pipeline.search.graph import make_graph

SHARE = 0.05
Tables = dict[str, NDArray[np.float64]]


def main() -> int:
    """Measure every run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--regression", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {
        run.name: measure(run, options.peer, options.seeds, with_regression=options.regression) for run in options.runs
    }
    for name, rules in found.items():
        for rule, figures in rules.items():
            print(f"{name:<12} {rule:<34} {json.dumps(figures)}")
    if options.out is not None:
        options.out.write_text(json.dumps({**facts("mislabelled", ""), "runs": found}, indent=2) + "\n")
    return 0


def measure(run: Path, python: Path | None, seeds: int, *, with_regression: bool) -> dict[str, Any]:
    """Mean figures of every rule over the seeds."""
    splits = [split for split in searched_splits(run, data_name(run)).values() if split.labels is not None]
    labels = np.concatenate([split.labels for split in splits])
    vectors = normalise(np.concatenate([split.vectors for split in splits])[labels >= 0])
    labels = labels[labels >= 0]
    graph = make_graph(vectors, np.arange(len(labels)))
    n_classes = int(labels.max()) + 1
    each: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        given = swapped(labels, n_classes, seed)
        tables = {"vote": vote(graph, given, n_classes)}
        if with_regression:
            tables["regression"] = regression(vectors, given, n_classes)
        rules = dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]()
        for name, table in tables.items():
            rules[f"{name}, ours"] = suspects(table, given)[:2]
        if python is not None:
            rules |= cleanlab(python, given, tables)
        for name, (flags, ranking) in rules.items():
            each.setdefault(name, []).append(scores(flags, ranking, given != labels))
    return {name: {key: round(float(np.mean([one[key] for one in many])), 4) for key in many[0]}
            for name, many in each.items()}  # fmt: skip


def swapped(labels: NDArray[np.int64], n_classes: int, seed: int) -> NDArray[np.int64]:
    """5 % of the labels replaced by another class."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels))[: round(SHARE * len(labels))]
    given = labels.copy()
    given[rows] = (given[rows] + rng.integers(1, n_classes, len(rows))) % n_classes
    return given


def regression(vectors: NDArray[np.float32], labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """(N, C) out-of-sample probabilities."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    model = LogisticRegression(C=10.0, max_iter=50, tol=1e-2)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    found = np.zeros((len(labels), n_classes))
    found[:, np.unique(labels)] = cross_val_predict(model, vectors, labels, cv=folds, method="predict_proba")
    return found


def cleanlab(python: Path, labels: NDArray[np.int64], tables: Tables) -> dict[str, Any]:
    """Flags and ranking (the larger the more suspicious) of cleanlab; classes without an image are left out."""
    known, given = np.unique(labels, return_inverse=True)
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "in.npz"), Path(folder, "out.npz")
        proper = {name: table[:, known] + 1e-6 for name, table in tables.items()}
        proper = {name: table / table.sum(axis=1, keepdims=True) for name, table in proper.items()}
        np.savez(asked, labels=given, **proper)
        subprocess.run([python, Path(__file__).parent / "peers/cleanlab_issues.py", asked, answer], check=True)
        with np.load(answer, allow_pickle=False) as found:
            return {f"{name}, cleanlab": (found[f"{name}.flags"], -found[f"{name}.quality"]) for name in tables}


def scores(flags: NDArray[np.bool_], ranking: NDArray[np.float64], wrong: NDArray[np.bool_]) -> dict[str, float]:
    """Of what is flagged, and of the ranking."""
    from sklearn.metrics import average_precision_score

    precision = float((flags & wrong).sum() / max(1, flags.sum()))
    recall = float((flags & wrong).sum() / wrong.sum())
    f1 = 2 * precision * recall / max(1e-12, precision + recall)
    ap = float(average_precision_score(wrong, ranking))
    return {"average_precision": ap, "precision": precision, "recall": recall, "f1": f1}


if __name__ == "__main__":
    sys.exit(main())
