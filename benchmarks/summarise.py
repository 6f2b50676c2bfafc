"""Mean ± standard deviation over the seeds of a recipe, from finished run folders, as JSON.

    python benchmarks/summarise.py OUT.json RUN RUN …

Runs of one recipe that differ in their seed are put together; the command of each is kept beside its figures.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any


def main(out: Path, runs: list[Path]) -> None:
    """Read the runs, write the summary, print a line a metric."""
    recipes: dict[str, list[Path]] = {}
    for run in runs:
        recipes.setdefault(json.loads((run / "manifest.json").read_text())["recipe"], []).append(run)
    summary = {recipe: summarise(folders) for recipe, folders in recipes.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(summary, indent=1) + "\n")
    for recipe, found in summary.items():
        for metric, figure in found["metrics"].items():
            print(f"{recipe:<22} {metric:<45} {figure['mean']:.4f} ± {figure['std']:.4f} (n = {figure['runs']})")


def summarise(runs: list[Path]) -> dict[str, Any]:
    """The figures of runs of one recipe."""
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs]
    flats = [json.loads((run / "evaluation.json").read_text())["flat"] for run in runs]
    metrics = {}
    for metric in sorted(set().union(*flats)):
        values = [flat[metric] for flat in flats if metric in flat]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        metrics[metric] = {"mean": statistics.mean(values), "std": spread, "runs": len(values), "values": values}
    return {
        "commands": [manifest["command"] for manifest in manifests],
        "commit": sorted({str(manifest["commit"]) for manifest in manifests}),
        "machine": manifests[0]["machine"],
        "versions": manifests[0]["versions"],
        "seeds": [manifest["seed"] for manifest in manifests],
        "seconds": [{name: done["seconds"] for name, done in m["stages"].items()} for m in manifests],
        "metrics": metrics,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
