"""From configs to finished run folders: worker stages on Ray or under torchrun, then the rest here."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import OutsideError, UserError
from rayssl.pipeline.base.files import delete, listed
from rayssl.pipeline.base.lease import writer_lock
from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.config import Config
from rayssl.pipeline.launch.groups import grouped, seconds_of
from rayssl.pipeline.launch.plan import ALL, UNSTARTED, WORKER, Plan, finish, prepare_shown, show_reading
from rayssl.pipeline.launch.resources import check_resources, resources_of, training_machine
from rayssl.pipeline.launch.torchrun import start_under_torchrun, under_torchrun
from rayssl.pipeline.run.estimate import in_all
from rayssl.pipeline.run.machine import this_machine
from rayssl.pipeline.stages.start import Prepared


def start(plan: Plan, display: Display) -> None:
    """Start or continue the runs of a plan."""
    if under_torchrun():
        return start_under_torchrun(plan, display)
    for config in plan.configs:
        check_resources(config)
    with taken_back(plan.folders):
        alone = len(plan.configs) == 1
        machine = training_machine(plan.configs[0])
        prepared = [
            prepare_shown(config, run, plan.command, display, plan.stages, machine=machine, alone=alone)
            for config, run in zip(plan.configs, plan.folders)
        ]
        if not alone:
            length = in_all(max(seconds_of(group) for group in grouped(prepared)))
            display({"message": f"expected of all {len(prepared)} runs: {length}"})
        run_stages(prepared, plan, display)


@contextmanager
def taken_back(folders: list[Path]) -> Iterator[None]:
    """Wrong input, and a cluster that is not there, leave no run folder behind that would refuse other settings.

    Only what was not there before goes, and only while nothing has been computed.
    """
    new = [folder.absolute() for folder in folders if not folder.exists()]
    above = {parent for folder in new for parent in folder.parents if not parent.exists()}
    try:
        yield
    except (UserError, OutsideError):
        for folder in new:
            remove_unstarted(folder)
        for parent in sorted(above, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # not empty, or never made
                parent.rmdir()
        raise


def remove_unstarted(folder: Path) -> None:
    """Remove a run folder in which there is only what was to be done."""
    if folder.is_dir() and {path.name for path in listed(folder)} <= UNSTARTED:
        for path in listed(folder):
            delete(path)
        folder.rmdir()


def run(config: Config, out: Path | str) -> Path:
    """The whole pipeline from Python: start or continue `config` in the run folder `out`, and return it."""
    out = Path(out)
    with Display() as display:
        start(Plan([config], [out], ALL, out, f"rayssl.run(config, {str(out)!r})"), display)
    return out


def continue_runs(plan: Plan, display: Display) -> None:
    """Stages on run folders that exist; their configs may differ only in what these stages read."""
    from rayssl.pipeline.run.own_images import open_own
    from rayssl.pipeline.stages.labels import require_labels

    if under_torchrun():
        raise UserError("only `run` and `pretrain` support torchrun: run this command without it")
    prepared = []
    for config, run in zip(plan.configs, plan.folders):
        dataset = open_own(run, config, show_reading(display))
        for name in {"probe", "finetune"} & set(plan.stages):
            require_labels(dataset, name)
        prepared.append(Prepared(config, run, dataset, this_machine(config)))
    with ExitStack() as stack:
        for p in prepared:
            stack.enter_context(changed_config(p.run, p.config))
        run_stages(prepared, plan, display)


@contextmanager
def changed_config(run: Path, config: Config) -> Iterator[None]:
    """Write another config into a run; what was there comes back when the input turns out to be wrong."""
    before = configuration.load(run / "config.json")
    with writer_lock(run):
        configuration.save(config, run / "config.json")
    try:
        yield
    except UserError:
        configuration.save(before, run / "config.json")
        raise


def run_stages(prepared: list[Prepared], plan: Plan, display: Display) -> None:
    """Worker stages on Ray, then index, evaluation and report in this process."""
    run_on_ray(prepared, [stage for stage in plan.stages if stage in WORKER], plan.out, display)
    finish(prepared, plan, display)


def run_on_ray(prepared: list[Prepared], names: list[str], folder: Path, display: Display) -> None:
    """What there is to do in workers, in as few worker groups as keep this machine busy."""
    from rayssl.pipeline.cluster.train import Job, run_jobs
    from rayssl.pipeline.stages.story import pending

    groups = [
        [Job(str(p.run.absolute()), pending(p.run, names, p.config, p.dataset)) for p in group]
        for group in grouped(prepared)
    ]
    if any(job.stages for group in groups for job in group):
        display({"message": "starting Ray …"})
    run_jobs(groups, folder.absolute(), resources_of(prepared[0].config), display)
