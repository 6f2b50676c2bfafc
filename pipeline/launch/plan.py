"""What is to be run, and what is shown and done before and after it, wherever it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rayssl.pipeline.base.errors import OutsideError, UserError
from rayssl.pipeline.base.files import delete, listed
from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.config import Config
from rayssl.pipeline.run.plan import Machine
from rayssl.pipeline.stages.start import Prepared, announce, prepare

WORKER = ("pretrain", "probe", "finetune", "embed", "search")
HERE = ("index", "evaluate")
ALL = (*WORKER, *HERE, "report")
UNSTARTED = {".lock", "config.json", "manifest.json"}  # what a run folder holds before any stage


@dataclass(frozen=True)
class Plan:
    """What to run, where to, and which stages of it."""

    configs: list[Config]
    folders: list[Path]
    stages: tuple[str, ...]
    out: Path  # where a report over all runs goes
    command: str


def finish(prepared: list[Prepared], plan: Plan, display: Display) -> None:
    """The stages that need no worker."""
    from rayssl.pipeline.stages.evaluate import run_evaluate
    from rayssl.pipeline.stages.index import run_index
    from rayssl.pipeline.stages.query_networks import keep_query_networks
    from rayssl.pipeline.stages.report import run_report

    for p in prepared:
        if "index" in plan.stages:
            display({"run": p.run.name, "stage": "index"})
            run_index(p.run, warn_on(display))
            keep_query_networks(p.run, telling(display), p.dataset)
        if "evaluate" in plan.stages:
            display({"run": p.run.name, "stage": "evaluate"})
            run_evaluate(p.run, p.dataset)
    if "report" in plan.stages:
        display({"stage": "report"})
        for p in prepared:
            run_report([p.run], p.run)
        if len(prepared) > 1:
            run_report([p.run for p in prepared], plan.out)


def prepare_shown(
    config: Config,
    run: Path,
    command: str,
    display: Display,
    stages: tuple[str, ...] = ("pretrain",),
    *,
    machine: Machine | None = None,
    alone: bool = True,
) -> Prepared:
    """Prepare a run for a machine, None: this one, say what it will do, and show how the images are read."""
    warn = warn_on(display)
    prepared = prepare(config, run, command=command, warn=warn, progress=show_reading(display), machine=machine)
    seconds = announce(prepared, lambda line: display({"message": line}), stages, alone=alone)
    return replace(prepared, seconds=seconds)


def show_reading(display: Display) -> Callable[[int, int], None]:
    return lambda done, total: display({"stage": "reading images", "done": done, "total": total})


def telling(display: Display) -> Callable[[str], None]:
    return lambda text: display({"message": text})


def warn_on(display: Display) -> Callable[[str], None]:
    return lambda text: display({"message": f"warning: {text}"})


@contextmanager
def new_folder(out: Path) -> Iterator[None]:
    """Wrong input leaves no folder behind that was not there before."""
    there = out.exists()
    try:
        yield
    except (UserError, OutsideError):
        if not there and out.is_dir() and {path.name for path in listed(out)} <= {".lock"}:
            delete(out / ".lock")
            out.rmdir()
        raise
