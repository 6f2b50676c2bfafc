"""Is a searched augmentation worth it? Several searches, each beside random search, then all trained alike and tested.

    python benchmarks/tune_search.py --data.path CIFAR10 --encoder.name resnet-tiny --seeds 0,1,2 --trials 24

For every seed `rayssl tune` searches twice: by Optuna, trials without promise being stopped early (ASHA), and plainly
at random, with whole trials until as many steps have been trained. The default augmentation is not among what they
start from. The best of each, the recipe's default and a crop alone are then trained alike (--epochs), each on one
thread, two at a time. kNN of the test images by all training images (cosine, k = 20, T = 0.07) is read once. Also says
how well the objectives that need no labels agreed with kNN over all whole trials. Further --a.b options go to all.
"""

import argparse
import math
import multiprocessing
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from backend_accuracy import knn
from runs import facts, train
from scipy import stats

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.augment.spec import RandomResizedCrop, Spec
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.tune.report import rank_correlations
from rayssl.pipeline.tune.search import load_search
from rayssl.pipeline.tune.trials import load_trials

SPACE = "crop,flip,rotation,color,grey,solarize,blur,cutout"
SEARCHERS = ("optuna", "random")
VARIANTS = (*SEARCHERS, "default", "crop alone")
FINAL_SEED = 100  # of the last training: another network and order than any trial's


def main() -> int:
    """Search, train, test."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="simclr-cifar10")
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--trials", type=int, default=24, help="of the search by Optuna")
    parser.add_argument("--share", type=float, default=0.1, help="of the recipe's steps, for a trial")
    parser.add_argument("--epochs", type=int, default=6, help="of the training that is tested")
    parser.add_argument("--runs", type=Path, default=Path("runs/tune-search"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tune_search.json")
    options = parser.parse_args(rest)
    for seed in options.seeds:
        search(options, changes, seed, "optuna", "asha", options.trials)
        search(options, changes, seed, "random", "none", whole_trials(folder(options, "optuna", seed)))
    write_json(options.runs / "crop.json", Spec((RandomResizedCrop(scale=(0.2, 1.0)),)).to_dict())
    jobs = [(options, changes, variant, seed) for seed in options.seeds for variant in VARIANTS]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        tested = dict(zip([job[2:] for job in jobs], pool.starmap(train_and_test, jobs, chunksize=1)))
    found = {variant: [tested[variant, seed] for seed in options.seeds] for variant in VARIANTS}
    result = {"knn": found, **summary(found), "budgets": budgets(options), "agreement": agreement(options)}
    write_json(options.out, {**facts("tune_search", changes.get("data.path", "")), **result})
    for variant, figures in result["summary"].items():
        print(f"{variant:<12} {100 * figures['mean']:.2f} ± {100 * figures['std']:.2f}")
    for name, difference in result["differences"].items():
        mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
        print(f"{name:<28} {mean:+.2f} [{low:+.2f}, {high:+.2f}]")
    return 0


def folder(options: argparse.Namespace, searcher: str, seed: int) -> Path:
    """Of a search."""
    path: Path = options.runs / f"{searcher}-{seed}"
    return path


def search(
    options: argparse.Namespace, changes: dict[str, Any], seed: int, searcher: str, scheduler: str, trials: int
) -> None:
    """`rayssl tune`; one that has ended returns at once."""
    values = {**changes, "tune.space": SPACE, "tune.search": searcher, "tune.scheduler": scheduler}
    values |= {"tune.trials": trials, "tune.share": options.share, "tune.images": 5000}
    values |= {"tune.seed": seed, "train.seed": seed}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    out = ["--out", str(folder(options, searcher, seed)), "--wandb", "disabled"]
    subprocess.run([sys.executable, "-m", "rayssl.jobs.main", "tune", options.recipe, *flags, *out], check=True)


def trained_steps(path: Path) -> list[int]:
    """Steps of every trial of a search."""
    return [trial.curve[-1][0] if trial.curve else 0 for trial in load_trials(path)]


def whole_trials(path: Path) -> int:
    """How many trials that are not stopped have at least as many steps as those of a search."""
    return math.ceil(sum(trained_steps(path)) / int(load_search(path)["steps"]))


def budgets(options: argparse.Namespace) -> dict[str, dict[str, list[int]]]:
    """Trials and steps of every search, by seed."""
    found = {name: [trained_steps(folder(options, name, seed)) for seed in options.seeds] for name in SEARCHERS}
    return {
        name: {"trials": [len(steps) for steps in seeds], "steps": [sum(steps) for steps in seeds]}
        for name, seeds in found.items()
    }


def train_and_test(options: argparse.Namespace, changes: dict[str, Any], variant: str, seed: int) -> float:
    """Test accuracy by kNN after training with a variant's augmentation."""
    own = {**changes, "train.seed": FINAL_SEED + seed, "train.threads": 1, "train.epochs": options.epochs}
    if variant in SEARCHERS:
        own["augment.spec"] = str(folder(options, variant, seed) / "best.json")
    elif variant == "crop alone":
        own["augment.spec"] = str(options.runs / "crop.json")
    run = options.runs / f"final-{variant.replace(' ', '-')}-{seed}"
    return knn(run, train(options.recipe, run, own).dataset)


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    """Mean and standard deviation of every variant, and the differences seed by seed with 95 % intervals (t)."""
    middle = {name: {"mean": statistics.mean(v), "std": statistics.stdev(v)} for name, v in found.items()}
    pairs = [("optuna", other) for other in ("crop alone", "random", "default")] + [("default", "crop alone")]
    return {"summary": middle, "differences": {f"{a} - {b}": difference(found[a], found[b]) for a, b in pairs}}


def difference(first: list[float], second: list[float]) -> dict[str, float]:
    """Mean of the differences of pairs and its 95 % interval by Student's t."""
    gaps = [a - b for a, b in zip(first, second)]
    mean, width = statistics.mean(gaps), float(stats.t.ppf(0.975, len(gaps) - 1))
    half = width * statistics.stdev(gaps) / len(gaps) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def agreement(options: argparse.Namespace) -> dict[str, Any]:
    """Rank correlation of every objective without labels with kNN, in each search and over all trials of all."""
    trials = {
        f"{searcher}-{seed}": load_trials(folder(options, searcher, seed))
        for searcher in SEARCHERS
        for seed in options.seeds
    }
    together = [trial for found in trials.values() for trial in found]
    return {name: rank_correlations(found) for name, found in {**trials, "all": together}.items()}


if __name__ == "__main__":
    sys.exit(main())
