"""Ray's private names, all in one place: tests/unit/cluster/test_ray_private.py says which are gone in a new Ray."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray's node has the address 127.0.0.1, on Linux too


@contextmanager
def few_processes() -> Iterator[None]:
    """Ray starts without the processes that serve nobody here: the dashboard's rest, the autoscaler, the log monitor.

    Each takes seconds of a core to start, and Ray waits for the first; there is no setting of Ray's for it.
    """
    from ray._private.node import Node

    def no_dashboard(node: Any, **_: Any) -> None:
        node._webui_url = ""

    instead = {"start_api_server": no_dashboard, "start_monitor": nothing, "start_log_monitor": nothing}
    kept = {name: getattr(Node, name) for name in instead}
    for name, replacement in instead.items():
        setattr(Node, name, replacement)
    try:
        yield
    finally:
        for name, own in kept.items():
            setattr(Node, name, own)


def nothing(node: Any) -> None:
    """Start nothing."""


def lean_trainer(own_cluster: bool) -> Any:
    """TorchTrainer without helpers that have nothing to do here, each a process: Ray's data sets, of which there are
    none, and, where the cluster ends with the driver, placement groups that are left behind.

    A process takes 3 s of a core to start and 0.75 % of one from then on, which two cores feel.
    """
    from ray.train.torch import TorchTrainer

    idle = {"DatasetsCallback", *(["PlacementGroupCleanerCallback"] if own_cluster else [])}

    class LeanTrainer(TorchTrainer):
        """By the names of their classes: under other names they are kept."""

        def _create_default_callbacks(self) -> Any:
            return [helper for helper in super()._create_default_callbacks() if type(helper).__name__ not in idle]  # type: ignore[misc]

    return LeanTrainer


def join_workers(worker_group: Any, meeting_place: str, timeout_s: float) -> None:
    """Have torch's process group start in every worker, by NCCL where they have GPUs.

    meeting_place: where they find each other, a URL as `torch.distributed.init_process_group` wants it.
    """
    import ray
    from ray.train.torch import config

    gpus = worker_group.get_resources_per_worker().get("GPU", 0)
    worker_group.execute(config._set_torch_distributed_env_vars)
    joining = [
        worker_group.execute_single_async(
            rank,
            config._setup_torch_process_group,
            backend="nccl" if gpus > 0 else "gloo",
            world_rank=rank,
            world_size=len(worker_group),
            init_method=meeting_place,
            timeout_s=timeout_s,
        )
        for rank in range(len(worker_group))
    ]
    ray.get(joining)


def rungs_of(scheduler: Any) -> list[tuple[int, dict[str, float]]]:
    """Of ASHA: after how many reports trials are compared, and the scores there, by trial."""
    found: list[tuple[int, dict[str, float]]] = scheduler._brackets[0]._rungs
    return found


def add_result(rule: Any, trial: str, time: int, result: dict[str, float]) -> None:
    """Let the median stopping rule know a result of a trial that Ray does not run."""
    rule._results[trial].append({rule._time_attr: time, **result})


def read_settings_anew() -> None:
    """Have Ray, where it is imported already, obey the environment as it is now: it reads it once, and keeps it."""
    if "ray" not in sys.modules:
        return
    raylet: Any = importlib.import_module("ray._raylet")
    constants: Any = importlib.import_module("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = constants.env_bool(LOOPBACK_ONLY, not constants.IS_WINDOWS_OR_OSX)
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def session_folder() -> str:
    """Where Ray leaves the files of this session."""
    import ray

    node: Any = ray._private.worker._global_node
    return str(node.get_session_dir_path())
