"""Which two augmentations belong together? Figure 5 of the SimCLR paper (Chen et al., 2020) at the size of a CPU.

    python benchmarks/tune_pairs.py --data.path CIFAR10 --encoder.name resnet-tiny --seeds 0,1,2

Every operation alone and each two together, on one of the two branches as in the paper (section 3.2), by `rayssl tune
--tune.search pairs`. kNN of held-out training images; mean over the seeds, differences with 95 % intervals.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from runs import facts
from tune_search import difference

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.tune.space import FAMILIES, applies
from rayssl.pipeline.tune.trials import load_trials

SPACE = "crop,cutout,color,noise,blur,rotation"


def main() -> int:
    """A search a seed, then the table."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="simclr-cifar10")
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--share", type=float, default=0.1, help="of the recipe's steps, for a trial")
    parser.add_argument("--runs", type=Path, default=Path("runs/tune-pairs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tune_pairs.json")
    options = parser.parse_args(rest)
    cells: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name, score in search(options, changes, seed).items():
            cells.setdefault(name, []).append(score)
    means = {name: statistics.mean(scores) for name, scores in cells.items()}
    best = max((name for name in means if "+" in name), key=lambda name: means[name])
    found: dict[str, Any] = {"knn": cells, "mean": means, "best_pair": best}
    found["crop+color - crop"] = difference(cells["crop+color"], cells["crop"])
    write_json(options.out, {**facts("tune_pairs", changes.get("data.path", "")), **found})
    names = [name for name in FAMILIES if name in means]
    print(" " * 10, *(f"{name:>9}" for name in names))
    for row, column in itertools.product(names, repeat=2):
        if column == names[0]:
            print(f"{row:<10}", end=" ")
        key = row if row == column else "+".join(sorted((row, column), key=names.index))
        print(f"{100 * means[key]:9.1f}", end="\n" if column == names[-1] else " ")
    print(f"best pair: {best}; crop+color − crop: {found['crop+color - crop']}")
    return 0


def search(options: argparse.Namespace, changes: dict[str, Any], seed: int) -> dict[str, float]:
    """Scores by `crop` or `crop+color`."""
    out = options.runs / f"pairs-{seed}"
    values = {**changes, "tune.space": SPACE, "tune.search": "pairs", "tune.share": options.share}
    values |= {"tune.images": 5000, "train.seed": seed}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    call = [
        sys.executable,
        "-m",
        "rayssl.jobs.main",
        "tune",
        options.recipe,
        *flags,
        "--out",
        str(out),
        "--wandb",
        "disabled",
    ]
    subprocess.run(call, check=True)
    return {operations(trial.parameters): trial.score for trial in load_trials(out) if trial.score is not None}


def operations(parameters: dict[str, Any]) -> str:
    """The names of the operations that a candidate applies."""
    return "+".join(name for name in FAMILIES if f"{name}.p" in parameters and applies(parameters, name))


if __name__ == "__main__":
    sys.exit(main())
