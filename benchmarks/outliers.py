"""Which score finds images of another set among a run's own, and by which vectors?

    rayssl embed RUN --data.path OTHER --data.labels none
    python benchmarks/outliers.py RUN OTHER --planted 10 --draws 3 --out FILE

A few images of OTHER, the name of a data set that the run has embedded beside its own, are put among the run's images;
the mean over draws of AUROC and average precision of two scores over 20 neighbours, by the vectors that are searched
and by the last stage: the distance to the 20th neighbour, which `rayssl outliers` ranks by, and scikit-learn's local
outlier factor (Breunig et al., 2000).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from runs import facts
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor

from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.curation.outliers import outlier_distance
from rayssl.pipeline.run.folder import data_name
from rayssl.pipeline.search.described import load_splits, load_splits_in, searched_splits
from rayssl.pipeline.search.graph import K, make_graph


def main() -> int:
    """Plant, rank, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("other")
    parser.add_argument("--planted", type=int, default=10)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    own = data_name(options.run)
    found: dict[str, Any] = {}
    for space, load in (("searched", searched_splits), ("last", load_splits)):
        folder = "" if load is load_splits else "search"
        other = load_splits_in(options.run / "embeddings" / options.other / folder)
        vectors = [np.concatenate([one.vectors for one in splits.values()])
                   for splits in (load(options.run, own), other)]  # fmt: skip
        draws = [measure(*vectors, options.planted, seed) for seed in range(options.draws)]
        found |= {f"{space}, {name}": mean([draw[name] for draw in draws]) for name in draws[0]}
    for name, figures in found.items():
        print(f"{name:<32} {json.dumps(figures)}")
    if options.out is not None:
        result = {**facts("outliers", ""), "planted": options.planted, "found": found}
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def measure(own: np.ndarray, other: np.ndarray, planted: int, seed: int) -> dict[str, dict[str, float]]:
    """Both scores with some images of the other set."""
    rows = np.random.default_rng(seed).permutation(len(other))[:planted]
    points = normalise(np.concatenate([own, other[rows]]))
    odd = np.arange(len(points)) >= len(own)
    lof = LocalOutlierFactor(n_neighbors=K).fit(points)
    scores = {"distance": outlier_distance(make_graph(points, np.arange(len(points)))),
              "local outlier factor": -lof.negative_outlier_factor_}  # fmt: skip
    return {
        name: {"auroc": float(roc_auc_score(odd, one)), "average_precision": float(average_precision_score(odd, one))}
        for name, one in scores.items()
    }


def mean(figures: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: round(float(np.mean([one[name] for one in figures])), 3) for name in figures[0]}


if __name__ == "__main__":
    sys.exit(main())
