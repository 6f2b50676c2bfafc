"""One worker and two workers with the same global batch: curves in float64, gradients in float32.

    python benchmarks/workers.py --data.path FOLDER --data.limit 1000 --train.batch-size 16

For each recipe: `rayssl pretrain` with one worker and with two, 50 steps in float64, and the largest relative
difference of the losses (at most 1e-9). Then gradients from identical weights for five batches, in one process and
averaged over two: norm of the difference over norm, at most 1e-5 in float32 and 1e-12 in float64.

Ends with 1 where a bound is not met.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.run.build import batches_of, new_method
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.run.images import open_data
from rayssl.pipeline.run.software import describe_software
from rayssl.pipeline.training.step import to_batch, wrap_for_workers

RECIPES = ("simclr-cifar10", "rotnet-cifar10", "autoencoder-cifar10")
STEPS = 50
TRIES = 3  # Ray gives up where a busy machine takes more than 30 s to start it; the command goes on where it was
CURVE_BOUND = 1e-9
GRADIENT_BOUNDS = {"fp32": 1e-5, "fp64": 1e-12}
BATCHES = 5


def main() -> int:
    """Parse, measure every recipe, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "workers.json")
    options, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="workers-") as folder:
        results = [measure(recipe, flags, Path(folder)) for recipe in options.recipes.split(",")]
    met = all(result["within_bounds"] for result in results)
    write_json(
        options.out,
        {
            "benchmark": "workers",
            "command": " ".join(["python", "benchmarks/workers.py", *sys.argv[1:]]),
            **describe_software(),
            "steps": STEPS,
            "bounds": {"curve": CURVE_BOUND, "gradient": GRADIENT_BOUNDS},
            "recipes": results,
            "within_bounds": met,
        },
    )
    for result in results:
        print(json.dumps({key: value for key, value in result.items() if key not in ("config", "differences")}))
    return 0 if met else 1


def measure(recipe: str, flags: list[str], folder: Path) -> dict[str, Any]:
    """Curves and gradients of one recipe."""
    runs = [pretrain(recipe, workers, flags, folder / f"{recipe}-{workers}") for workers in (1, 2)]
    alone, together = (losses(run) for run in runs)
    differences = [abs(b - a) / abs(a) for a, b in zip(alone, together, strict=True)]
    found = gradient_differences(runs[0], folder)
    return {
        "recipe": recipe,
        "largest_relative_difference_of_losses": max(differences),
        "differences": differences,
        "relative_differences_of_gradients": found,
        "first_loss": alone[0],
        "last_loss": alone[-1],
        "within_bounds": max(differences) <= CURVE_BOUND
        and all(max(found[precision]) <= bound for precision, bound in GRADIENT_BOUNDS.items()),
        "config": read_config(runs[0]),
    }


def pretrain(recipe: str, workers: int, flags: list[str], run: Path) -> Path:
    """The command that users run, with Ray."""
    own = ["--train.threads", "1", "--train.precision", "fp64", "--train.steps", str(STEPS), "--wandb", "disabled"]
    own += ["--cluster.workers", str(workers), "--out", str(run), *flags]
    print(f"[{time.strftime('%T')}] {recipe}: {workers} worker{'s' * (workers > 1)}", file=sys.stderr, flush=True)
    call = [sys.executable, "-m", "rayssl.jobs.main", "pretrain", recipe, *own]
    for _ in range(TRIES):
        done = subprocess.run(call, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return run
    raise SystemExit(f"{' '.join(call)} ended with {done.returncode}:\n{done.stderr}")


def losses(run: Path) -> list[float]:
    """The losses of pre-training, step by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [row["train/loss"] for row in rows if row["stage"] == "pretrain"]


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config; of the path of the images only the name, the rest is this machine's own business."""
    config: dict[str, Any] = json.loads((run / "config.json").read_text())
    config["data"]["path"] = Path(config["data"]["path"]).name
    return config


def gradient_differences(run: Path, folder: Path) -> dict[str, list[float]]:
    """By precision ‖g₂ − g₁‖ / ‖g₁‖ over all parameters, one number a batch."""
    for workers in (1, 2):
        rendezvous = folder / f"{run.name}-{workers}.rendezvous"
        spawn(save_gradients, (workers, str(run), str(rendezvous)), nprocs=workers)  # type: ignore[no-untyped-call]
    alone, together = (torch.load(run / f"gradients-{workers}.pt", weights_only=True) for workers in (1, 2))
    return {
        precision: [float((b - a).norm() / a.norm()) for a, b in zip(alone[precision], together[precision])]
        for precision in GRADIENT_BOUNDS
    }


def save_gradients(rank: int, workers: int, run: str, rendezvous: str) -> None:
    """One process of a group: gradients of the first batches with the run's first weights, in both precisions."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    found = {precision: gradients(Path(run), precision) for precision in GRADIENT_BOUNDS}
    if rank == 0:
        torch.save(found, Path(run) / f"gradients-{workers}.pt")
    if workers > 1:
        dist.destroy_process_group()


def gradients(run: Path, precision: str) -> list[Tensor]:
    """All gradients of the global batch in one vector, one a batch; the weights stay as they are."""
    config = configuration.load(run / "config.json")
    work = Work(run, Silent(), config, open_data(config), torch.device("cpu"), precision)
    method = new_method(config, work)
    model = wrap_for_workers(method.train())
    found = []
    for raw in batches_of(work, work.dataset.train, config, 0, BATCHES):
        method.zero_grad()
        model(to_batch(raw, work.device, precision, config.train.seed)).loss.backward()
        given = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
        found.append(torch.cat([gradient.flatten() for gradient in given]))
    return found


if __name__ == "__main__":
    sys.exit(main())
