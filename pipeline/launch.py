"""From configs to finished run folders: prepare, run the worker stages on Ray (or torchrun), then the rest here."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import config as configuration
from pipeline.base.errors import OutsideError, UserError
from pipeline.base.lease import writer_lock
from pipeline.base.progress import Display, format_duration
from pipeline.config import Config
from pipeline.data.concluded import lines
from pipeline.run.estimate import A_GUESS
from pipeline.run.folder import own_data
from pipeline.run.plan import START_SECONDS
from pipeline.run.start import Prepared, announce, prepare

if TYPE_CHECKING:
    import torch

    from pipeline.cluster.train import Resources
    from pipeline.data import Images
    from pipeline.generate.decoder import Trained
    from pipeline.models.encoder import Encoder
    from pipeline.race.live_table import Board as RaceBoard
    from pipeline.race.parts import Race, Track
    from pipeline.run.context import Work
    from pipeline.tune.live_table import Board
    from pipeline.tune.search import Search, TuneSettings
    from pipeline.tune.space import Space
    from pipeline.tune.trials import Trial

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


def start(plan: Plan, display: Display) -> None:
    """Start or continue the runs of a plan."""
    if under_torchrun():
        return start_under_torchrun(plan, display)
    for config in plan.configs:
        check_resources(config)
    with taken_back(plan.folders):
        alone = len(plan.configs) == 1
        prepared = [
            prepare_shown(config, run, plan.command, display, plan.stages, alone=alone)
            for config, run in zip(plan.configs, plan.folders)
        ]
        if not alone:
            length = format_duration(START_SECONDS + sum(p.seconds for p in prepared))
            display({"message": f"all {len(prepared)} are expected to take {length} with the start {A_GUESS}"})
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
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= UNSTARTED:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def run(config: Config, out: Path | str) -> Path:
    """The whole pipeline from Python: start or continue `config` in the run folder `out`, and return it."""
    out = Path(out)
    with Display() as display:
        start(Plan([config], [out], ALL, out, f"rayssl.run(config, {str(out)!r})"), display)
    return out


def continue_runs(plan: Plan, display: Display) -> None:
    """Stages on run folders that exist; their configs may differ only in what these stages read."""
    from pipeline.run.own_images import open_own
    from pipeline.stages.labels import require_labels

    if under_torchrun():
        raise UserError("torchrun starts `run` and `pretrain`: this verb works on a run folder without it")
    prepared = []
    for config, run in zip(plan.configs, plan.folders):
        dataset = open_own(run, config, show_reading(display))
        for name in {"probe", "finetune"} & set(plan.stages):
            require_labels(dataset, name)
        prepared.append(Prepared(config, run, dataset))
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
    """Worker stages in one worker group, then index, evaluation and report in this process."""
    run_on_ray(prepared, [stage for stage in plan.stages if stage in WORKER], plan.out, display)
    finish(prepared, plan, display)


def run_on_ray(prepared: list[Prepared], names: list[str], folder: Path, display: Display) -> None:
    """What there is to do in workers, of all runs in one worker group."""
    from pipeline.cluster.train import Job, run_jobs
    from pipeline.stages.story import pending

    jobs = [Job(str(p.run.absolute()), pending(p.run, names, p.config, p.dataset)) for p in prepared]
    if any(job.stages for job in jobs):
        display({"message": "starting Ray …"})
    run_jobs(jobs, folder.absolute(), resources_of(prepared[0].config), display)


def resources_of(config: Config) -> "Resources":
    """What the config asks of a cluster."""
    from pipeline.cluster.train import Resources

    asked = config.cluster
    return Resources(asked.workers, asked.gpu_per_worker, asked.cpu_per_worker, asked.address, asked.max_failures)


def check_resources(config: Config) -> None:
    """Refuse more than this machine has, and a cluster that is not there, before anything is written."""
    from pipeline.cluster.train import check_local, check_reachable, choose_ray_folder, cluster_address

    if cluster_address(config.cluster.address) is None:
        choose_ray_folder()
        check_local(resources_of(config))
    else:
        check_reachable(config.cluster.address)


def finish(prepared: list[Prepared], plan: Plan, display: Display) -> None:
    """The stages that need no worker."""
    from pipeline.stages.evaluate import run_evaluate
    from pipeline.stages.index import run_index
    from pipeline.stages.report import run_report

    for p in prepared:
        if "index" in plan.stages:
            display({"run": p.run.name, "stage": "index"})
            run_index(p.run, warn_on(display))
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
    alone: bool = True,
) -> Prepared:
    """Prepare a run, say what it will do, and show how the images are read."""
    warn = warn_on(display)
    prepared = prepare(config, run, command=command, warn=warn, progress=show_reading(display))
    seconds = announce(prepared, lambda line: display({"message": line}), stages, alone=alone)
    return replace(prepared, seconds=seconds)


def open_for_profile(config: Config, display: Display) -> "Work":
    """A run that is opened as for pre-training in this process, without a run folder."""
    from pipeline.base.reporter import LocalReporter
    from pipeline.run.auto import choose_backend, compiling_pays
    from pipeline.run.context import Work
    from pipeline.run.resolve import open_and_resolve

    config, dataset = open_and_resolve(config, warn_on(display), show_reading(display))
    work = Work.begin(Path(), LocalReporter(display), config, dataset)
    backend = config.augment.backend
    if backend in ("auto", "fastest"):
        backend, reason = choose_backend(work)
        display({"message": f"augmentation: {backend} backend ({reason})"})
    # At full size, which the time of a run mostly goes to.
    train = replace(config.train, precision=work.precision, small_views=0.0)  # type: ignore[arg-type]
    augment = replace(config.augment, backend=backend)
    work.config = replace(config, train=train, augment=augment)
    if train.compile == "auto":
        chosen: Any = "yes" if compiling_pays(work) else "no"
        work.config = replace(work.config, train=replace(train, compile=chosen))
        if work.device.type == "cuda":
            display({"message": f"--train.compile {chosen}, which auto chooses by the length of the recipe's run"})
    return work


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def start_under_torchrun(plan: Plan, display: Display) -> None:
    """The same stages in processes that are there already; rank 0 prepares, writes and reports."""
    import torch
    import torch.distributed as dist

    from pipeline.base import collectives
    from pipeline.base.reporter import LocalReporter, Silent
    from pipeline.run.context import Stopped
    from pipeline.stages.story import pending, run_worker_stages

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=2))  # rank 0 reads the images first
    configs = [replace(c, cluster=replace(c.cluster, workers=dist.get_world_size())) for c in plan.configs]
    main = collectives.rank() == 0
    reporter = LocalReporter(display)
    prepared = []
    names = [stage for stage in plan.stages if stage in WORKER]
    try:
        for config, run in zip(configs, plan.folders):
            todo = None  # stays so where rank 0 fails: it alone says why
            try:
                if main:
                    shown = prepare_shown(config, run, plan.command, display, plan.stages, alone=len(configs) == 1)
                    prepared.append(shown)
                    todo = pending(run, names, prepared[-1].config, prepared[-1].dataset)
            finally:
                todo = collectives.broadcast_object(todo)
            if todo is None:
                raise SystemExit(2)
            with reporter.stop_on_signals():
                run_worker_stages(run, todo, reporter if main else Silent())
        if main:
            finish(prepared, plan, display)
    except Stopped as stopped:
        reporter.message(str(stopped))
        raise KeyboardInterrupt from None
    finally:
        dist.destroy_process_group()


def show_reading(display: Display) -> Callable[[int, int], None]:
    return lambda done, total: display({"stage": "reading images", "done": done, "total": total})


def warn_on(display: Display) -> Callable[[str], None]:
    return lambda text: display({"message": f"warning: {text}"})


def race(
    changes: Mapping[str, Any],
    *,
    candidates: str | None = None,
    minutes: float = 15.0,
    out: Path | str | None = None,
    command: str,
    board: "RaceBoard",
    began: float,
) -> "Race":
    """Let candidates race on the images of `data.path` in `changes`, or go on with the race in `out`."""
    from pipeline.race.begin import plan_race
    from pipeline.race.networks import found_networks
    from pipeline.race.story import run_race

    if under_torchrun():
        raise UserError("torchrun starts `run RECIPE` and `pretrain`: a race starts its trials itself")
    planned = plan_race(
        changes,
        candidates,
        minutes,
        Path(out) if out is not None else None,
        found_networks(),
        began=began,
        shown=board,
        command=command,
    )
    config = planned.entries[0].config
    if config.cluster.workers > 1:
        raise UserError(f"--cluster.workers is {config.cluster.workers}: the trials of a race have one worker each")
    check_resources(config)

    def open_track() -> "AbstractContextManager[Track]":
        from pipeline.cluster.race import open_track as connect

        return connect(planned.out, resources_of(config), board)

    with new_folder(planned.out), writer_lock(planned.out):
        run_race(planned, open_track)
    return planned


def embed_run(run: Path, other: str | None, display: Display) -> None:
    """Embeddings of a run's own images, or of the images at `other`, in this process.

    Where the run's own are not what they were where it has them, and those at `other` are, they have moved there.
    """
    from pipeline.base.reporter import LocalReporter
    from pipeline.run.data_paths import is_gone
    from pipeline.run.images import open_other
    from pipeline.run.own_images import is_intact
    from pipeline.search.embeddings import name_in
    from pipeline.stages.embed import embed_other_data
    from pipeline.stages.story import run_worker_stages

    reporter = LocalReporter(display)
    if other is None:
        return run_worker_stages(run, ["embed", "search"], reporter)
    data, own = configuration.load(run / "config.json").data, own_data(run)
    if is_gone(data.path) and have_moved(run, other, display):
        return run_worker_stages(run, ["embed", "search"], reporter)
    dataset = open_other(
        data, other, image_size=data.image_size, channels=data.channels, progress=show_reading(display)
    )
    own_place, same_images = dataset.path == own["path"], dataset.known_as(own["fingerprint"]) is not None
    if own_place and is_intact(run):
        return run_worker_stages(run, ["embed", "search"], reporter)
    if not own_place and same_images and not is_intact(run) and have_moved(run, other, display):
        return run_worker_stages(run, ["embed", "search"], reporter)
    if (name := name_in(run, dataset.name, dataset.path)) != dataset.name:
        reporter.message(f"{run} knows other images as {dataset.name}: those at {dataset.path} are {name} there")
    for line in lines(dataset):
        display({"message": line})
    embed_other_data(run, replace(dataset, name=name), reporter)
    query = f"rayssl query {run} IMAGE --data {name}"
    reporter.message(f"{dataset.path} is embedded as {name}: after `rayssl index {run}`, `{query}` searches it")


def move_shown(run: Path, place: str, display: Display) -> None:
    """Note that the run's images are at this place now, and show it; UserError where they are not."""
    from pipeline.run.own_images import move_images

    move_images(run, place, lambda text: display({"message": text}), show_reading(display))


def have_moved(run: Path, place: str, display: Display) -> bool:
    """Whether the run's images are at this place now, which is noted then."""
    try:
        move_shown(run, place, display)
    except UserError:
        return False
    return True


def search_anew(run: Path, display: Display, *, asked: bool) -> None:
    """Choose what a run is searched by where that is asked for, or where what was chosen is not there any more."""
    from pipeline.base.reporter import LocalReporter
    from pipeline.search.described import check_search
    from pipeline.search.store import has_search
    from pipeline.stages.done import changed_since, is_whole
    from pipeline.stages.story import run_worker_stages

    gone = changed_since(run, "search") or (has_search(run) and not is_whole(lambda: check_search(run)))
    if asked or gone:
        run_worker_stages(run, ["search"], LocalReporter(display))


def embed_without_training(config: Config, run: Path, command: str, display: Display) -> None:
    """A run folder for an encoder with weights from elsewhere: its embeddings and an index over them."""
    from pipeline.base.reporter import LocalReporter
    from pipeline.models.export import export_encoder
    from pipeline.run.build import new_encoder
    from pipeline.stages.index import run_index
    from pipeline.stages.story import run_worker_stages

    prepared = prepare(config, run, command=command, warn=warn_on(display), progress=show_reading(display))
    for line in lines(prepared.dataset):
        display({"message": line})
    with writer_lock(run):
        encoder = new_encoder(prepared.config)
        told = export_encoder(encoder, run, {"method": None}, data=prepared.dataset.name)
    for line in (*encoder.told(), *([told] if told else [])):
        display({"message": line})
    run_worker_stages(run, ["embed", "search"], LocalReporter(display))
    run_index(run, warn_on(display))


@dataclass(frozen=True)
class Watched:
    """A run's encoder, its model where it kept one, and the images that are to be ranked."""

    encoder: "Encoder"
    trained: "Trained | None"
    train: "Images"
    images: "Images"
    class_names: tuple[str, ...] | None
    trained_on: tuple[str, ...]  # classes; empty: all
    device: "torch.device"
    precision: str


def open_for_anomalies(run: Path, other: str | None, display: Display) -> Watched:
    """A trained run and its held-out images, or all images at `other`."""
    from pipeline.base.device import choose_device, plain_precision, resolve_precision
    from pipeline.generate.decoder import open_trained
    from pipeline.methods import load_method
    from pipeline.models.export import load_encoder
    from pipeline.run.images import open_other
    from pipeline.run.own_images import open_own

    config = configuration.load(run / "config.json")
    encoder, device = load_encoder(run), choose_device()
    name = configuration.method_name(config)
    trained = None
    if name is not None and load_method(name).keeps_decoder:
        trained = open_trained(run, None, show_reading(display))
    own = trained.dataset if trained is not None else open_own(run, config, show_reading(display))
    images, names = own.test if own.test is not None and len(own.test) else own.val, own.class_names
    if other is not None:
        found = open_other(
            config.data, other, image_size=own.image_size, channels=own.channels, progress=show_reading(display)
        )
        images, names = found.train.join(found.val, found.test), found.class_names
    precision = plain_precision(resolve_precision(config.train.precision, device))
    classes = config.data.classes or ()
    return Watched(encoder.to(device), trained, own.train, images, names, classes, device, precision)


def tune(
    config: Config, out: Path | str, settings: "TuneSettings | None" = None, space: "Space | None" = None
) -> "Trial | None":
    """Search for an augmentation from Python, as `rayssl tune` does: start or continue it in `out`; the best trial.

    `space` (see pipeline.tune.space.build_space) takes the place of the settings' own. Raises UserError.
    """
    from pipeline.tune.live_table import Board
    from pipeline.tune.search import TuneSettings

    with Board() as board:
        command = f"rayssl.tune(config, {str(out)!r})"
        changes = {"data.path": config.data.path, "encoder.name": config.encoder.name}
        changes |= {f"encoder.{name}": str(size) for name, size in config.encoder.sizes.items() if size is not None}
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
    from pipeline.cluster.tune import run_search
    from pipeline.tune.results import write_results
    from pipeline.tune.search import plan_search, write_search
    from pipeline.tune.trials import load_trials

    def warn(text: str) -> None:
        board.say(f"warning: {text}")

    search, dataset = plan_search(
        config, settings, out, space=space, changes=changes, warn=warn, progress=lambda done, total: None
    )
    for line in lines(dataset):
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


@contextmanager
def new_folder(out: Path) -> Iterator[None]:
    """Wrong input leaves no folder behind that was not there before."""
    there = out.exists()
    try:
        yield
    except (UserError, OutsideError):
        if not there and out.is_dir() and {path.name for path in out.iterdir()} <= {".lock"}:
            (out / ".lock").unlink()
            out.rmdir()
        raise


def track_search(search: "Search", before: set[int], best: "Trial | None", warn: Callable[[str], None]) -> None:
    """A row a trial to Weights & Biases, where it is wanted, of those that were not there `before`."""
    from pipeline.base.wandb_tracker import start_tracker
    from pipeline.run.folder import stage_key
    from pipeline.tune.trials import load_trials

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
