"""What the benchmarks of the autoencoder family share: a recipe trained in this process, without Ray."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.base.reporter import LocalReporter
from rayssl.pipeline.config import override
from rayssl.pipeline.launch.plan import prepare_shown
from rayssl.pipeline.recipes import build_recipe
from rayssl.pipeline.run.software import describe_software
from rayssl.pipeline.stages.start import Prepared
from rayssl.pipeline.stages.story import run_worker_stages

PLACES = ("--run", "--runs", "--out", "--work", "--peer")


def train(recipe: str, run: Path, changes: Mapping[str, Any], stages: tuple[str, ...] = ("pretrain",)) -> Prepared:
    """What `rayssl pretrain RECIPE --a.b …` does; a run that is there already is not done again."""
    display = Display(Console(stderr=True, quiet=True))
    config = override(build_recipe(recipe), {**changes, "wandb": "disabled"})
    told = {key: ",".join(value) if isinstance(value, list) else str(value) for key, value in changes.items()}
    options = [word for key, value in told.items() for word in (f"--{key}", value)]
    prepared = prepare_shown(config, run, shlex.join(["rayssl", "pretrain", recipe, *options]), display)
    run_worker_stages(run, list(stages), LocalReporter(display))
    return prepared


def facts(benchmark: str, path: str) -> dict[str, Any]:
    """Name, command, commit, versions and machine; of the images' place only its name, nothing of the runs' places."""
    words = [word.replace(path, Path(path).name) if path else word for word in sys.argv[1:]]
    for place in PLACES:
        if place in words:
            at = words.index(place)
            words[at : at + 2] = []
    command = shlex.join(["python", f"benchmarks/{benchmark}.py", *words])
    return {"benchmark": benchmark, "command": command, **describe_software()}
