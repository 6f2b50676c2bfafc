"""The autoencoder family side by side: what is restored, and what the code is worth.

    python benchmarks/autoencoders.py --data.path MNIST --data mnist --seeds 0,1,2 --data.limit 10000 --train.epochs 20

Every system is its recipe (`rayssl run SYSTEM-mnist --data.path MNIST --train.seed S …`, here in one process and
without Ray), beside raw pixels, PCA with as many components as the code has numbers, and the same network untrained.
All figures are of the test split; means and standard deviations over the seeds. Other --a.b options go to the config of
every run. What is in --runs already is not done again.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.decomposition import PCA

from jobs.cli import take_config_paths
from pipeline.config import Config, override
from pipeline.data import Dataset
from pipeline.evaluate import evaluate_embeddings, raw_pixel_embeddings, read_evaluation
from pipeline.files import write_json
from pipeline.launch import prepare_shown
from pipeline.prepare import open_data
from pipeline.probe import probe
from pipeline.progress import Display
from pipeline.recipes import build_recipe
from pipeline.reporter import LocalReporter
from pipeline.runfolder import describe_software
from pipeline.stages import run_evaluate, run_worker_stages
from pipeline.train import choose_device

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
    display = Display(Console(stderr=True, quiet=True))
    for seed in options.seeds:
        for system in options.systems:
            began = time.monotonic()
            flat = figures(system, seed, options, changes, display)
            rows.setdefault(system, []).append({key: flat[key] for key in METRICS if key in flat})
            untrained = {key: flat[UNTRAINED + key] for key in METRICS if UNTRAINED + key in flat}
            rows.setdefault(f"{system}, untrained", []).append(untrained)
            seconds.setdefault(system, []).append(round(time.monotonic() - began, 1))
            print(f"{system} seed {seed}: {flat['reconstruct/mse']:.5f} {flat['probe/top1']:.4f}", file=sys.stderr)
        dataset = open_data(config_of(options.systems[0], seed, options, changes))
        for name, components in baselines(options):
            rows.setdefault(name, []).append(baseline(dataset, components, seed))
    summary = {name: summarise(found) for name, found in rows.items()}
    write_json(options.out, {
        "benchmark": "autoencoders",
        "command": shlex.join(["python", "benchmarks/autoencoders.py", *public(sys.argv[1:], options.path)]),
        **describe_software(),
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


def config_of(system: str, seed: int, options: argparse.Namespace, changes: dict[str, Any]) -> Config:
    """The recipe with the options."""
    return override(build_recipe(f"{system}-{options.data}"), {**changes, "train.seed": seed, "wandb": "disabled"})


def figures(
    system: str, seed: int, options: argparse.Namespace, changes: dict[str, Any], display: Display
) -> dict[str, float]:
    """Every figure of one run."""
    run = options.runs / f"{system}-{options.data}-{seed}"
    config = config_of(system, seed, options, changes)
    command = shlex.join(["rayssl", "run", f"{system}-{options.data}", "--train.seed", str(seed)])
    prepared = prepare_shown(config, run, command, display)
    run_worker_stages(run, ["pretrain", "probe", "embed"], LocalReporter(display))
    run_evaluate(run, prepared.dataset)
    flat: dict[str, float] = read_evaluation(run)["flat"]
    return flat


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
        for name, split in splits.items():
            object.__setattr__(split, "vectors", pca.transform(pixels[name]).astype(np.float32))
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


def public(words: list[str], path: str) -> list[str]:
    """The command's words, with only the name of the folder of images."""
    return [word.replace(path, Path(path).name) if path else word for word in words]


if __name__ == "__main__":
    sys.exit(main())
