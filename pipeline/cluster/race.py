"""Trials of a race as Ray tasks: as many at a time as there is room for, each with the same threads everywhere.

What Ray stores is thrown away: a trial's run folder is the only truth, and a trial that is started again goes on from
its own checkpoint.
"""

import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayssl.pipeline.base import wandb_tracker
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import delete
from rayssl.pipeline.base.memory import give_back_memory
from rayssl.pipeline.base.reporter import Interrupted
from rayssl.pipeline.cluster.capacity import alive_nodes, count_workers
from rayssl.pipeline.cluster.train import (
    FileReporter,
    Resources,
    Show,
    StopOnly,
    Tail,
    cluster_address,
    connected,
    control_folder,
    quiet_ray,
    run_beside,
    threads_asked,
)
from rayssl.pipeline.race.parts import Ended, Room, Task
from rayssl.pipeline.race.plan import threads_of

DIED = "the trial's process died: it was killed, or out of memory"
WAIT_SECONDS = 0.2


@contextmanager
def open_track(out: Path, resources: Resources, show: Show) -> Iterator["Track"]:
    """A Ray session for the trials of a race, started here or at the address of a cluster."""
    quiet_ray(cluster_address(resources.address))
    show({"message": "starting Ray …"})
    with control_folder(out.absolute()) as control, connected(resources, show):
        yield Track(control, resources, show)


class Track:
    """Where the trials of a race run."""

    def __init__(self, control: Path, resources: Resources, show: Show) -> None:
        self.control, self.resources, self.show = control, resources, show
        self.nodes = alive_nodes()
        self.gpus = gpus_of(self.nodes, resources)

    def room(self, threads: int | None, trained: int) -> Room:
        """The threads of a trial, those that were settled before or the machine's share, and trials at a time."""
        cores = [node["CPU"] for node in self.nodes if node.get("CPU", 0) >= 1] or [1.0]
        if threads is None:
            share = min(cores) / max(1.0, max(node.get("GPU", 0.0) for node in self.nodes))
            threads = threads_of(share, 1 if self.gpus else trained)
            threads = int(self.resources.cpu_per_worker or threads_asked() or threads)
        return Room(threads, max(1, count_workers(self.nodes, min(threads, max(cores)), self.gpus)))

    def run(self, tasks: Sequence[Task], threads: int, on_end: Callable[[Ended], None]) -> None:
        """Run the tasks and tell of each when it has ended; raises Interrupted after Ctrl-C or SIGTERM."""
        ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        tails = [Tail(self.control / f"{task.name}.jsonl") for task in tasks]
        for tail in tails:
            delete(tail.path)

        def tell() -> None:
            for tail in tails:
                for row in tail.read():
                    self.show(row)
            while not ended.empty():
                on_end(ended.get())

        def on_signal() -> None:
            (self.control / "stop").touch()
            self.show({"message": "stopping: checkpoints are written first (again to stop at once)"})

        failure, caught = run_beside(lambda: self._wait_for(tasks, threads, ended.put), tell, on_signal)
        if caught:
            raise Interrupted(caught[0])
        if failure:
            raise RuntimeError(f"Ray failed: {type(failure[0]).__name__}: {failure[0]}") from failure[0]

    def _wait_for(self, tasks: Sequence[Task], threads: int, put: Callable[[Ended], None]) -> None:
        import ray

        most = max(node.get("CPU", 1.0) for node in self.nodes)
        remote = ray.remote(work_on).options(
            num_cpus=min(threads, most), num_gpus=self.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        gpu = self.gpus > 0
        told = wandb_tracker.variables()
        waiting = {remote.remote(task, str(self.control), gpu, told): task for task in tasks}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=WAIT_SECONDS)
            for reference in done:
                task = waiting.pop(reference)
                put(outcome_of(task, reference))


def gpus_of(nodes: list[dict[str, float]], resources: Resources) -> float:
    """The GPUs of a trial; raises UserError where more are asked for than there are."""
    there = max(node.get("GPU", 0.0) for node in nodes)
    asked = resources.gpu_per_worker if resources.gpu_per_worker is not None else float(there > 0)
    if asked > there:
        raise UserError(f"--cluster.gpu-per-worker is {asked:g}: a machine here has {there:g} GPUs")
    return asked


def outcome_of(task: Task, reference: Any) -> Ended:
    """What a task came to, also where its process died."""
    import ray

    try:
        found: Ended = ray.get(reference)
        return found
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError):
        return Ended(task.name, reason=DIED)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        return Ended(task.name, reason=f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1][:300]}")


def work_on(task: Task, control: str, gpu: bool, told_to_wandb: dict[str, str]) -> Ended:
    """What a task runs."""
    from rayssl.pipeline.race.trial import run_trial, time_step
    from rayssl.pipeline.run.context import Stopped

    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    wandb_tracker.obey(told_to_wandb)
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves the devices visible to a worker that asked for none
    reporter = StopOnly(Path(control)) if task.timed else FileReporter(Path(control), task.name)
    if reporter.should_stop():
        return Ended(task.name, stopped=True)
    try:
        if task.timed:
            return Ended(task.name, seconds_a_step=time_step(Path(task.run), reporter))
        began = time.monotonic()
        run_trial(Path(task.run), reporter)
        return Ended(task.name, seconds=time.monotonic() - began)
    except Stopped:
        return Ended(task.name, stopped=True)
    except UserError as error:
        return Ended(task.name, reason=str(error))
    finally:
        give_back_memory()  # this process goes on with another trial
