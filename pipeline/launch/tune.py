"""A search for augmentations, on this machine or a cluster."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.config import Config
from rayssl.pipeline.data.concluded import lines
from rayssl.pipeline.launch.plan import new_folder
from rayssl.pipeline.launch.resources import training_machine
from rayssl.pipeline.run.machine import describe_sizes

if TYPE_CHECKING:
    from rayssl.pipeline.tune.live_table import Board
    from rayssl.pipeline.tune.search import Search, TuneSettings
    from rayssl.pipeline.tune.space import Space
    from rayssl.pipeline.tune.trials import Trial


def tune(
    config: Config, out: Path | str, settings: "TuneSettings | None" = None, space: "Space | None" = None
) -> "Trial | None":
    """Search for an augmentation from Python, as `rayssl tune` does: start or continue it in `out`; the best trial.

    `space` (see rayssl.pipeline.tune.space.build_space) takes the place of the settings' own. Raises UserError.
    """
    from rayssl.pipeline.tune.live_table import Board
    from rayssl.pipeline.tune.search import TuneSettings

    with Board() as board:
        command = f"rayssl.tune(config, {str(out)!r})"
        changes = {"data.path": config.data.path}
        if "encoder.name" not in config.on_gpu:  # else the recipe's own, by where training runs
            changes["encoder.name"] = config.encoder.name
        changes |= {f"encoder.{name}": str(size) for name, size in config.encoder.architecture.given().items()}
        return run_tuning(config, settings or TuneSettings(), Path(out), command, board, space, changes)[1]


def run_tuning(
    config: Config,
    settings: "TuneSettings",
    out: Path,
    command: str,
    board: "Board",
    space: "Space | None" = None,
    changes: "dict[str, str] | None" = None,
) -> "tuple[Search, Trial | None]":
    """Search for an augmentation; what was found is written down also where the search is stopped or fails."""
    from rayssl.pipeline.cluster.tune import run_search
    from rayssl.pipeline.tune.results import write_results
    from rayssl.pipeline.tune.search import plan_search, write_search
    from rayssl.pipeline.tune.trials import load_trials

    def warn(text: str) -> None:
        board.say(f"warning: {text}")

    machine, is_new = training_machine(config), not (out / "search.json").exists()
    search, dataset = plan_search(
        config,
        settings,
        out,
        space=space,
        changes=changes,
        warn=warn,
        progress=lambda done, total: None,
        machine=machine,
    )
    for line in lines(dataset):
        board.say(line)
    if is_new:
        for line in describe_sizes(search.config, machine, [path for path in config.on_gpu if path not in config.plan]):
            board.say(line)
    best = None
    with new_folder(out), writer_lock(out):
        before = {trial.number for trial in load_trials(out)}
        try:
            run_search(search, lambda: write_search(search, dataset, command), board, board.say)
        finally:
            if (out / "search.json").exists():
                best = write_results(search, dataset)
                track_search(search, before, best, warn)
    return search, best


def track_search(search: "Search", before: set[int], best: "Trial | None", warn: Callable[[str], None]) -> None:
    """A row a trial to Weights & Biases, where it is wanted, of those that were not there `before`."""
    from rayssl.pipeline.base.wandb_tracker import start_tracker
    from rayssl.pipeline.run.folder import stage_key
    from rayssl.pipeline.tune.trials import load_trials

    new = [trial for trial in load_trials(search.out) if trial.number not in before]
    if not new:
        return
    tracker = start_tracker(
        search.config.wandb,
        folder=search.out,
        name=search.out.name,
        run_id=stage_key(str(search.out.absolute()), search.settings.seed)[:16],
        config=configuration.to_dict(search.config),
        warn=warn,
    )
    rows = [
        {"stage": "tune", "step": trial.number, "score": trial.score, "seconds": trial.seconds, **trial.scores,
         **{f"parameter/{name}": value for name, value in trial.parameters.items()}}
        for trial in new
    ]  # fmt: skip
    tracker.log(rows)
    tracker.finish({"best/trial": best.number, "best/score": best.score} if best is not None else {})
