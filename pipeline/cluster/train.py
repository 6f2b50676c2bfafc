"""Stages on Ray Train: few worker groups for all the runs and stages of a command.

Starting a worker group costs half a minute on a small machine, so there is one, or as many as fit beside each other.
What Ray stores is thrown away: the run folder is the only truth, and a restarted worker goes on from our own
checkpoint.
"""

import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayssl.pipeline.base import wandb_tracker
from rayssl.pipeline.base.errors import OutsideError, UserError
from rayssl.pipeline.base.files import delete, listed, write_json
from rayssl.pipeline.base.reporter import Interrupted, Silent, handle_signals
from rayssl.pipeline.cluster.closed import closed_to_others, lets_anybody_in
from rayssl.pipeline.cluster.ray_private import few_processes, lean_trainer
from rayssl.pipeline.run.plan import Machine

POLL_SECONDS = 0.2
REACH_SECONDS = 10  # that a cluster's head may take to accept a connection
STARTING_SECONDS = 600  # a cluster may have to start machines first
CLIENT_PORT = "10001"  # of Ray's own client
HERE_INSTEAD = "--cluster.address local is this machine"


OPEN_CLUSTER = (
    "this Ray cluster has no token: whoever reaches its ports runs code there as its user; start it with "
    "RAY_AUTH_MODE=token (docs/cluster.md)"
)


CONTROL = ".control"  # folder beside the runs through which driver and workers talk; gone afterwards
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"  # what Ray appends to its folder
LONGEST_SOCKET = 107 if sys.platform == "linux" else 103  # bytes


Show = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """The stages of one run folder."""

    run: str
    stages: list[str]


@dataclass(frozen=True)
class Resources:
    """What a worker group takes."""

    workers: int
    gpu_per_worker: float | None
    cpu_per_worker: float | None
    address: str | None
    max_failures: int


def run_jobs(groups: Sequence[list[Job]], folder: Path, resources: Resources, show: Show) -> None:
    """Run each group's jobs, one after the other, in a worker group of its own; `show` gets their progress rows.

    Several worker groups share this machine's cores. Raises UserError for wrong input (also from inside a worker),
    Interrupted after Ctrl-C or SIGTERM, RuntimeError where workers died too often; the other groups end before that.
    """
    groups = [jobs for jobs in groups if any(job.stages for job in jobs)]
    if not groups:
        return
    if len(groups) > 1:
        resources = replace(resources, cpu_per_worker=(os.cpu_count() or 1) // len(groups))
    quiet_ray(cluster_address(resources.address))
    with control_folder(folder) as control, connected(resources, show) as own_cluster:
        fit_in_thread(groups, control, scaling(resources), resources.max_failures, own_cluster, show)


@contextmanager
def control_folder(folder: Path) -> Iterator[Path]:
    """A folder of this driver's in `folder`, for the time; those of drivers that were killed are removed."""
    remove_left_behind(folder)
    control = Path(tempfile.mkdtemp(prefix=f"{CONTROL}-{socket.gethostname()}-{os.getpid()}-", dir=folder))
    try:
        yield control
    finally:
        delete(control)


def remove_left_behind(folder: Path) -> None:
    """Control folders of drivers of this machine that were killed."""
    for left in listed(folder, f"{CONTROL}-{socket.gethostname()}-*"):
        if not Path("/proc", left.name.split("-")[-2]).exists():
            delete(left)


def quiet_ray(address: str | None) -> None:
    """Settings that must be there before ray is imported; a cluster that is there keeps its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        choose_ray_folder()
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        # On one machine workers need no environment of their own; a submitted job does.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        # Ray's workers give way to every other process (niceness 15): next to a busy browser they would stand still.
        os.environ.setdefault("RAY_worker_niceness", "0")


def choose_ray_folder() -> None:
    """Ray's files go below RAY_TMPDIR or TMPDIR, but to /tmp where a batch system's TMPDIR is too long for sockets.

    UserError where RAY_TMPDIR itself is too long, or where Ray could not write.
    """
    asked = os.environ.get("RAY_TMPDIR")
    longest = LONGEST_SOCKET - len(SOCKET.format(pid=os.getpid()))
    if len(os.fsencode(asked or os.environ.get("TMPDIR", ""))) > longest:
        if asked:
            raise UserError(f"RAY_TMPDIR is {asked}: for Ray's sockets its path may have at most {longest} characters")
        os.environ["RAY_TMPDIR"] = "/tmp"
    check_ray_folder()


def check_ray_folder() -> None:
    """Raises UserError where Ray could not write to its folder: it is another user's, read-only, or no folder."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    folder = Path(os.environ[name] if name else "/tmp") / "ray"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rayssl-", dir=folder) as inside:
            (Path(inside) / "file").write_bytes(b"-")
    except OSError as error:
        where = f"{name} is {os.environ[name]}: " if name else ""
        raise UserError(
            f"{where}Ray cannot write to {folder} ({error.strerror}): set RAY_TMPDIR to a folder of yours with a short "
            "path, e.g. RAY_TMPDIR=/tmp/$USER"
        ) from None


@contextmanager
def connected(resources: Resources, show: Show) -> Iterator[bool]:
    """A connection to the cluster at the address (or RAY_ADDRESS), else a cluster on this machine for the time.

    Yields whether the cluster ends with the connection. `show` is told where a cluster lets anybody in.
    """
    address = cluster_address(resources.address)
    if address:
        check_reachable(resources.address)
    else:
        check_local(resources)
    with ExitStack() as until_the_end:
        began_here = not is_connected()
        own_cluster = began_here and not address
        if own_cluster:
            until_the_end.enter_context(closed_to_others())
        import ray  # not before: it reads its settings when it is imported

        common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False, "ignore_reinit_error": True}
        if began_here:
            until_the_end.callback(ray.shutdown)
        if address:
            join(address, describe_address(resources.address), common)
            warn_of_open_cluster(address, describe_address(resources.address), show)
        else:
            start_here(common)
        yield own_cluster


def is_connected() -> bool:
    """Whether this process is connected to a Ray already, as a program that calls `rayssl.run` may be."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def warn_of_open_cluster(address: str, described: str, show: Show) -> None:
    """Say loudly that a cluster to which this process is connected has no token."""
    import ray

    place = address if address.startswith("ray://") else ray.get_runtime_context().gcs_address
    if lets_anybody_in(place):
        show({"message": f"warning: {described}: {OPEN_CLUSTER}"})


def join(address: str, described: str, settings: dict[str, Any]) -> None:
    """Connect to a cluster that is there; raises UserError where there is none, or none that lets us in."""
    import ray

    try:
        ray.init(address=address, **settings)
    except Exception as error:  # of any kind: Ray's own, gRPC's, those of a session that has ended
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if address == "auto":
            told = f"no Ray cluster runs on this machine ({reason}): start one with `ray start --head`"
        else:
            told = (
                f"a program answers there, but no Ray cluster lets us in ({reason}): start it again if it has ended; "
                "one with a token wants RAY_AUTH_MODE=token and ~/.ray/auth_token"
            )
        raise UserError(f"{described}: {told}; {HERE_INSTEAD}") from None


def start_here(settings: dict[str, Any], tries: int = 2) -> None:
    """A cluster of this machine alone. Ray gives its node 30 s to start; a busy machine may need a second try.

    Raises OutsideError where that is not enough either.
    """
    import ray

    for _ in range(tries):
        try:
            # "local", because without an address Ray joins any cluster that `ray start` left on this machine.
            with few_processes():
                ray.init("local", include_dashboard=False, object_store_memory=128 * 1024**2, **settings)
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    raise OutsideError(f"Ray did not start within {tries} × 30 s: this machine is too busy; try again")


def cluster_address(address: str | None) -> str | None:
    """The address of an existing cluster: the one that is given, else Ray's own variable; None for this machine."""
    found = address or os.environ.get("RAY_ADDRESS")
    return None if found in (None, "", "local") else found


def describe_address(address: str | None) -> str:
    """Which cluster was meant, and by what."""
    if address:
        overruled = os.environ.get("RAY_ADDRESS") not in (None, address)
        return f"--cluster.address {address}" + (" (which overrules RAY_ADDRESS)" if overruled else "")
    return f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS')}"


def check_reachable(given: str | None) -> None:
    """Refuse an address at which nothing listens: Ray would try it for a quarter of an hour."""
    address = cluster_address(given) or ""
    if address == "auto":  # a cluster on this machine, which Ray finds at once or not
        return
    scheme, slashes, place = address.rpartition("://")
    host, _, port = place.partition("/")[0].rpartition(":")
    if scheme == "ray" and not host:
        host, port = port, CLIENT_PORT
    if (slashes and scheme != "ray") or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"{describe_address(given)}: give HOST:PORT of the head, such as 10.0.0.1:6379, or ray://HOST:{CLIENT_PORT}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{describe_address(given)}: nothing answers there ({reason}): start the cluster, or name another; "
            f"{HERE_INSTEAD}"
        ) from None


def check_local(resources: Resources) -> None:
    """Refuse more workers or GPUs than this machine has: Ray would wait for them for ever."""
    import torch

    cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    if resources.workers > max(cores, gpus):
        raise UserError(f"--cluster.workers is {resources.workers}: this machine has {cores} cores and {gpus} GPUs")
    asked_cores = resources.workers * (resources.cpu_per_worker or 0)
    if asked_cores > cores:
        raise UserError(
            f"--cluster.cpu-per-worker is {resources.cpu_per_worker:g} for {resources.workers} workers: "
            f"this machine has {cores} cores"
        )
    asked = resources.workers * (resources.gpu_per_worker or 0)
    if resources.workers > 1 and asked % resources.workers:
        raise UserError(
            f"--cluster.gpu-per-worker is {resources.gpu_per_worker:g}: several workers cannot share a GPU; use 0 or 1"
        )
    if asked > gpus:
        raise UserError(
            f"--cluster.gpu-per-worker is {resources.gpu_per_worker:g} for {resources.workers} "
            f"worker{'s' * (resources.workers > 1)}: this machine has {gpus} GPUs"
        )


def scaling(resources: Resources) -> Any:
    """Ray's scaling config: one GPU a worker where there are GPUs, and the cores shared evenly."""
    import ray
    from ray.train import ScalingConfig

    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = resources.gpu_per_worker
    there = have.get("GPU", 0.0)
    if gpus is None and 0 < there < resources.workers:
        raise UserError(
            f"--cluster.workers is {resources.workers}: there are {there:g} GPUs, and a worker takes one: "
            f"use {there:g}, or --cluster.gpu-per-worker 0"
        )
    if gpus is None:
        gpus = 1.0 if there else 0.0
    cpus = resources.cpu_per_worker or max(1, int(have.get("CPU", 1) // resources.workers))
    asked = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
    return ScalingConfig(num_workers=resources.workers, use_gpu=gpus > 0, resources_per_worker=asked)


def cluster_machine(resources: Resources) -> Machine:
    """What the workers of a cluster that is there already are given, GPUs and cores; connects to it for the time."""
    quiet_ray(cluster_address(resources.address))
    with connected(resources, lambda row: None):
        scale = scaling(resources)
    cores = resources.workers * int(scale.resources_per_worker["CPU"])
    return Machine("cuda" if scale.use_gpu else "cpu", max(1, cores), resources.workers)


def threads_asked() -> int | None:
    """OMP_NUM_THREADS, where the user has set it for this process; Ray sets it only for its workers."""
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
    except (KeyError, ValueError):
        return None


def fit_in_thread(
    groups: Sequence[list[Job]], control: Path, scale: Any, max_failures: int, own_cluster: bool, show: Show
) -> None:
    """Run Ray's fits beside this thread, which shows progress and hands signals on."""
    controls = [control / str(number) for number in range(len(groups))]
    for folder in controls:
        folder.mkdir()
    tails = [Tail(folder / "progress.jsonl") for folder in controls]

    def on_signal() -> None:
        for folder in controls:
            (folder / "stop").touch()
        show({"message": "stopping: a checkpoint is written first (again to stop at once)"})

    def tell() -> None:
        for number, tail in enumerate(tails):
            for row in tail.read():
                show({**row, "group": number} if len(groups) > 1 else row)

    def fit_group(jobs: list[Job], folder: Path) -> None:
        try:
            fit(jobs, folder, scale, max_failures, own_cluster)
        finally:
            write_row(folder / "progress.jsonl", {"ended": True})

    def fit_all() -> None:
        with ThreadPoolExecutor(len(groups), "fit") as pool:
            for ended in [pool.submit(fit_group, *one) for one in zip(groups, controls, strict=True)]:
                ended.result()

    failure, caught = run_beside(fit_all, tell, on_signal)
    raise_outcome(controls, failure, caught)


def run_beside(
    work: Callable[[], None], tell: Callable[[], None], on_signal: Callable[[], None]
) -> tuple[list[BaseException], list[int]]:
    """Run Ray's fit in another thread, and `tell` in this one again and again: (its failure, the signal that came).

    Ray replaces the Ctrl-C handler when fit runs on the main thread, and its workers die before they can write a
    checkpoint; from another thread it leaves the handlers alone. `on_signal` is called at the first signal.
    """
    failure: list[BaseException] = []
    caught: list[int] = []

    def handle(number: int) -> None:
        caught.append(number)
        on_signal()

    def fit_here() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=fit_here, name="fit", daemon=True)
    with handle_signals(handle):
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            tell()
    tell()
    return failure, caught


def raise_outcome(controls: Sequence[Path], failure: list[BaseException], caught: list[int]) -> None:
    """Turn what happened in the workers into this process's exception, or none."""
    for outcome in [control / "outcome.json" for control in controls]:
        told = json.loads(outcome.read_text()) if outcome.exists() else {}
        if "user_error" in told:
            raise UserError(told["user_error"])
    if caught:
        raise Interrupted(caught[0])
    if failure:
        raise RuntimeError(f"the workers failed: {worker_traceback(failure[0])}") from None


def worker_traceback(error: BaseException) -> str:
    """What the first failed worker said, not what Ray said about it."""
    failures = getattr(error, "worker_failures", None)
    return str(next(iter(failures.values()))) if failures else f"{type(error).__name__}: {error}"


def fit(jobs: list[Job], control: Path, scale: Any, max_failures: int, own_cluster: bool) -> None:
    """One TorchTrainer; its storage is temporary and its name new every time, so that it never resumes by itself."""
    from ray.train import FailureConfig, RunConfig

    from rayssl.pipeline.cluster.rendezvous import FileRendezvous

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(STARTING_SECONDS))
    trainer = lean_trainer(own_cluster)(
        work_on_jobs,
        train_loop_config={
            "jobs": [(job.run, job.stages) for job in jobs],
            "control": str(control),
            "threads": threads_asked() or int(scale.resources_per_worker["CPU"]),
            "gpu": scale.use_gpu,
            "wandb": wandb_tracker.variables(),
        },
        torch_config=FileRendezvous() if own_cluster else None,
        scaling_config=scale,
        run_config=RunConfig(
            name=f"rayssl-{time.time_ns():x}",
            storage_path=str(control / "ray"),
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=max_failures, controller_failure_limit=2, max_preemption_failures=100
            ),
        ),
    )
    trainer.fit()


def work_on_jobs(settings: dict[str, Any]) -> None:
    """What every worker runs."""
    import torch
    from ray import train

    from rayssl.pipeline.base import collectives
    from rayssl.pipeline.run.context import Stopped
    from rayssl.pipeline.stages.story import run_worker_stages

    if not settings["gpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves the devices visible to a worker that asked for none
    torch.set_num_threads(max(1, settings["threads"]))
    wandb_tracker.obey(settings["wandb"])
    control = Path(settings["control"])
    main = collectives.rank() == 0
    reporter = FileReporter(control) if main else StopOnly(control)
    if (control / "outcome.json").exists():  # a worker has said that the input is wrong: so it will be again
        return
    try:
        for run, stages in settings["jobs"]:
            run_worker_stages(Path(run), stages, reporter)
            train.report({"run": run})
    except Stopped as stopped:
        reporter.message(str(stopped))
    except UserError as error:
        # Any worker may find it, the others then wait in a collective: failing ends them, and a restart ends at once.
        write_json(control / "outcome.json", {"user_error": str(error)})
        if collectives.world_size() > 1:
            raise


class StopOnly(Silent):
    """A worker that is not rank 0: it only looks whether to stop."""

    def __init__(self, control: Path) -> None:
        self.control = control

    def should_stop(self) -> bool:
        """Whether the driver asked to stop, or is gone and with it the control folder."""
        return (self.control / "stop").exists() or not self.control.exists()


class FileReporter(StopOnly):
    """Rank 0: rows go to the driver through a file on the shared storage that the runs are on anyway."""

    def __init__(self, control: Path, name: str = "progress") -> None:
        super().__init__(control)
        self.path = control / f"{name}.jsonl"

    def progress(self, row: dict[str, Any]) -> None:
        """Append the row for the driver to show."""
        write_row(self.path, row)

    def message(self, text: str) -> None:
        """Append the text for the driver to show."""
        self.progress({"message": text})


def write_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of rows."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


class Tail:
    """Reads the lines that are appended to a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0

    def read(self) -> list[dict[str, Any]]:
        """The rows since the last call; a line that is not finished yet comes with the next."""
        if not self.path.exists():
            return []
        with self.path.open() as file:
            file.seek(self.position)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self.position += len(whole.encode())
        return [json.loads(line) for line in whole.splitlines()]
