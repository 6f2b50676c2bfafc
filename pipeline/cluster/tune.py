"""Trials on Ray Tune. What Ray stores is thrown away: the files of trials that have ended are the only truth.

A trial is a plain function over the same loop as pre-training. With one worker it runs in its actor; with several the
actor is rank 0 and the others are tasks in its placement group, so no trial ever waits for what another one holds.
"""

import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rayssl.pipeline import config as configuration
from rayssl.pipeline.base.errors import OutsideError, UserError
from rayssl.pipeline.base.files import delete, listed
from rayssl.pipeline.base.memory import give_back_memory
from rayssl.pipeline.base.reporter import Interrupted
from rayssl.pipeline.cluster.capacity import alive_nodes, cores_a_worker, count_workers
from rayssl.pipeline.cluster.ray_private import add_result, rungs_of
from rayssl.pipeline.cluster.train import (
    Resources,
    cluster_address,
    connected,
    control_folder,
    quiet_ray,
    run_beside,
)
from rayssl.pipeline.tune.objectives import WORST
from rayssl.pipeline.tune.search import Search, candidate_config
from rayssl.pipeline.tune.space import Candidate, Parameter, Space
from rayssl.pipeline.tune.trials import (
    FAILED,
    FINISHED,
    STOPPED,
    Trial,
    drop_member,
    load_member,
    load_trials,
    member_folder,
    save_member,
    save_trial,
)

SCORE = "score"
KEPT = (SCORE, "scores", "step", "steps", "parameters", "schedule")  # of a report
DIED = "the trial's process died: it was killed, or out of memory"
JOIN_MINUTES = 10  # that the workers of a trial wait for each other


@dataclass
class Standing:
    """How the search is going, for a person."""

    total: int
    space: Space
    ended: list[Trial] = field(default_factory=list)
    running: dict[int, tuple[int, int, float | None]] = field(default_factory=dict)  # number → step, steps, score


def run_search(
    search: Search, begin: Callable[[], None], show: Callable[[Standing], None], say: Callable[[str], None]
) -> None:
    """Run the trials that have not ended yet: first `begin` is called, when nothing more can be wrong, then `show`.

    Raises UserError where more trials are asked for at a time than there is room for, Interrupted after Ctrl-C or
    SIGTERM, RuntimeError where Ray itself failed.
    """
    standing = Standing(search.trials, search.space, load_trials(search.out))
    if not pending(search, standing):
        return
    address = cluster_address(search.config.cluster.address)
    quiet_ray(address)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")  # that a busy machine may need to end a trial
    asked = search.config.cluster
    resources = Resources(asked.workers, asked.gpu_per_worker, asked.cpu_per_worker, address, 0)
    say("starting Ray …")
    with control_folder(search.out.absolute()) as control, connected(resources, telling(say)) as own_cluster:
        room = find_room(search)
        begin()
        say(
            f"{len(pending(search, standing))} trials of {search.config.train.steps} steps, {room.concurrent} at a "
            f"time, {room.text} each; objective: {search.objective}"
        )
        fit_and_show(search, replace(room, here=own_cluster), standing, control, show)


def telling(say: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    """`say`, for what tells by rows."""
    return lambda row: say(row["message"])


def pending(search: Search, standing: Standing) -> list[int]:
    """The numbers of the trials that have not ended."""
    ended = {trial.number for trial in standing.ended}
    return [number for number in range(search.trials) if number not in ended]


@dataclass(frozen=True)
class Room:
    """What every trial gets, and how many there are at a time."""

    concurrent: int
    workers: int
    cpus: float  # a worker
    gpus: float
    here: bool = False  # all workers are of this machine's own Ray

    @property
    def text(self) -> str:
        """E.g. 2 workers with 1 core and 0.5 GPU."""
        cores = f"{self.cpus:g} core{'s' * (self.cpus != 1)}" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        return cores if self.workers == 1 else f"{self.workers} workers with {cores}"


def find_room(search: Search) -> Room:
    """As many trials at a time as there are GPUs, or cores where there are none; GPUs may be shared.

    Raises UserError where more are asked for than fit.
    """
    nodes = alive_nodes()
    workers, asked = search.config.cluster.workers, search.config.cluster
    cores, gpus = sum(node.get("CPU", 0) for node in nodes), sum(node.get("GPU", 0) for node in nodes)
    per_gpu = asked.gpu_per_worker if asked.gpu_per_worker is not None else (1.0 if gpus else 0.0)
    if per_gpu > gpus:
        raise UserError(f"--cluster.gpu-per-worker is {per_gpu:g}: there are {gpus:g} GPUs")
    most = count_workers(nodes, asked.cpu_per_worker or 1, per_gpu) // workers
    wanted = search.settings.concurrent
    if most < 1 or (wanted or 1) > most:
        what = f"--tune.concurrent is {wanted or 1}" + (f" with {workers} workers a trial" if workers > 1 else "")
        raise UserError(
            f"{what}: there is room for {most} at a time ({cores:g} cores and {gpus:g} GPUs): use {max(most, 1)} or "
            f"fewer{', or fewer --cluster.workers' if workers > 1 else ''}"
        )
    concurrent = min(wanted or most, search.trials)
    cpus = asked.cpu_per_worker or float(cores_a_worker(nodes, concurrent * workers, per_gpu))
    return Room(concurrent, workers, cpus, per_gpu)


def fit_and_show(
    search: Search, room: Room, standing: Standing, control: Path, show: Callable[[Standing], None]
) -> None:
    """Run the trials, show how it goes, and raise what came of it."""
    stop = threading.Event()
    failure, caught = run_beside(lambda: fit(search, room, standing, control, stop), lambda: show(standing), stop.set)
    if caught:
        raise Interrupted(caught[0])
    if failure:
        raise RuntimeError(f"Ray Tune failed: {type(failure[0]).__name__}: {failure[0]}") from failure[0]
    if left := pending(search, standing):
        raise OutsideError(f"Ray Tune lost {len(left)} trials: the same command goes on with them")


def fit(search: Search, room: Room, standing: Standing, control: Path, stop: threading.Event) -> None:
    """One Tuner over the trials that are left; its storage is temporary."""
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    evolves = search.settings.scheduler == "pbt"
    numbers: dict[str, int] = {}  # of trials, by Ray's name of them
    settings = {
        "config": configuration.to_dict(search.config),
        "objective": search.objective,
        "reports": search.reports,
        "images": search.settings.images,
        "workers": room.workers,
        "here": room.here,
        "cpus": room.cpus,
        "gpus": room.gpus,
        "checkpoints": evolves,
        "out": str(search.out.absolute()),
        "scratch": str(control),
        "space": search.space,
    }
    bundle = {"CPU": room.cpus, **({"GPU": room.gpus} if room.gpus else {})}
    trainable = tune.with_parameters(try_candidate, settings=settings)
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([bundle] * room.workers)),
        param_space=first_population(search, pending(search, standing)) if evolves else None,
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            search_alg=None if evolves else new_searcher(search, standing, numbers),
            scheduler=new_scheduler(search, standing),
            num_samples=1 if evolves else len(pending(search, standing)),
            max_concurrent_trials=None if evolves else room.concurrent,
            reuse_actors=room.workers == 1,  # the next trial finds torch and the images there
        ),
        run_config=tune.RunConfig(
            name=f"rayssl-{time.time_ns():x}",
            storage_path=str(control / "ray"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4),  # fewer might be gone before they are copied
            stop=stopper(stop),
            callbacks=[keeper(search, standing, numbers, stop)],
        ),
    )
    tuner.fit()


class Unsaved:
    """Something that Ray wants to copy and to store with the experiment, which nobody reads again."""

    def __deepcopy__(self, memory: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return object, ()


def stopper(stop: threading.Event) -> Any:
    """Ends all trials once `stop` is set."""
    from ray.tune import Stopper

    class OnSignal(Unsaved, Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return stop.is_set()

    return OnSignal()


# What is tried


def new_searcher(search: Search, standing: Standing, numbers: dict[str, int]) -> Any:
    """Hands out the candidates that are left, and notes the number of each in `numbers`."""
    from ray.tune.search import Searcher

    left, known = pending(search, standing), search.candidates()
    inner: Any = optuna_search(search, standing) if known is None else None

    class Numbered(Unsaved, Searcher):
        """The candidates that are known beforehand by number, or Optuna's."""

        def __init__(self) -> None:
            super().__init__(metric=SCORE, mode="max")

        def suggest(self, trial_id: str) -> Any:
            if len(numbers) == len(left):
                return Searcher.FINISHED
            number = left[len(numbers)]
            numbers[trial_id] = number
            return {"parameters": known[number] if known is not None else inner.suggest(trial_id)}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if known is None:
                inner.on_trial_result(trial_id, result)

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            if known is None:
                inner.on_trial_complete(trial_id, result, error)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the trials' files are what a search is continued from."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    return Numbered()


def optuna_search(search: Search, standing: Standing) -> Any:
    """Optuna's TPE, told of what has ended already."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    worst = WORST[search.objective]
    # A candidate whose process was killed may be as good as any other.
    ended = [trial for trial in standing.ended if trial.reason != DIED]
    with quiet():
        # Every parameter by itself: a joint model is too much for some tens of trials. Trials that run at the same
        # time keep off each other (constant liar).
        sampler = optuna.samplers.TPESampler(
            seed=search.settings.seed + len(standing.ended),  # else the same candidates would come again
            n_startup_trials=max(5, search.trials // 4),
            multivariate=False,
            constant_liar=True,
        )
        return OptunaSearch(
            space={name: distribution(parameter) for name, parameter in search.space.parameters.items()},
            metric=SCORE,
            mode="max",
            sampler=sampler,
            points_to_evaluate=[fitted(search.space, trial.parameters) for trial in ended] or None,
            evaluated_rewards=[trial.score if trial.score is not None else worst for trial in ended] or None,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning that Optuna has for the constant liar, which is called experimental there."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def distribution(parameter: Parameter) -> Any:
    """A parameter in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if parameter.values:
        return CategoricalDistribution(parameter.values)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def fitted(space: Space, candidate: Candidate) -> Candidate:
    """Values that were written down, within the ranges to the last digit."""
    return {name: parameter.clip(candidate[name]) for name, parameter in space.parameters.items()}


def new_scheduler(search: Search, standing: Standing) -> Any:
    """What stops trials early, or lets them copy each other."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining

    if search.settings.scheduler == "asha":
        scheduler = ASHAScheduler(max_t=search.reports, grace_period=1, reduction_factor=2)
        remember_rungs(scheduler, standing.ended)
        return scheduler
    if search.settings.scheduler == "median":
        # By reports and not by the clock, and without its pauses: a trial that is paused would begin again.
        rule = MedianStoppingRule(
            time_attr="training_iteration", grace_period=1, min_samples_required=3, min_time_slice=10**9
        )
        remember_curves(rule, standing.ended)
        return rule
    if search.settings.scheduler == "pbt":
        return population(search.space, search.settings.seed, ending(PopulationBasedTraining))
    return FIFOScheduler()  # type: ignore[no-untyped-call]


def remember_rungs(scheduler: Any, ended: list[Trial]) -> None:
    """Let ASHA compare with trials of an earlier session too."""
    for trial in ended:
        for number, (_, score) in enumerate(trial.curve, start=1):
            for milestone, recorded in rungs_of(scheduler):
                if milestone == number:
                    recorded[f"before-{trial.number}"] = score


def remember_curves(rule: Any, ended: list[Trial]) -> None:
    """Let the median be that of an earlier session's trials too."""
    for trial in ended:
        for number, (_, score) in enumerate(trial.curve, start=1):
            add_result(rule, f"before-{trial.number}", number, {SCORE: score})


def first_population(search: Search, left: list[int]) -> dict[str, Any]:
    """The candidates that a population starts from. Ray lets no searcher work together with one."""
    from ray import tune

    known = dict(enumerate(search.candidates() or []))
    # Where it has come to before, with what it was trained with last.
    known |= {number: rows[-1]["parameters"] for number in left if (rows := load_member(search.out, number))}
    return {
        "number": tune.grid_search(left),
        "parameters": tune.sample_from(lambda config: known[config["number"]]),
    }


def population(space: Space, seed: int, scheduler: Any) -> Any:
    """Population-based training (Jaderberg et al., 2017) over all parameters: factors of 0.8 and 1.2, within ranges."""
    import random

    draws = random.Random(seed)

    def within(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "parameters": fitted(space, config["parameters"])}

    def draw(parameter: Parameter) -> Callable[[], Any]:
        return lambda: parameter.at(draws.random())

    mutations = {
        name: list(parameter.values) if parameter.values else draw(parameter)
        for name, parameter in space.parameters.items()
    }
    return scheduler(
        time_attr="training_iteration",
        perturbation_interval=1,
        hyperparam_mutations={"parameters": mutations},
        custom_explore_fn=within,
        log_config=False,
    )


def ending(scheduler: type[Any]) -> type[Any]:
    """The scheduler, but a member that has reported its last step has ended.

    Its end comes only after the report: in between, another member could copy a network that has nothing left to learn.
    """

    class Ending(scheduler):  # type: ignore[misc]
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "step" in result and result["step"] == result["steps"]:
                return str(self.STOP)
            return str(super().on_trial_result(tune_controller, trial, result))

    return Ending


# What is kept


def keeper(search: Search, standing: Standing, numbers: dict[str, int], stop: threading.Event) -> Any:
    """A callback of Tune's that writes every trial down when it has ended."""
    from ray.tune import Callback

    before = max((trial.began + trial.seconds for trial in standing.ended), default=0.0)
    clock = time.monotonic() - before

    class Keeper(Unsaved, Callback):
        def __init__(self) -> None:
            self.began: dict[str, float] = {}
            self.rows: dict[str, list[dict[str, Any]]] = {}

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            if "number" in trial.config:  # before anything of another member is copied over it
                numbers.setdefault(trial.trial_id, trial.config["number"])
            self.began.setdefault(trial.trial_id, time.monotonic() - clock)
            standing.running.setdefault(numbers[trial.trial_id], (0, search.config.train.steps or 0, None))

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            if "reason" in result:
                return
            number = numbers[trial.trial_id]
            if trial.trial_id not in self.rows:
                earlier = load_member(search.out, number)
                self.rows[trial.trial_id] = [row for row in earlier if row["step"] < result["step"]]
            self.rows[trial.trial_id].append({name: result[name] for name in KEPT})
            standing.running[number] = (result["step"], result["steps"], result[SCORE])

        def on_checkpoint(self, iteration: int, trials: Any, trial: Any, checkpoint: Any, **_: Any) -> None:
            rows = self.rows.get(trial.trial_id, [])
            if rows and rows[-1]["step"] < rows[-1]["steps"]:  # else it ends now
                save_member(search.out, numbers[trial.trial_id], rows, checkpoint.to_directory)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            rows = self.rows.get(trial.trial_id, [])
            reason = (trial.last_result or {}).get("reason", "")
            finished = bool(rows) and rows[-1]["step"] == rows[-1]["steps"]
            if stop.is_set() and not finished and not reason:  # by a signal: it is done again
                standing.running.pop(numbers[trial.trial_id], None)
                return
            self.keep(trial, FAILED if reason else FINISHED if finished else STOPPED, reason)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            if not stop.is_set():
                self.keep(trial, FAILED, reason_of(trial))

        def keep(self, trial: Any, state: str, reason: str) -> None:
            number, rows = numbers[trial.trial_id], self.rows.get(trial.trial_id, [])
            first = rows[0]["parameters"] if rows else trial.config["parameters"]
            last = rows[-1]["parameters"] if rows else first
            began = self.began.get(trial.trial_id, time.monotonic() - clock)
            ended = Trial(
                number=number,
                state=state,
                parameters=first,
                views=search.views_of(last),
                changes=search.space.changes(last),
                score=rows[-1][SCORE] if rows and not reason else None,
                scores=rows[-1]["scores"] if rows else {},
                curve=[(row["step"], row[SCORE]) for row in rows],
                began=round(began, 3),
                seconds=round(time.monotonic() - clock - began, 3),
                reason=reason,
                schedule=changed_schedule(rows),
            )
            save_trial(search.out, ended)
            drop_member(search.out, number)
            standing.ended.append(ended)
            standing.running.pop(number, None)

    return Keeper()


def changed_schedule(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parameters by step of the network that was reported last, where they changed on the way."""
    schedule: list[dict[str, Any]] = rows[-1]["schedule"] if rows else []
    return [] if all(row["parameters"] == schedule[0]["parameters"] for row in schedule) else schedule


def reason_of(trial: Any) -> str:
    """What a failed trial said, in a line."""
    try:
        lines = Path(trial.error_file).read_text().strip().splitlines()
    except (OSError, TypeError):
        return DIED
    if any("worker process has died" in line or "ActorDiedError" in line for line in lines):
        return DIED
    return lines[-1][:300] if lines else DIED


# Inside a trial's process


def try_candidate(parameters: dict[str, Any], settings: dict[str, Any]) -> None:
    """What Tune runs: train a candidate and report its score."""
    from ray import tune

    candidate: Candidate = parameters["parameters"]
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    with gathered(settings, candidate):
        try:
            found = tune.get_checkpoint() or kept_before(parameters, settings)
            with resumed(found, Path(settings["scratch"]), tune.get_context().get_trial_id()) as checkpoints:
                for report in reports_of(settings, candidate, checkpoints if settings["checkpoints"] else None):
                    row = {
                        SCORE: report.scores[settings["objective"]],
                        "scores": report.scores,
                        "step": report.step,
                        "steps": report.steps,
                        "parameters": candidate,
                        "schedule": extended(checkpoints / "schedule.json", report.step, candidate),
                    }
                    kept = tune.Checkpoint.from_directory(checkpoints) if settings["checkpoints"] else None
                    tune.report(row, checkpoint=kept)
        except UserError as error:  # a loss that is not finite, for one: the candidate has lost
            tune.report({SCORE: WORST[settings["objective"]], "reason": str(error)})


def kept_before(parameters: dict[str, Any], settings: dict[str, Any]) -> Any:
    """What an earlier session kept of this member of a population."""
    from ray import tune

    if "number" not in parameters:
        return None
    folder = member_folder(Path(settings["out"]), parameters["number"]) / "checkpoint"
    return tune.Checkpoint.from_directory(folder) if folder.exists() else None


@contextmanager
def resumed(checkpoint: Any, scratch: Path, trial: str) -> Iterator[Path]:
    """A folder in `scratch` with the checkpoint that Tune hands over, or an empty one.

    Tune ends a trial by ending its process, which cleans up nothing: what an earlier process of the trial left goes
    now, the rest with `scratch`.
    """
    for left in listed(scratch, f"{trial}-*"):
        delete(left)
    with tempfile.TemporaryDirectory(prefix=f"{trial}-", dir=scratch) as folder:
        if checkpoint is not None:
            checkpoint.to_directory(folder)
        yield Path(folder)


def extended(path: Path, step: int, candidate: Candidate) -> list[dict[str, Any]]:
    """The parameters that the network was trained with up to a step: a copied network brings its history along."""
    before = json.loads(path.read_text()) if path.exists() else []
    rows = [*before, {"step": step, "parameters": candidate}]
    path.write_text(json.dumps(rows))
    return rows


def reports_of(settings: dict[str, Any], candidate: Candidate, checkpoints: Path | None) -> Iterator[Any]:
    """The reports of one worker of a trial."""
    import torch

    from rayssl.pipeline.tune.trial import Course, run_trial

    if not settings["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves the devices visible to a worker that asked for none
    torch.set_num_threads(max(1, int(settings["cpus"])))
    config = candidate_config(configuration.from_dict(settings["config"]), settings["space"], candidate)
    if settings["gpus"] and config.data.processes is None:  # of the trial's own share of the cores
        config = replace(config, data=replace(config.data, processes=max(1, int(settings["cpus"]) - 1)))
    course = Course(settings["objective"], settings["reports"], settings["images"])
    try:
        yield from run_trial(config, course, checkpoints)
    finally:
        give_back_memory()  # this process goes on with another trial


@contextmanager
def gathered(settings: dict[str, Any], candidate: Candidate) -> Iterator[None]:
    """The other workers of this trial, each a task in its placement group, joined to this process as rank 0."""
    world = settings["workers"]
    if world == 1:
        yield
        return
    import ray
    import torch.distributed as dist
    from ray.util import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    place = found_place(settings["here"])
    group = get_current_placement_group()
    assert group is not None  # Tune puts every trial into one
    others = [
        ray.remote(follow)
        .options(
            num_cpus=settings["cpus"],
            num_gpus=settings["gpus"],
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        .remote(settings, candidate, place, rank)
        for rank in range(1, world)
    ]
    try:
        join(settings, place, 0)
        yield
        ray.get(others)
    except UserError:
        raise
    except Exception:
        # What ended another worker says more than that it is gone.
        for other in ray.wait(others, num_returns=len(others), timeout=5)[0]:
            ray.get(other)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def found_place(here: bool) -> str:
    """Where the workers of a trial are to meet: on one machine by a file, which no one else can open."""
    from ray.util import get_node_ip_address

    from rayssl.pipeline.cluster.rendezvous import meeting_folder, meeting_place

    if here:
        return meeting_place(meeting_folder())
    return f"tcp://{get_node_ip_address()}:{free_port()}"  # type: ignore[no-untyped-call]


def join(settings: dict[str, Any], place: str, rank: int) -> None:
    """Become a worker of a trial."""
    import torch.distributed as dist

    dist.init_process_group(
        "nccl" if settings["gpus"] else "gloo",
        init_method=place,
        rank=rank,
        world_size=settings["workers"],
        timeout=timedelta(minutes=JOIN_MINUTES),
    )


def follow(settings: dict[str, Any], candidate: Candidate, place: str, rank: int) -> None:
    """A worker of a trial that is not rank 0: takes part, and reports nothing."""
    import torch.distributed as dist

    join(settings, place, rank)
    try:
        for _ in reports_of(settings, candidate, None):
            pass
    finally:
        dist.destroy_process_group()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
