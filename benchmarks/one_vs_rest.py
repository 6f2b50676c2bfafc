"""Anomalies on MNIST: trained on the images of one digit, which test images are of another? Mean AUROC over the digits.

    python benchmarks/one_vs_rest.py --data.path MNIST --recipe vae-mnist --seeds 0,1,2 --train.epochs 20

Every run is `rayssl pretrain RECIPE --data.classes D …` and `rayssl anomalies RUN`. Beside its scores stands the mean
distance to the 5 nearest training images in raw pixels, of the same images.
"""

import argparse
import statistics
import sys
from pathlib import Path

import faiss
import numpy as np
from runs import facts, train

from rayssl.jobs.cli import take_config_paths
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.generate.anomalies import auroc, normal_images, rank_anomalies
from rayssl.pipeline.generate.decoder import open_trained

K = 5


def main() -> int:
    """Ten digits for every seed; a table."""
    rest, changes = take_config_paths(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="vae-mnist")
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--digits", default="0,1,2,3,4,5,6,7,8,9", type=lambda text: text.split(","))
    parser.add_argument("--runs", type=Path, default=Path("runs/one-vs-rest"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "one-vs-rest-mnist.json")
    options = parser.parse_args(rest)
    rows: list[dict[str, float]] = []
    for seed in options.seeds:
        for digit in options.digits:
            run = options.runs / f"{options.recipe}-{digit}-{seed}"
            train(options.recipe, run, {**changes, "data.classes": [digit], "train.seed": seed})
            rows.append({"seed": seed, "digit": int(digit), **scores(run)})
            print(rows[-1], file=sys.stderr, flush=True)
    names = [name for name in rows[0] if name not in ("seed", "digit", "images")]
    summary = {}
    for name in names:
        means = [statistics.mean(row[name] for row in rows if row["seed"] == seed) for seed in options.seeds]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        summary[name] = {"mean": statistics.mean(means), "std": spread, "by_seed": means}
    found = {**facts("one_vs_rest", changes.get("data.path", "")), "recipe": options.recipe, "summary": summary}
    write_json(options.out, {**found, "figures": rows})
    for name, figure in summary.items():
        print(f"{name:<16} {100 * figure['mean']:.1f} ± {100 * figure['std']:.1f}")
    return 0


def scores(run: Path) -> dict[str, float]:
    """AUROC of every score, and of distances in raw pixels."""
    trained = open_trained(run)
    held_out, names = trained.held_out, trained.dataset.class_names
    normal = normal_images(held_out, names, list(trained.config.data.classes or ()))
    assert normal is not None
    found = rank_anomalies(
        trained.method.encoder, trained, trained.dataset.train, held_out, normal, k=K, device=trained.device,
        precision=trained.precision, out=run / "anomalies", progress=lambda done, total: None,
    )["auroc"]  # fmt: skip
    pixels = [
        part.square(np.arange(len(part)), trained.dataset.image_size) for part in (trained.dataset.train, held_out)
    ]
    known, asked = (part.reshape(len(part), -1).astype(np.float32) / 255 for part in pixels)
    index = faiss.IndexFlatL2(known.shape[1])
    index.add(known)
    squares, _ = index.search(asked, K)
    by_pixels = auroc(np.sqrt(np.maximum(squares, 0)).mean(axis=1).astype(np.float64), normal == 0)
    return {**found, "raw pixels": by_pixels, "images": len(known)}


if __name__ == "__main__":
    sys.exit(main())
