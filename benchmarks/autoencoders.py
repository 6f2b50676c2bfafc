"""The autoencoder family side by side: what is restored, and what the code is worth.

    python benchmarks/autoencoders.py --data.path MNIST --data mnist --seeds 0,1,2 --data.limit 10000 --train.epochs 20

Every system is its recipe (`rayssl run SYSTEM-mnist --data.path MNIST --train.seed S …`, here in one process and
without Ray), beside raw pixels, PCA with as many components as the code has numbers, and the same network untrained.
All figures are of the test split; means and standard deviations over the seeds. Other --a.b options go to the config of
every run. What is in --runs already is not done again.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from runs import facts, train
from sklearn.decomposition import PCA

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.device import choose_device
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.data import Dataset
from rayssl.pipeline.evaluation.measure import evaluate_embeddings, raw_pixel_embeddings, read_evaluation
from rayssl.pipeline.evaluation.probe import probe
from rayssl.pipeline.generate.decoder import open_trained
from rayssl.pipeline.generate.reconstruct import measure
from rayssl.pipeline.stages.evaluate import run_evaluate

SYSTEMS = (
    "linear", "deep", "conv", "denoising-gaussian", "denoising-salt-and-pepper", "denoising-masking", "sparse-kl",
    "sparse-log", "sparse-l1", "contractive", "vae", "cvae",
)  # fmt: skip
METRICS = {
    "reconstruct/mse": "error", "probe/features/top1": "probe of the code", "probe/top1": "probe, best stage",
    "knn/top1": "kNN", "cluster/nmi": "NMI",
}  # fmt: skip
UNTRAINED = "baseline/random-init/"


def main() -> int:
    """Run what is missing, write the JSON, print a table."""
    options, changes = parse()
    rows: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in options.seeds:
        for system in options.systems:
            began = time.monotonic()
            flat, dataset = figures(system, seed, options, changes)
            rows.setdefault(system, []).append({key: flat[key] for key in METRICS if key in flat})
            untrained = {key: flat[UNTRAINED + key] for key in METRICS if UNTRAINED + key in flat}
            rows.setdefault(f"{system}, untrained", []).append(untrained)
            seconds.setdefault(system, []).append(round(time.monotonic() - began, 1))
            print(f"{system} seed {seed}: {flat['reconstruct/mse']:.5f} {flat['probe/top1']:.4f}", file=sys.stderr)
        for name, components in baselines(options):
            rows.setdefault(name, []).append(baseline(dataset, components, seed))
    summary = {name: summarise(found) for name, found in rows.items()}
    write_json(options.out, {
        **facts("autoencoders", options.path),
        "seeds": options.seeds,
        "train_images": len(dataset.train),
        "summary": summary,
        "figures": rows,
        "seconds": seconds,
        "commits": commits(options.runs),
    })  # fmt: skip
    print_table(summary)
    return 0


def parse() -> tuple[argparse.Namespace, dict[str, Any]]:
    """Own options, and those of the config."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("mnist", "cifar10"), default="mnist")
    parser.add_argument("--systems", default=",".join(SYSTEMS), type=lambda text: text.split(","))
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--runs", type=Path, default=Path("runs/autoencoders"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(rest)
    options.path = changes.get("data.path", "")
    options.out = options.out or Path(__file__).parent / "results" / f"autoencoders-{options.data}.json"
    return options, changes


def figures(
    system: str, seed: int, options: argparse.Namespace, changes: dict[str, Any]
) -> tuple[dict[str, float], Dataset]:
    """Every figure of one run, and its images."""
    run = options.runs / f"{system}-{options.data}-{seed}"
    stages = ("pretrain", "probe", "embed")
    prepared = train(f"{system}-{options.data}", run, {**changes, "train.seed": seed}, stages)
    run_evaluate(run, prepared.dataset)
    return {**read_evaluation(run)["flat"], **test_error(run)}, prepared.dataset


def test_error(run: Path) -> dict[str, float]:
    """The error over all test images, as PCA's is: pre-training ends with that of the first few hundred."""
    trained = open_trained(run)
    if not hasattr(trained.method, "reconstruct"):
        return {}
    errors = measure(trained, trained.held_out, 0, lambda done, total: None)
    return {"reconstruct/mse": float(errors["reconstruct/mse"].mean())}


def commits(runs: Path) -> dict[str, str]:
    """Of the code that each run was made with."""
    return {path.parent.name: json.loads(path.read_text())["commit"] for path in sorted(runs.glob("*/manifest.json"))}


def baselines(options: argparse.Namespace) -> list[tuple[str, int | None]]:
    """Name and number of components; None: the pixels themselves."""
    return [
        ("raw pixels", None),
        *((f"PCA, {n} numbers", n) for n in ((32, 64) if options.data == "mnist" else (128,))),
    ]


def baseline(dataset: Dataset, components: int | None, seed: int) -> dict[str, float]:
    """Pixels, or their principal components, in the place of a code; fitted on the training images."""
    settings = {"image_size": dataset.image_size, "channels": dataset.channels}
    assert dataset.test is not None
    splits = {
        name: raw_pixel_embeddings(images, name, **settings)
        for name, images in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test))
    }
    found: dict[str, float] = {}
    if components is not None:
        pixels = {name: flat_pixels(dataset, name) for name in splits}
        pca = PCA(components, random_state=seed).fit(pixels["train"])
        restored = pca.inverse_transform(pca.transform(pixels["test"]))
        found["reconstruct/mse"] = float(((restored - pixels["test"]) ** 2).mean())
        splits = {
            name: replace(split, vectors=pca.transform(pixels[name]).astype(np.float32))
            for name, split in splits.items()
        }
    labelled = [(split.vectors, split.labels) for split in splits.values()]
    result = probe(
        *labelled, classes=len(dataset.class_names or ()), epochs=20, batch_size=512,  # type: ignore[arg-type]
        learning_rates=(0.003, 0.01, 0.03, 0.1, 0.3), weight_decays=(0.0, 1e-3), seed=seed, device=choose_device(),
    )  # fmt: skip
    found["probe/features/top1"] = found["probe/top1"] = result.test_accuracy
    records = evaluate_embeddings(
        splits["train"], splits["test"], k=20, temperature=0.07, clusters=None, seed=seed, checkpoint="none"
    )
    return found | {record["metric"]: record["value"] for record in records if record["metric"] in METRICS}


def flat_pixels(dataset: Dataset, split: str) -> Any:
    """(N, H·W·C) in [0, 1]."""
    images = getattr(dataset, split)
    pixels = images.square(np.arange(len(images)), dataset.image_size)
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


def summarise(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and deviation of every figure."""
    keys = [key for key in METRICS if any(key in row for row in found)]
    summary = {}
    for key in keys:
        values = [row[key] for row in found if key in row]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[key] = {"mean": statistics.mean(values), "std": spread, "runs": len(values)}
    return summary


def print_table(summary: dict[str, dict[str, dict[str, float]]]) -> None:
    """Markdown."""
    print("| system | " + " | ".join(METRICS.values()) + " |")
    print("|---|" + "---|" * len(METRICS))
    for name, found in summary.items():
        print(f"| {name} | " + " | ".join(cell(key, found.get(key)) for key in METRICS) + " |")


def cell(key: str, figure: dict[str, float] | None) -> str:
    """Errors as they are, everything else in percent."""
    if figure is None:
        return "–"
    scale, digits = (1.0, 4) if key == "reconstruct/mse" else (100.0, 1)
    return f"{scale * figure['mean']:.{digits}f} ± {scale * figure['std']:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
