"""What a config asks of a cluster, and whether there is that much."""

from typing import TYPE_CHECKING

from rayssl.pipeline.config import Config
from rayssl.pipeline.run.machine import this_machine
from rayssl.pipeline.run.plan import Machine

if TYPE_CHECKING:
    from rayssl.pipeline.cluster.train import Resources


def resources_of(config: Config) -> "Resources":
    """What the config asks of a cluster."""
    from rayssl.pipeline.cluster.train import Resources

    asked = config.cluster
    return Resources(asked.workers, asked.gpu_per_worker, asked.cpu_per_worker, asked.address, asked.max_failures)


def training_machine(config: Config) -> Machine:
    """The machine that the workers of a run will have: this one, or what a cluster says of its own."""
    from rayssl.pipeline.cluster.train import cluster_address, cluster_machine

    if cluster_address(config.cluster.address) is None:
        return this_machine(config)
    return cluster_machine(resources_of(config))


def check_resources(config: Config) -> None:
    """Refuse more than this machine has, and a cluster that is not there, before anything is written."""
    from rayssl.pipeline.cluster.train import check_local, check_reachable, choose_ray_folder, cluster_address

    if cluster_address(config.cluster.address) is None:
        choose_ray_folder()
        check_local(resources_of(config))
    else:
        check_reachable(config.cluster.address)
