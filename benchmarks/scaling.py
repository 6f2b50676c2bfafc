"""What a step, the index and the evaluation cost as images, resolution, batch and workers grow.

    python benchmarks/scaling.py --data.path CIFAR10

  resolution  images/s of a SimCLR step for views of 16 to 128 pixels (the images are resized)
  batch       images/s and peak memory of a SimCLR step for batches of 64 to 1024, each in a process of its own
  workers     images/s of training for one and two processes that share the cores, with the same global batch
  images      seconds to build an index of 10^4 to 10^6 vectors of 128 dimensions, milliseconds a query, recall@10

Vectors are drawn at random round 1000 centres. Leave it the machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.config import override
from rayssl.pipeline.launch.opened import open_for_profile
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.build import compile_or_capture
from rayssl.pipeline.run.metrics_log import MetricsLog
from rayssl.pipeline.run.software import describe_software
from rayssl.pipeline.search.index import build_index, measure_recall
from rayssl.pipeline.stages.profile import Bench, plain_pass

RECIPE = "simclr-cifar10"
RESOLUTIONS, BATCHES, WORKERS, VECTORS = (16, 32, 64, 96, 128), (64, 128, 256, 512, 1024), (1, 2), (10**4, 10**5, 10**6)
DIM, CENTRES, QUERIES = 128, 1000, 200


def main() -> int:
    """Parse, measure, write the result, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="data", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--step", help=argparse.SUPPRESS)  # measure one setting, as SIZE,BATCH, in this process
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measure_step(options, *(int(word) for word in options.step.split(",")))))
        return 0
    facts = {"benchmark": "scaling", "command": " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]])}
    found = {
        "resolution": {size: in_process(options, size, 256 if size <= 64 else 64) for size in RESOLUTIONS},
        "batch": {batch: in_process(options, 32, batch) for batch in BATCHES},
        "workers": {workers: train_with(options, workers) for workers in WORKERS},
        "images": {n: measure_index(n) for n in VECTORS},
    }
    write_json(options.out, {**facts, **describe_software(), **found})
    for name, rows in found.items():
        print(name, *(f"  {key:>8,}: {row}" for key, row in rows.items()), sep="\n")
    return 0


def in_process(options: argparse.Namespace, size: int, batch: int) -> dict[str, float]:
    """A step's cost, in a process of its own: peak memory is a process's."""
    own = ["--data.path", options.data, "--steps", str(options.steps), "--step", f"{size},{batch}"]
    done = run([sys.executable, __file__, *own])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_step(options: argparse.Namespace, size: int, batch: int) -> dict[str, float]:
    """Images/s, and the process's peak memory in MB."""
    changes: dict[str, Any] = {"data.path": options.data, "data.limit": 4096, "data.image_size": size}
    # The same network and full views at every size.
    changes |= {"train.batch_size": batch, "train.small_views": 0.0, "encoder.stem": "small"}
    config = override(build_recipe(RECIPE), changes)
    with closing(Bench(open_for_profile(config, lambda row: None))) as bench:  # type: ignore[arg-type]
        if compile_or_capture(bench.method, bench.work.config, bench.work):
            bench.record()
        bench.warm_up()
        _, seconds = plain_pass(bench, options.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"batch": batch, "images_per_s": round(batch * options.steps / seconds), "peak_mb": round(peak)}


def train_with(options: argparse.Namespace, workers: int) -> dict[str, float]:
    """Images/s of `rayssl pretrain` in processes of torchrun that share the cores."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        own = ["--train.steps", str(5 * options.steps), "--train.threads", str(threads), "--wandb", "disabled"]
        out = Path(folder) / "run"
        run([*launcher, "-m", "rayssl.jobs.pretrain", RECIPE, "--data.path", options.data, "--out", str(out), *own])
        rows = [row for row in MetricsLog(out).rows() if "perf/images_per_s" in row]
    speeds = [row["perf/images_per_s"] for row in rows[len(rows) // 2 :]]
    return {"threads": threads, "images_per_s": round(statistics.median(speeds))}


def measure_index(n: int) -> dict[str, float]:
    """Build an index as `rayssl index` does, and ask it."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CENTRES, DIM), dtype=np.float32)
    vectors = centres[generator.integers(CENTRES, size=n)]
    vectors += 0.5 * generator.standard_normal((n, DIM), dtype=np.float32)
    ids = np.arange(n, dtype=np.int64)
    began = time.perf_counter()
    index = build_index(vectors, ids)
    built = time.perf_counter() - began
    asked = np.ascontiguousarray(vectors[:QUERIES] / np.linalg.norm(vectors[:QUERIES], axis=1, keepdims=True))
    began = time.perf_counter()
    for row in asked:
        index.search(row[None], 10)
    one = (time.perf_counter() - began) / QUERIES
    recall = measure_recall(index, vectors, ids, k=10)
    return {"build_s": round(built, 2), "query_ms": round(1e3 * one, 3), "recall_at_10": round(recall, 4)}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its good end, with threads that wait asleep as the console command has them."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done


if __name__ == "__main__":
    sys.exit(main())
