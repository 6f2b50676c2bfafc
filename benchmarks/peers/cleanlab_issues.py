"""What cleanlab makes of labels and probabilities: `PYTHON cleanlab_issues.py IN.npz OUT.npz`.

It runs in an environment that needs `cleanlab` alone. IN has labels (N,) and, a name each, probabilities (N, C);
OUT has for each name the flags (N,) of its default filter and the label quality scores (N,).
"""

import sys

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores


def main() -> int:
    """Both figures for each table of probabilities."""
    with np.load(sys.argv[1], allow_pickle=False) as given:
        labels = given["labels"]
        tables = {name: given[name] for name in given.files if name != "labels"}
    found = {}
    for name, table in tables.items():
        found[f"{name}.flags"] = find_label_issues(labels, table, n_jobs=1)
        found[f"{name}.quality"] = get_label_quality_scores(labels, table)
    np.savez(sys.argv[2], **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
