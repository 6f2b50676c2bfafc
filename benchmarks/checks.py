"""What checking costs: a whole run with `verify` at its end, and a query, against an earlier checkout of the project.

    git worktree add ../before d0b4c9a
    python benchmarks/checks.py ../before --out benchmarks/results/checks.json

In turns, the order changing from pair to pair: here `run` and `verify`, there `run` alone; then `query --json` on the
two run folders. Whole commands by the clock, one warm-up of each. A figure is the median over pairs, and a ratio the
median of the ratios of pairs, with the range of medians that resampling the pairs gives (bootstrap, 95 %). `--run RUN`
measures queries alone, on a run folder that is there.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from runs import facts

from rayssl.pipeline.base.files import write_json

HERE = Path(__file__).resolve().parent.parent


def main() -> int:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("--recipe", default="simclr-digits")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    trees = {"after": HERE, "before": options.before.resolve()}
    with tempfile.TemporaryDirectory() as place:
        folder, found = Path(place), {}
        picture = folder / "query.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture)
        if options.run is None:
            found["run"] = pairs(
                lambda name, turn: whole_run(trees[name], options.recipe, folder / name / str(turn), name),
                options.pairs,
            )
        asked = {name: options.run.resolve() if options.run else folder / name / "0" for name in trees}
        found["query"] = pairs(
            lambda name, turn: command(trees[name], "query", str(asked[name]), str(picture), "--json"),
            2 * options.pairs,
        )
    if options.out:
        write_json(options.out, {**facts("checks", str(options.before)), **found})
    for name, row in found.items():
        low, high = row["interval"]
        print(
            f"{name}: {row['before']:.2f} s before, {row['after']:.2f} s now, "
            f"× {row['ratio']:.3f} [{low:.3f}, {high:.3f}] over {len(row['seconds']['after'])} pairs"
        )
    return 0


def whole_run(tree: Path, recipe: str, out: Path, name: str) -> None:
    """A run, and here the look at it."""
    command(tree, "run", recipe, "--out", str(out))
    if name == "after":
        command(tree, "verify", str(out))


def command(tree: Path, *words: str) -> None:
    """`rayssl …` of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "WANDB_MODE": "disabled"}
    subprocess.run(
        [sys.executable, "-m", "rayssl.jobs.main", *words], env=environment, cwd=tree, check=True, capture_output=True
    )


def pairs(work: Callable[[str, int], None], count: int) -> dict[str, Any]:
    """Seconds of both in turn, after a warm-up of each."""
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    for turn in range(count + 1):
        for name in sorted(seconds, reverse=turn % 2 == 0):
            began = time.perf_counter()
            work(name, turn)
            seconds[name].append(time.perf_counter() - began)
    seconds = {name: values[1:] for name, values in seconds.items()}
    ratios = np.divide(seconds["after"], seconds["before"])
    drawn = np.random.default_rng(0).choice(ratios, (10_000, count))
    return {
        **{name: statistics.median(values) for name, values in seconds.items()},
        "ratio": float(np.median(ratios)),
        "interval": np.quantile(np.median(drawn, axis=1), [0.025, 0.975]).tolist(),
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
