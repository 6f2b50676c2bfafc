"""A small run for the tests of exactness: in this process, as a command line, and what it leaves."""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.base.reporter import Reporter, Silent
from rayssl.pipeline.config import override
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.auto import decide_and_keep
from rayssl.pipeline.run.context import Work
from rayssl.pipeline.stages.pretrain import run_pretrain
from rayssl.pipeline.stages.start import prepare
from rayssl.pipeline.stages.story import run_worker_stages

Rows = list[dict[str, Any]]

# One thread everywhere, because sums in another order are other numbers.
CHANGES = {
    "data.limit": 256,
    "encoder.name": "cnn-small",
    "train.batch-size": 32,
    "train.checkpoint-epochs": 1,
    "train.threads": 1,
    "train.precision": "fp32",
    "wandb": "disabled",
}
RECIPE = "simclr-digits"
# What a tiny run of a method cannot do without; a method that is not named here runs without.
NEEDED = {
    "distill": {"method.teacher": "color-histogram"},
    "pixelcnn": {"encoder.name": "pixelcnn", "encoder.latent_dim": 4, "encoder.depth": 1},
}


class StopAt(Silent):
    """Asks to stop at its n-th question."""

    def __init__(self, question: int) -> None:
        self.left = question

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left == 0


def pretrain(run: Path, reporter: Reporter | None = None) -> Work:
    """Pre-train in this process, from where the run is to its end or where the reporter stops it."""
    work = decide_and_keep(Work.open(run, reporter or Silent()))
    run_pretrain(work)
    return work


def quiet() -> Display:
    """A display that shows nothing."""
    return Display(Console(quiet=True))


def command(run: Path, **changes: Any) -> list[str]:
    """`rayssl pretrain …` with Ray on this machine."""
    return [sys.executable, "-m", "rayssl.jobs.main", *arguments(run, **changes)]


def arguments(run: Path, **changes: Any) -> list[str]:
    """pretrain RECIPE --out …"""
    values = {**CHANGES, **_dotted(changes)}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return ["pretrain", RECIPE, "--out", str(run), *flags]


def prepare_run(run: Path, recipe: str = RECIPE, **changes: Any) -> Path:
    """A run folder with nothing done in it."""
    config = override(build_recipe(recipe), {**CHANGES, **_dotted(changes)})
    return prepare(config, run, command="", warn=lambda _: None, progress=lambda *_: None).run


def pretrain_here(run: Path, recipe: str = RECIPE, reporter: Reporter | None = None, **changes: Any) -> Path:
    """Start or continue pre-training in this process."""
    prepare_run(run, recipe, **changes)
    run_worker_stages(run, ["pretrain"], reporter or Silent())
    return run


def epochs_for(seconds: float, folder: Path) -> int:
    """So many epochs train for about so long on this machine, whatever it is: time to be stopped in."""
    rows = read_rows(pretrain_here(folder / "speed", train__epochs=10))
    return max(20, round(seconds * max(row.get("perf/images_per_s", 0.0) for row in rows) / 256))


def losses(run: Path, stage: str = "pretrain") -> list[tuple[int, float]]:
    """(step, loss) as they stand in metrics.jsonl; JSON keeps every bit of a float."""
    return [(row["step"], row["train/loss"]) for row in read_rows(run) if row["stage"] == stage]


def read_rows(run: Path) -> Rows:
    """The whole lines of metrics.jsonl so far."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def encoder_digest(run: Path) -> str:
    """sha256 of the exported encoder."""
    return hashlib.sha256((run / "encoder.safetensors").read_bytes()).hexdigest()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 300.0) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return value


def _dotted(changes: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in changes.items()}
